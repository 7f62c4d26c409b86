"""Run the benchmarks: ``python -m benchmarks [NAME ...] [--json FILE]``; without a name, all of them.

A benchmark is a module of this folder that defines NAME, QUESTION and run() -> list[Row].
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
from pathlib import Path
from types import ModuleType

import benchmarks
from benchmarks.measure import table


def registry() -> dict[str, ModuleType]:
    """Find the benchmarks of this folder: NAME to module, in the order of the files."""
    files = sorted(found.name for found in pkgutil.iter_modules(benchmarks.__path__) if not found.ispkg)
    modules = [importlib.import_module(f"benchmarks.{name}") for name in files if name not in ("__main__", "measure")]
    return {module.NAME: module for module in modules if hasattr(module, "run")}


def machine() -> str:
    """Describe the machine in one line."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return ", ".join(
        [
            datetime.date.today().isoformat(),
            f"{len(os.sched_getaffinity(0))} cores of {cpu} ({platform.machine()})",
            f"Linux {platform.release()}",
            f"Python {platform.python_version()}",
            *(f"{name} {version(name)}" for name in ("numpy", "torch", "ray", "untorn", "lmdb", "iceoryx2")),
        ]
    )


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    known = registry()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(known)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}")

    print(machine(), flush=True)
    results = {}
    for name in options.names or known:
        print(f"\n## {name}\n\n{known[name].QUESTION}\n", flush=True)
        rows = known[name].run()
        print(table(rows), flush=True)
        results[name] = [dataclasses.asdict(row) for row in rows]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
