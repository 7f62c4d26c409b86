"""The rules that the C sources keep by themselves: see CONTRIBUTING.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*.[ch]"))


def code_of(path: Path) -> str:
    """The text of a source with its comments and string literals left out, line breaks kept."""
    pattern = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', re.DOTALL)
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), path.read_text())


def test_shared_words_are_touched_through_atomics_only() -> None:
    # whole words: __volatile__ belongs to inline assembly, and _Atomic to the types of atomics.h
    direct = re.compile(r"\b(volatile|__atomic_\w+|__sync_\w+|atomic_\w+|memory_order_\w+|_Atomic)\b")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in SOURCES
        if path.name != "atomics.h"
        for number, line in enumerate(code_of(path).splitlines(), 1)
        if direct.search(line)
    ]
    assert not found


#: the board's files, each above those before it
BOARD = ("board_layout", "board_tasks", "board_update", "board", "module_board")


def test_files_of_the_board_include_those_below_them_only() -> None:
    for height, name in enumerate(BOARD):
        for path in SOURCES:
            if path.stem == name:
                included = re.findall(r'#include "(\w+)\.h"', path.read_text())
                above = set(included) & set(BOARD[height + 1 :])
                assert not above, f"{path.name} includes {above}"


def test_comments_keep_the_line_length() -> None:
    # clang-format keeps it for code, and leaves comments alone
    tests = [path for folder in ("c", "fuzz", "virtual_nodes") for path in (ROOT / "tests" / folder).glob("*.[ch]")]
    lines = (
        (path.name, number, line)
        for path in [*SOURCES, *tests]
        for number, line in enumerate(path.read_text().split("\n"), 1)
    )
    assert [(name, number) for name, number, line in lines if len(line) > 120] == []
