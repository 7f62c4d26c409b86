"""Compute docs/scale.md: the time of a step on up to 1,000 nodes.

    python -m benchmarks exchange overlap --json FILE    measures what the page is computed from
    python -m benchmarks.scale FILE --write              writes the tables of the page, and its picture

The exchange is simulated (exchange_model.py). A step of N nodes is the work of the whole batch divided by N, plus the
update of all parameters, which every node makes, plus the exchange. The work of a node varies: the seconds of each are
drawn from a normal distribution with a standard deviation of SPREAD, seed 0, and the exchange waits for the slowest.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.exchange_model import Costs, Network, exchange_s, is_one_hop

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SPREAD = 0.02
#: how many steps a group takes between two averages, in the table and the picture
LOCAL_STEPS = 16
NODES = (2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
COUNTS = (1, *NODES)

NETWORKS = {
    "1 ms, 1 Gbit/s": Network(1e-3, 8 / 1e9),
    "50 µs, 10 Gbit/s": Network(50e-6, 8 / 10e9),
    "10 µs, 100 Gbit/s": Network(10e-6, 8 / 100e9),
}
#: bytes of the parameters
SIZES = {"36 KB": 36e3, "1.2 MB": 1.2e6, "17.4 MB": 17.4e6, "400 MB": 400e6}
#: seconds of one node for the gradients of the whole batch
WORK_S = (0.01, 0.1, 1.0, 10.0, 100.0)
#: an efficiency below this does not pay
PAYS = 0.5


@dataclass(frozen=True)
class Measured:
    """What was measured on one machine.

    Attributes:
        machine: the machine and the date.
        costs: of the link.
        update_s: to update a byte of the parameters.
    """

    machine: str
    costs: Costs
    update_s: float


def read(path: Path) -> Measured:
    """Read the results of the benchmark ``exchange``."""
    results = json.loads(path.read_text())
    medians = {each["what"]: each["median"] for each in results["results"]["exchange"]}
    costs = Costs(
        step_s=medians["cost of a step"] * 1e-6,
        frame_s=medians["cost of a frame, at each end"] * 1e-6,
        byte_s=medians["cost of a byte, at each end"] * 1e-9,
        add_s=medians["cost of adding a byte"] * 1e-9,
    )
    return Measured(results["machine"], costs, medians["cost of updating a byte"] * 1e-9)


@functools.cache
def step_s(nodes: int, nbytes: float, work_s: float, network: Network, measured: Measured, *, every: int = 1) -> float:
    """Return the seconds of a step that all nodes share, with one exchange for a number of steps."""
    update = nbytes * measured.update_s
    if nodes == 1:
        return work_s + update
    works = np.random.default_rng(0).normal(1, SPREAD, nodes) * work_s / nodes
    schemes = ("one hop",) if is_one_hop(nodes, nbytes) else ("all to all", "two levels")
    exchanged = min(exchange_s(scheme, nodes, nbytes, measured.costs, network, works) for scheme in schemes)
    work = work_s / nodes
    return work + (exchanged - work) / every + update


def most_that_pay(nbytes: float, work_s: float, network: Network, measured: Measured, *, every: int = 1) -> int:
    """Return the largest number of nodes that spend less than half of their time on anything but their work."""
    alone = step_s(1, nbytes, work_s, network, measured)
    most = 1
    for nodes in NODES:
        if alone / nodes < PAYS * step_s(nodes, nbytes, work_s, network, measured, every=every):
            break
        most = nodes
    return most


# -- tables -----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown, with numbers on the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def milliseconds(seconds: float) -> str:
    """Format with two significant digits."""
    number = seconds * 1e3
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def inputs(measured: Measured) -> str:
    """Say what was measured, and where."""
    costs = measured.costs
    return (
        f"Measured on {measured.machine.partition(', Linux')[0]}, with `benchmarks/exchange.py`: "
        f"{costs.step_s * 1e6:.3g} µs of processor time for a step, {costs.frame_s * 1e6:.2g} µs for a frame and "
        f"{costs.byte_s * 1e9:.2g} ns for a byte at each of their two ends, {costs.add_s * 1e9:.2g} ns to add a byte, "
        f"and {measured.update_s * 1e9:.2g} ns to update a byte of the parameters."
    )


def exchanges(measured: Measured) -> str:
    """Return the table of the exchange alone: nodes against sizes and schemes."""
    network = NETWORKS["50 µs, 10 Gbit/s"]
    sizes = ("36 KB", "1.2 MB", "17.4 MB")
    columns = [("one owner", "17.4 MB"), ("ring", "17.4 MB")]
    columns += [(scheme, size) for scheme in ("all to all", "two levels") for size in sizes]
    lines = (
        [
            str(n),
            *(milliseconds(exchange_s(scheme, n, SIZES[size], measured.costs, network)) for scheme, size in columns),
        ]
        for n in NODES
    )
    return table(["nodes", *(f"{scheme}, {size}" for scheme, size in columns)], lines)


def limits(measured: Measured, every: int = 1) -> str:
    """Return the table of the largest numbers of nodes that pay."""
    lines = (
        [f"{name}, {size}", *(str(most_that_pay(nbytes, work, network, measured, every=every)) for work in WORK_S)]
        for name, network in NETWORKS.items()
        for size, nbytes in SIZES.items()
    )
    return table(["network, parameters", *(f"{work:g} s" for work in WORK_S)], lines)


def validation(results: dict[str, Any]) -> str:
    """Return the table of measured steps and what the simulation says of them."""
    steps = [each for each in results["exchange"] if each["ratio_to"] == "simulation"]
    networks = sorted({network_of(each) for each in steps}, reverse=True)
    shapes = list(dict.fromkeys(each["what"].split(", ")[0] for each in steps))
    sizes = list(dict.fromkeys(each["what"].split(", ")[1] for each in steps))
    found = {(*each["what"].split(", ")[:2], network_of(each)): each for each in steps}
    lines = (
        [
            f"{shape}, {size}",
            *(
                text
                for network in networks
                for each in [found[shape, size, network]]
                for text in (milliseconds(each["median"] / 1e3), f"{each['ratio']:.2f}")
            ),
        ]
        for shape in shapes
        for size in sizes
    )
    return table(["", *(text for name in networks for text in (f"{name}, ms", "times the simulated"))], lines)


def network_of(row: dict[str, Any]) -> str:
    """Return the network of a row of ``exchange``."""
    return row["what"].split(", ", 2)[2].removesuffix(": step")


def overlaps(results: dict[str, Any]) -> str:
    """Return the table of the bounds of an overlap."""
    rows = results["overlap"]
    names = list(dict.fromkeys(each["what"].split(": ")[1] for each in rows))
    networks = list(dict.fromkeys(each["what"].split(": ")[0] for each in rows))
    found = {tuple(each["what"].split(": ")): each["ratio"] for each in rows}
    return table(
        ["", *reversed(networks)],
        ([name, *(f"{found[network, name]:.2f}" for network in reversed(networks))] for name in names),
    )


def write(page: Path, sections: dict[str, str]) -> None:
    """Put each text between the comments of its name in the page. Raises ValueError if there are none."""
    text = page.read_text()
    for name, content in sections.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page} has no place for {name!r}: expected the lines {begin!r} and {end!r}")
        before, _, rest = text.partition(begin)
        text = before + begin + "\n" + content + "\n\n" + end + rest.partition(end)[2]
    page.write_text(text)


# -- the picture ------------------------------------------------------------------------------------------------------


def draw(measured: Measured, path: Path) -> None:
    """Draw the exchange and the step against the number of nodes. Needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "untorn", "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(10.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_exchange(left, measured)
    draw_steps(right, measured)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("nodes")
        axes.grid(True, which="major", color="#d0d7de", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def draw_exchange(axes: Any, measured: Measured) -> None:
    """Draw the time of the exchange for each scheme."""
    for scheme in ("one owner", "one hop", "ring", "all to all", "two levels"):
        times = [exchange_s(scheme, n, SIZES["17.4 MB"], measured.costs, NETWORKS["50 µs, 10 Gbit/s"]) for n in NODES]
        bold = {"linewidth": 2.4} if scheme in ("all to all", "two levels") else {"linewidth": 1.2}
        axes.plot(NODES, [seconds * 1e3 for seconds in times], label=scheme, **bold)
    axes.set_title("Exchange of 17.4 MB at 50 µs, 10 Gbit/s", fontsize=10)
    axes.set_ylabel("ms")


def draw_steps(axes: Any, measured: Measured) -> None:
    """Draw the time of a step for several amounts of work, without and with local steps."""
    network, nbytes = NETWORKS["50 µs, 10 Gbit/s"], SIZES["17.4 MB"]
    for at, work in enumerate((0.1, 1.0, 10.0)):
        for every, style in ((1, "-"), (LOCAL_STEPS, "--")):
            times = [step_s(n, nbytes, work, network, measured, every=every) * 1e3 for n in COUNTS]
            note = "" if every == 1 else f", exchanged every {every} steps"
            axes.plot(COUNTS, times, style, color=f"C{at}", label=f"{work:g} s of work{note}")
        axes.plot(COUNTS, [work * 1e3 / n for n in COUNTS], ":", color=f"C{at}", linewidth=0.8)
    axes.set_title("Step, 17.4 MB at 50 µs, 10 Gbit/s; dotted: without any loss", fontsize=10)
    axes.set_ylabel("ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="what `python -m benchmarks exchange overlap --json FILE` wrote")
    parser.add_argument("--write", action="store_true", help="write the page and its picture, instead of printing")
    options = parser.parse_args()
    measured = read(options.results)
    results = json.loads(options.results.read_text())["results"]
    sections = {
        "inputs": inputs(measured),
        "exchanges": exchanges(measured),
        "limits": limits(measured),
        "limits of local steps": limits(measured, LOCAL_STEPS),
        "validation": validation(results),
        "overlaps": overlaps(results),
    }
    if options.write:
        write(PAGE, sections)
        draw(measured, PAGE.with_suffix(".svg"))
    else:
        print(*(f"{name}:\n\n{text}\n" for name, text in sections.items()), sep="\n")


if __name__ == "__main__":
    main()
