"""Run the tests of share with each CPython that is found, and with the oldest and the newest NumPy that it can have.

    python tests/versions.py [PYTEST ARGUMENTS]

One wheel is built, with the oldest Python; all others install it, since it is for the stable ABI. The environments have
NumPy, pytest and hypothesis, and no library of any extra: tests that need one are skipped or left out. Pythons are
looked for on PATH and among those of pyenv; UNTORN_PYTHONS="python3.11 /opt/python3.13/bin/python3" names others.
Environments stay in build/versions for the next run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "versions"
#: the oldest NumPy with wheels for a Python; of newer Pythons, the newest NumPy is the only one that is tested
OLDEST_NUMPY = {(3, 11): "1.25.0", (3, 12): "1.26.0", (3, 13): "2.1.0", (3, 14): "2.3.2"}
TESTS = ["tests/unit/share", "tests/unit/adapters/test_python.py", "tests/unit/adapters/test_numpy_subclasses.py"]
TOOLS = ["pytest>=8.0", "pytest-xdist>=3.5", "hypothesis>=6.100"]
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def found_pythons() -> dict[tuple[int, int], str]:
    """Return a Python for each version from 3.11 on: with the GIL, and not of a virtual environment."""
    named = os.environ.get("UNTORN_PYTHONS", "").split()
    candidates = named or [
        *(path for minor in range(11, 20) if (path := shutil.which(f"python3.{minor}"))),
        *sorted(glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python3"))),
        sys.executable,
    ]
    pythons: dict[tuple[int, int], str] = {}
    look = "import sys; print(*sys.version_info[:2], getattr(sys, '_is_gil_enabled', bool)(), sys._base_executable)"
    for path in candidates:
        asked = subprocess.run([path, "-c", look], capture_output=True, text=True, check=False)
        if asked.returncode:  # a shim of pyenv for a version that is not chosen
            continue
        major, minor, _, real = asked.stdout.split(maxsplit=3)
        version = (int(major), int(minor))
        if version >= (3, 11):
            pythons.setdefault(version, real.strip())
    return dict(sorted(pythons.items()))


def run(*command: str | Path, **options: object) -> None:
    subprocess.run(list(map(str, command)), check=True, **options)


def built_wheel(python: str) -> Path:
    """Return the wheel, built with the given Python."""
    place = PLACE / "wheel"
    shutil.rmtree(place, ignore_errors=True)
    run(python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "-w", place, ROOT)
    (wheel,) = place.glob("*.whl")
    return wheel


def environment(python: str, version: tuple[int, int], numpy: str, wheel: Path) -> Path:
    """Return the Python of an environment with this NumPy and the wheel."""
    place = PLACE / f"python{version[0]}.{version[1]}-numpy-{numpy or 'newest'}"
    if not (place / "ready").exists():
        shutil.rmtree(place, ignore_errors=True)
        run(python, "-m", "venv", place)
        wanted = f"numpy=={numpy}" if numpy else "numpy"
        run(place / "bin/python", *PIP, wanted, *TOOLS)
        (place / "ready").touch()
    run(place / "bin/python", *PIP, "--no-deps", "--force-reinstall", wheel)
    return place / "bin" / "python"


def copy_of_tests() -> Path:
    """Return a folder with the tests and without the package, so that they meet the one that is installed."""
    place = PLACE / "source"
    shutil.rmtree(place, ignore_errors=True)
    for name in ("tests", "docs", "examples"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("build", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place)
    return place


def left_out(source: Path) -> list[str]:
    """Return options that leave out the files of tests that use the commands, which need click and rich."""
    files = sorted((source / "tests").rglob("test_*.py"))
    return [f"--ignore={path}" for path in files if "from untorn.cli" in path.read_text()]


def main() -> int:
    """Return 0 if all tests passed."""
    pythons = found_pythons()
    if not pythons:
        sys.exit("no CPython from 3.11 on was found; UNTORN_PYTHONS= names some")
    wheel = built_wheel(next(iter(pythons.values())))
    source = copy_of_tests()
    failed = []
    for version, python in pythons.items():
        for numpy in dict.fromkeys([OLDEST_NUMPY.get(version, ""), ""]):
            chosen = environment(python, version, numpy, wheel)
            look = "import sys, numpy; print(f'CPython {sys.version.split()[0]}, NumPy {numpy.__version__}')"
            what = subprocess.run([chosen, "-c", look], capture_output=True, text=True, check=True).stdout.strip()
            command = [
                chosen,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                *(sys.argv[1:] or TESTS),
                *left_out(source),
            ]
            done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
            last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()]
            print(f"{what}: {last[0].strip('= ')}", flush=True)
            if done.returncode:
                print(re.sub(r"^", "    ", done.stdout, flags=re.MULTILINE))
                failed.append(what)
    machine = sysconfig.get_platform()
    print(f"{len(failed)} of them failed on {machine}" if failed else f"all passed on {machine}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
