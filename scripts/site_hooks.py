"""What mkdocs asks while it builds the site: the help of every command goes where a page asks for it."""

from __future__ import annotations

from typing import Any

from yolo_prune.cli.help import command_help
from yolo_prune.cli.registry import COMMANDS

PLACE = "<!-- options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what ``yolo-prune COMMAND -h`` prints under a heading for each command."""
    if PLACE not in markdown:
        return markdown
    parts = [f"## {name}\n\n```text\n{command_help(name)}\n```" for name in COMMANDS]
    return markdown.replace(PLACE, "\n\n".join(parts))
