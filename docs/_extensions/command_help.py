"""The directive ``command-help``: what every `untorn COMMAND --help` prints, from the commands themselves."""

from __future__ import annotations

from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from untorn.cli.group import COMMANDS

_COLUMNS = 80


class CommandHelp(SphinxDirective):
    """A section for each command, with its help as it is printed."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for command in COMMANDS:
            name = f"untorn {command.name}"
            section = nodes.section(ids=[nodes.make_id(name)])
            section += nodes.title(text=name)
            context = click.Context(command, info_name=name, terminal_width=_COLUMNS, max_content_width=_COLUMNS)
            text = command.get_help(context)
            section += nodes.literal_block(text, text, language="none")
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-help", CommandHelp)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
