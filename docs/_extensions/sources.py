"""Make pages of a site from documents that a code host shows, too.

- A link out of docs/ to a file of the sources leads to a page of the site that shows the file; a link to a folder, to a
  list of its files. So no link within the project needs a network.
- README.md of a folder gets a hidden table of contents: the pages of that folder, in the order in which it links to
  them, then the others.
- Documents beside docs/ are pages, too: DOCUMENTS.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from markdown_it import MarkdownIt
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: pages with the text of a document beside docs/
DOCUMENTS = {
    "changelog": "CHANGELOG.md",
    "conduct": "CODE_OF_CONDUCT.md",
    "contributing": "CONTRIBUTING.md",
}
#: the files of a folder that its page lists
_SHOWN = {".py", ".pyi", ".c", ".h", ".md", ".txt", ".toml"}
#: the languages of the files in examples/, by suffix
_LANGUAGES = {".py": "python", ".service": "ini", ".yaml": "yaml", "": "docker"}
_PLAIN_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ margin: 1rem auto; max-width: 66rem; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif }}
pre {{ font: 0.85rem/1.45 ui-monospace, monospace; overflow-x: auto; counter-reset: line }}
pre span {{ counter-increment: line }}
pre span::before {{ content: counter(line); display: inline-block; width: 2.5rem; margin-right: 1rem }}
pre span::before {{ text-align: right; opacity: 0.5 }}
</style>
<p><a href="{home}/index.html">untorn</a> / {title}</p>
{body}
</html>
"""

_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)(\[[^\]]*\])\(([^)\s]+)\)")


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change a document into a page, before it is parsed."""
    path = Path(app.env.doc2path(docname))
    text, folder = source[0], path.parent
    if docname in DOCUMENTS:
        outside = ROOT / DOCUMENTS[docname]
        text, folder = outside.read_text(), ROOT
        app.env.note_dependency(str(outside))
    parts = _FENCE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = _LINK.sub(lambda link: f"{link[1]}({site_target(link[2], folder, docname)})", parts[i])
    if path.name == "README.md":
        parts.append(contents(path))
    source[0] = "".join(parts)


def site_target(target: str, folder: Path, docname: str) -> str:
    """Return the target that a link of a document in ``folder`` has on the page ``docname``."""
    path, _, fragment = target.partition("#")
    file = (folder / path).resolve()
    if not path or re.match(r"[a-z]+:", target) or not file.exists():
        return target  # MyST warns of what does not exist
    if file.is_relative_to(DOCS):
        inside = file / "README.md" if file.is_dir() else file
        return to_page(inside.relative_to(DOCS).as_posix(), docname, fragment)
    place = file.relative_to(ROOT).as_posix()
    pages = {document: f"{name}.md" for name, document in DOCUMENTS.items()} | {"README.md": "index.md"}
    return to_page(pages[place], docname, fragment) if place in pages else f"source:{place}"


def to_page(page: str, docname: str, fragment: str) -> str:
    relative = posixpath.relpath(page, posixpath.dirname(docname) or ".")
    return f"{relative}#{fragment}" if fragment else relative


def contents(readme: Path) -> str:
    """Return a hidden table of contents for the page of a folder."""
    linked = [name for _, name in _LINK.findall(readme.read_text()) if re.fullmatch(r"[\w-]+\.md", name)]
    others = sorted(path.name for path in readme.parent.glob("*.md") if path != readme)
    names = "\n".join(dict.fromkeys([*linked, *others]))
    return f"\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Lead links to sources to their pages, and remember which are needed."""
    for link in doctree.findall(nodes.reference):
        if link.get("refuri", "").startswith("source:"):
            place = link["refuri"].removeprefix("source:")
            needed(app.env).setdefault(docname, set()).add(place)
            link["refuri"] = app.builder.get_relative_uri(docname, page_of(place))
            link["internal"] = True


def page_of(place: str) -> str:
    return f"source/{place}"


def needed(env: BuildEnvironment) -> dict[str, set[str]]:
    """The sources that each page links to."""
    if not hasattr(env, "untorn_sources"):
        env.untorn_sources = {}
    found: dict[str, set[str]] = env.untorn_sources
    return found


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    needed(env).pop(docname, None)


def all_needed(env: BuildEnvironment) -> list[str]:
    """The sources that any page links to, and the files in the folders among them."""
    places = set().union(*needed(env).values())
    for folder in [place for place in places if (ROOT / place).is_dir()]:
        places.update(f"{folder}/{path.name}" for path in files_in(ROOT / folder))
    return sorted(places)


def program_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Make the pages of the programs in examples/, which look like the other pages."""
    for place in all_needed(app.env):
        if place.startswith("examples/"):
            text, suffix = (ROOT / place).read_text(), Path(place).suffix
            cells = notebook_cells(text) if suffix == ".ipynb" else [(_LANGUAGES[suffix], text)]
            highlight = app.builder.highlighter.highlight_block  # type: ignore[attr-defined]
            body = "".join(highlight(source, language) if language else source for language, source in cells)
            title = "" if suffix == ".ipynb" else f"<h1>{escape(place)}</h1>"
            yield page_of(place), {"title": place, "body": title + body}, "page.html"


def notebook_cells(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the source of a notebook's cells of code, and ("", HTML) of the other ones."""
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield from [("python", source), ("", "<p></p>")]  # so that there is a gap between two cells
        else:
            yield "", MarkdownIt().render(source)


def plain_pages(app: Sphinx, exception: Exception | None) -> None:
    """Write the pages of all other sources: a whole page of the theme for each would take longer than all else."""
    if exception or app.builder.format != "html":
        return
    for place in all_needed(app.env):
        path, page = ROOT / place, Path(app.outdir) / f"{page_of(place)}.html"
        if place.startswith("examples/"):
            continue
        if path.is_dir():
            links = [f'<li><a href="{path.name}/{file.name}.html">{file.name}</a></li>' for file in files_in(path)]
            body = f"<ul>{''.join(links)}</ul>"
        else:
            lines = escape(path.read_text(errors="replace")).splitlines()
            body = f"<pre>{''.join(f'<span></span>{line}{chr(10)}' for line in lines)}</pre>"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(
            _PLAIN_PAGE.format(title=escape(place), home="/".join([".."] * page_of(place).count("/")), body=body)
        )


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SHOWN and path.is_file())


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", prepare)
    app.connect("doctree-resolved", resolve)
    app.connect("env-purge-doc", forget)
    app.connect("html-collect-pages", program_pages)
    app.connect("build-finished", plain_pages)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
