"""README's examples run as they stand, and every file that the documents link to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from untorn.share.layout import Layout
from untorn.share.specs import flatten

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
WATCHDOG_S = 120  # turns a hang into a failure; claims nothing about speed

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    return [block for language, block in _FENCE.findall(text) if language == "python"]


def prose(text: str) -> str:
    """The text without its code, where brackets mean other things."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def anchor(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def leads_somewhere(document: Path, target: str) -> bool:
    path, _, fragment = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not fragment or fragment in map(anchor, _HEADING.findall(file.read_text()))


BLOCKS = python_blocks(README.read_text())
PAGES_WITH_PROGRAMS = ("index.md", "concepts.md", "migrations.md", "recipes.md")
GUIDE = sorted(
    path
    for path in [*ROOT.glob("docs/guide/*.md"), *(ROOT / "docs" / name for name in PAGES_WITH_PROGRAMS)]
    if python_blocks(path.read_text())
)


def expected_output(block: str) -> list[str]:
    """Return the output that a block documents: the comment behind each print, up to a colon and an explanation."""
    said = re.findall(r"print\(.*\)\s+# (.+)$", block, re.MULTILINE)
    return [re.sub(r": a .*", "", comment).strip() for comment in said]


def test_readme_shows_both_layers():
    assert len(BLOCKS) == 2
    assert "untorn.publish" in BLOCKS[0]
    assert "Trainer" in BLOCKS[1]


@pytest.mark.parametrize("block", BLOCKS, ids=["share", "train"])
def test_examples_of_readme_print_what_it_says(block, tmp_path):
    check_that_it_prints_what_it_says(block, tmp_path)


@pytest.mark.parametrize("page", GUIDE, ids=lambda path: path.stem)
def test_examples_of_the_guide_print_what_they_say(page, tmp_path):
    for block in python_blocks(page.read_text()):
        check_that_it_prints_what_it_says(block, tmp_path)


def check_that_it_prints_what_it_says(block, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(block)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert expected_output(block), "an example shows what it prints"
    assert done.stdout.splitlines() == expected_output(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    lost = []
    for target in _LINK.findall(prose(document.read_text())):
        if not re.match(r"[a-z]+:", target) and not leads_somewhere(document, target):
            lost.append(target)
    assert not lost, f"{document.relative_to(ROOT)} links to what is not there: {lost}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_a_document_names_exists(document):
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", document.read_text())
    for file, function in named:
        assert (ROOT / file).is_file(), file
        if function:
            assert f"def {function}(" in (ROOT / file).read_text(), f"{file}::{function}"


def test_every_file_in_the_table_of_contributing_exists():
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
    assert not [name for row in rows for name in missing_files(re.findall(r"`([\w*./]+)`", row), [ROOT])]


def test_every_file_in_the_picture_of_the_architecture_exists():
    texts = re.findall(r'class="file">([^<(]+)</text>', (ROOT / "docs" / "architecture.svg").read_text())
    folders = [ROOT / "src" / "untorn", ROOT / "src" / "untorn" / "train", ROOT]
    paths = [text.split(", ") for text in texts if re.search(r"[./]", text)]
    assert len(paths) > 10
    assert not [name for row in paths for name in missing_files(row, folders)]


def missing_files(names: list[str], folders: list[Path]) -> list[str]:
    """Return the names of no file; a name without a folder is beside the file that was named before it."""
    missing, beside = [], None
    for name in names:
        if not re.search(r"[./]", name):
            continue
        here = [beside, *folders] if beside else folders
        found = [path for folder in here for path in folder.glob(name.rstrip("/"))]
        missing += [] if found else [name]
        beside = found[0].parent if found else beside
    return missing


SHOWN_IN_FORMAT = [
    {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)},
    {
        "step": 7,
        "lr": 0.1,
        "ok": True,
        "z": 1j,
        "name": "net",
        "raw": b"ab",
        "none": None,
        "big": 2**70,
        "s": np.float32(1),
    },
    [
        np.zeros((2, 3), order="F"),
        np.zeros(3, [("a", "<i4"), ("b", "<f8", (2,))]),
        np.zeros((0, 2)),
        np.array(3.0),
        np.zeros(2, "M8[ms]"),
    ],
]


@pytest.mark.parametrize("value", SHOWN_IN_FORMAT, ids=["parameters", "scalars", "arrays"])
def test_the_schemas_that_format_shows_are_real(value):
    shown = "".join((ROOT / "docs" / "format.md").read_text().split())
    assert Layout(flatten(value)[0]).schema.decode() in shown
