"""The tables and pictures of docs/pays.md and docs/comparison.md, from what curves.py measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import ratios
from benchmarks.scale import table

#: what a picture shows first, in the strongest line
OURS = ("untorn", "FrozenDict", "untorn, 2 workers")
#: colours that can be read on white and on black; the first is untorn's
COLOURS = ("#0969da", "#cf222e", "#bf8700", "#1a7f37", "#8250df", "#bf3989", "#6e7781")
INK, GROUND, GRID = "#1f2328", "#ffffff", "#d0d7de"
DARK = {INK: "#e6edf3", GROUND: "#161b22", GRID: "#3d444d", "#0969da": "#58a6ff", "#cf222e": "#ff7b72",
        "#1a7f37": "#56d364", "#8250df": "#bc8cff", "#bf3989": "#ff80c8", "#bf8700": "#e3b341"}  # fmt: skip
Curves = dict[str, dict[int, list[float]]]


def curves(times: dict[str, list[float]], prefix: str = "") -> Curves:
    """Return the seconds of each turn by contestant and by size."""
    found: Curves = {}
    for key, seconds in times.items():
        if key.startswith(prefix):
            name, _, size = key.removeprefix(prefix).rpartition("|")
            found.setdefault(name, {})[int(size)] = seconds
    return found


# -- tables


def tables(measured: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the texts of each page by the names of their places."""
    pages: dict[str, dict[str, str]] = {"pays.md": {}, "comparison.md": {}}
    if "sizes" in measured:
        times = measured["sizes"]["times"]
        publish, read = curves(times, "publish|"), curves(times, "read|")
        pages["comparison.md"]["measured"] = told(against(publish, read), measured["sizes"])
        pages["pays.md"]["sizes"] = told(sizes_table(publish, read), measured["sizes"])
    if "tables" in measured:
        times = measured["tables"]["times"]
        table_of_both = tables_table(curves(times, "lookup|"), curves(times, "attach|"))
        pages["pays.md"]["tables"] = told(table_of_both, measured["tables"])
    if "workers" in measured:
        table_of_steps = workers_table(curves(measured["workers"]["times"]))
        pages["pays.md"]["workers"] = told(table_of_steps, measured["workers"])
    return pages


def told(text: str, measurement: dict[str, Any]) -> str:
    """Add the date, the machine and the command of a measurement to its table."""
    return f"{text}\n\nMeasured: {measurement['how']}."


def human(nbytes: int) -> str:
    for unit, factor in (("MB", 1_000_000), ("KB", 1_000)):
        if nbytes >= factor:
            return f"{nbytes / factor:g} {unit}"
    return f"{nbytes} B"


def microseconds(seconds: Sequence[float]) -> str:
    number = statistics.median(seconds) * 1e6
    if number >= 10_000:
        return f"{number / 1e3:,.0f} ms"
    return f"{number:.2g} µs" if number < 10 else f"{number:,.0f} µs"


def times_of(of: Sequence[float], to: Sequence[float]) -> str:
    """Format a ratio with its quartiles."""
    if len(of) == 1:
        return short(of[0] / to[0])
    median, (low, high) = ratios(of, to)
    return f"{short(median)} ({short(low)} to {short(high)})"


def short(number: float) -> str:
    """Format with three significant digits, without an exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def against(publish: Curves, read: Curves) -> str:
    """Return the table of all contestants at both ends: a time, and how many times that of untorn it is."""
    ends = min(read["untorn"]), max(read["untorn"])
    lines = []
    for name in read:
        cells = [
            microseconds(found[name][size])
            + ("" if name == "untorn" else f": {times_of(found[name][size], found['untorn'][size])}")
            for found in (publish, read)
            for size in ends
        ]
        lines.append([name, *cells])
    return table(["", *(f"{what}, {human(size)}" for what in ("publish", "read") for size in ends)], lines)


def sizes_table(publish: Curves, read: Curves) -> str:
    names = ("untorn", "pickle alone")
    lines = [
        [
            human(size),
            microseconds(publish["memcpy"][size]),
            *(microseconds(found[name][size]) for found in (publish, read) for name in names),
        ]
        for size in sorted(read["untorn"])
    ]
    return table(["size", "memcpy", "publish: untorn", "pickle", "read: untorn", "unpickle"], lines)


def tables_table(lookup: Curves, attach: Curves) -> str:
    lines = [
        [
            f"{entries:,}",
            *(f"{statistics.median(lookup[kind][entries]) * 1e9:.0f} ns" for kind in ("dict", "FrozenDict")),
            times_of(lookup["FrozenDict"][entries], lookup["dict"][entries]),
            *(microseconds(attach[kind][entries]) for kind in ("dict", "FrozenDict")),
        ]
        for entries in sorted(lookup["dict"])
    ]
    return table(
        ["entries", "lookup: dict", "FrozenDict", "ratio", "one more process: unpickle the dict", "attach and look up"],
        lines,
    )


def workers_table(step: Curves) -> str:
    names = list(step)
    lines = [
        [
            f"{parameters:,}",
            *(f"{statistics.median(step[name][parameters]) * 1e3:.2f} ms" for name in names),
            times_of(step["1 process, 2 threads"][parameters], step["untorn, 2 workers"][parameters]),
        ]
        for parameters in sorted(step[names[0]])
    ]
    return table(["parameters", *names, "2 threads: times untorn, 2 workers"], lines)


# -- pictures


def draw(measured: dict[str, Any], folder: Path) -> None:
    """Draw a picture for each measurement. Needs matplotlib."""
    if "sizes" in measured:
        times = measured["sizes"]["times"]
        panels = [("Publish", curves(times, "publish|"), 1e6), ("Read the newest version", curves(times, "read|"), 1e6)]
        picture(folder / "pays-sizes.svg", panels, "bytes", "µs")
    if "tables" in measured:
        times = measured["tables"]["times"]
        panels = [
            ("A lookup, ns", curves(times, "lookup|"), 1e9),
            ("One more process, µs", curves(times, "attach|"), 1e6),
        ]
        picture(folder / "pays-tables.svg", panels, "entries", "")
    if "workers" in measured:
        picture(folder / "pays-workers.svg", speedups(curves(measured["workers"]["times"])), "parameters", "")


def speedups(step: Curves) -> list[tuple[str, Curves, float]]:
    """Return the panels of the workers: times of a step, and how many times as fast as one thread."""
    alone = step["1 process, 1 thread"]
    faster = {
        name: {
            size: [statistics.median(a / b for a, b in zip(alone[size], seconds, strict=True))]
            for size, seconds in found.items()
        }
        for name, found in step.items()
        if name != "1 process, 1 thread"
    }
    return [("A step, ms", step, 1e3), ("Times as fast as one thread", faster, 1.0)]


def picture(path: Path, panels: list[tuple[str, Curves, float]], across: str, up: str) -> None:
    """Draw the panels side by side."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "untorn", "svg.fonttype": "none", "font.family": "sans-serif",
                                "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
                                "ytick.color": INK})  # fmt: skip
    figure = Figure(figsize=(10.6, 4.4), layout="constrained", facecolor=GROUND)
    names = list(dict.fromkeys(name for _, found, _ in panels for name in found))
    names.sort(key=lambda name: name not in OURS)
    colour = dict(zip(names, COLOURS, strict=False))
    for axes, (title, found, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.set_facecolor(GROUND)
        for name in filter(found.__contains__, names):
            sizes = sorted(found[name])
            medians = [statistics.median(found[name][size]) * unit for size in sizes]
            axes.plot(sizes, medians, "o-", label=name, color=colour[name], markersize=3.5,
                      linewidth=2.6 if name in OURS else 1.3, zorder=3 if name in OURS else 2)  # fmt: skip
        axes.set_xscale("log")
        if unit != 1.0:
            axes.set_yscale("log")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.set_title(title, fontsize=11)
        axes.grid(True, which="major", color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text(with_dark_colours(path.read_text()))


def with_dark_colours(svg: str) -> str:
    """Add the colours that a browser with a dark scheme shows."""
    rules = "\n".join(
        f'  [style*="{kind}: {light}"] {{ {kind}: {dark} !important }}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f'<style type="text/css">\n @media (prefers-color-scheme: dark) {{\n{rules}\n }}\n </style>\n'
    svg = re.sub(r"(?<=<svg )(.*?>)", lambda found: found[0] + "\n " + style, svg, count=1, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"
