"""`Console`: the one place where text becomes what a terminal shows.

    a name, a caption, an error of another library, a line of a record  --visible-->  signs that no terminal obeys

A file may be called "\\x1b]0;..." or a caption hold "\\x1b[2J": bytes that a terminal obeys. They come in by many ways
(names, tar headers, events, metrics, logs of jobs), so they are caught where everything goes out: control characters,
marks that turn the direction of writing, and bytes that are not UTF-8 are written as escapes, as Python's repr does.
Rich's own control codes are segments of another kind and pass. The price is one regular expression a segment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment
from rich.text import Text

from parallel.shell import OBEYED


class Console(RichConsole):
    """As Rich's; no text that is printed, nor a cell of a table, can command the terminal.

    Args:
        options: as of Rich's; without its `emoji`, since a path that holds ":bug:" is shown as it is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is printed."""
        for segment in super().render(renderable, options):
            if segment.control is None and OBEYED.search(segment.text):
                yield Segment(visible(segment.text), segment.style)
            else:
                yield segment

    def render_str(self, text: str, **options: object) -> Text:
        """A string, by its markup; as it is, where that is none, such as a path with brackets."""
        text = visible(text)  # now, so that a table has room for it
        try:
            return super().render_str(text, **options)  # type: ignore[arg-type]
        except MarkupError:
            return super().render_str(text, **{**options, "markup": False})  # type: ignore[arg-type]


def visible(text: str) -> str:
    """Text of others for a terminal: several lines, but nothing that a terminal obeys."""
    return OBEYED.sub(_escaped, text.replace("\r\n", "\n"))


def in_a_line(text: str) -> str:
    """The same in one line: a name with a line feed in it cannot pass for a line of ours."""
    return visible(text).replace("\n", r"\n").replace("\t", r"\t")


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")
