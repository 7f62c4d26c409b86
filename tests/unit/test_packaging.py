"""What a package index and a stranger's pip get: the metadata, the sdist, the ways to start the command."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 120
#: the folders that the sdist has as a whole
WHOLE = ("benchmarks", "csrc", "docs", "examples", "src", "tests")
#: what a user needs whose environment has only NumPy
WITHOUT_EXTRAS = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("click", "rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
sys.meta_path.insert(0, Missing())
sys.argv = ["untorn", "--version"]
import runpy
runpy.run_module("untorn", run_name="__main__", alter_sys=True)
"""


def built(hook: str, out: Path) -> Path:
    """Return what a hook of the build makes of a copy of this project, without its C code being compiled."""
    pytest.importorskip("setuptools", minversion="77")
    code = f"import sys, setuptools.build_meta as build; print('made', build.{hook}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert done.returncode == 0, done.stderr
    return out / re.findall(r"^made (.+)$", done.stdout, re.MULTILINE)[-1]


def test_the_metadata_is_what_an_index_expects(tmp_path):
    folder = built("prepare_metadata_for_build_wheel", tmp_path)
    metadata = email.message_from_string((folder / "METADATA").read_text())
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert not [each for each in metadata.get_all("Classifier") if each.startswith("License ::")]
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL")} >= {"Source", "Documentation", "Issues"}
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = metadata.get_payload()
    links = re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", readme, flags=re.M | re.S))
    )
    assert len(links) > 10
    assert not [link for link in links if not re.match(r"https://|#", link)]


def test_the_repository_has_one_address():
    """It is the one of pyproject.toml; a file of another format can only repeat it."""
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    names = [*ROOT.glob("*.*"), *(ROOT / ".github").rglob("*.*"), *(ROOT / "docs").rglob("*.*")]
    names += [*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.*")]
    repeat = {}
    for path in (path for path in names if path.is_file() and path.suffix not in (".png", ".so", ".gif")):
        links = re.findall(r"https://github\.com/[\w-]+/untorn\b", path.read_text(errors="replace"))
        if links:
            repeat[path.relative_to(ROOT).as_posix()] = set(links)
    assert repeat.keys() == {"pyproject.toml", "CITATION.cff", ".github/ISSUE_TEMPLATE/config.yml"}
    assert set().union(*repeat.values()) == {source}


def test_the_sdist_has_the_sources_the_tests_and_the_documents(tmp_path):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("this is no checkout, so nothing says which files there should be")
    with tarfile.open(built("build_sdist", tmp_path)) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [name for name in tracked.stdout.split() if name.startswith(WHOLE) or "/" not in name]
    assert not [name for name in wanted if name not in packed and (ROOT / name).exists()]
    assert not [name for name in packed if name.endswith((".so", ".pyc", ".o"))]


def test_the_module_is_the_command():
    pytest.importorskip("click")
    for module in ("untorn", "untorn.cli"):
        command = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S, check=True)
        assert re.fullmatch(r"untorn \d+\.\d+\.\d+\n", done.stdout)


def test_the_command_without_its_libraries_says_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, timeout=WATCHDOG_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: the command line needs click, which is not installed: pip install 'untorn[cli]'\n"
