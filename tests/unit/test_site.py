"""The documentation site builds without a warning; its pages are reachable, its links lead somewhere, search works."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import untorn
import untorn.typing

pytestmark = pytest.mark.early

for module in ("sphinx", "furo", "myst_parser", "click", "rich"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'untorn[docs]'")

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 300  # turns a hang into a failure; claims nothing about speed
#: pages that Sphinx makes for itself; the theme has no link to them
UNLINKED = {"search.html", "genindex.html", "py-modindex.html"}


class Page(HTMLParser):
    """The links of a page, and the places in it that links can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "a" and named.get("href"):
            self.links.append(named["href"] or "")
        if tag in ("img", "script") and named.get("src"):
            self.links.append(named["src"] or "")
        if named.get("id"):
            self.places.add(named["id"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-n", "--keep-going", "-q", "docs"]
    done = subprocess.run(
        [*command, "-d", str(out / "doctrees"), str(out / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout + done.stderr == ""
    return out / "html"


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def target_of(page: Path, link: str) -> tuple[Path, str]:
    parts = urlsplit(link)
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page, unquote(parts.fragment)


def is_internal(link: str) -> bool:
    return not urlsplit(link).scheme


def test_every_link_within_the_site_leads_to_a_page_and_a_place(pages):
    lost = []
    for page, content in pages.items():
        for link in filter(is_internal, content.links):
            file, fragment = target_of(page, link)
            is_there = not fragment or fragment in pages[file].places if file in pages else file.is_file()
            if not is_there:
                lost.append(f"{page.name}: {link}")
    assert not lost


def test_every_document_is_reachable_in_two_clicks(site, pages):
    start = site / "index.html"
    reached = {start}
    for _ in range(2):
        links = [(page, link) for page in reached for link in filter(is_internal, pages[page].links)]
        reached |= {file for page, link in links if (file := target_of(page, link)[0]) in pages}
    documents = {page for page in pages if not page.is_relative_to(site / "source")}
    assert sorted(page.name for page in documents - reached) == sorted(
        UNLINKED & {page.name for page in documents - reached}
    )


def test_every_document_in_the_folder_is_a_page(site):
    documents = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert not [str(path) for path in documents if not (site / path.with_suffix(".html")).is_file()]


def test_every_public_name_is_in_the_reference(pages):
    documented = set().union(*(content.places for page, content in pages.items() if page.parent.name == "api"))
    names = [f"untorn.{name}" for name in untorn.__all__]
    names += [f"untorn.typing.{name}" for name in untorn.typing.__all__]
    for module in ("torch", "jax", "sklearn", "ray"):
        source = ROOT / "src" / "untorn" / module
        text = (source / "__init__.py" if source.is_dir() else source.with_suffix(".py")).read_text()
        exported = re.search(r"^__all__ = \[([^\]]*)\]", text, re.MULTILINE)
        names += [f"untorn.{module}.{name}" for name in re.findall(r'"(\w+)"', exported[1])]
    missing = [name for name in names if name not in documented]
    assert not missing, f"add a directive to a page of docs/api for {missing}"


def test_search_finds_the_words_of_the_reference(site):
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    for word in ("snapshot", "subscribe", "capacityerror", "stale"):
        assert f'"{word}' in index, word


def test_no_page_shows_the_markup_of_its_source(site):
    """A reference that was not understood stays as it was written."""
    for page in site.glob("api/*.html"):
        text = re.sub(r"<(pre|script|style).*?</\1>", "", page.read_text(), flags=re.DOTALL)
        assert not re.search(r":(class|func|meth|mod):`|&gt;&gt;&gt; ", re.sub(r"<[^>]+>", "", text)), page.name
