"""The style sheets and scripts of our HTML pages, which lie in `page/` and are put inside of each page."""

from __future__ import annotations

from importlib.resources import files


def page_file(name: str) -> str:
    """The text of a file in `page/`."""
    return files("launcher.reports").joinpath("page", name).read_text("utf-8")
