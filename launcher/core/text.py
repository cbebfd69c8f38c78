"""Figures as people read them: sizes, lengths of time, counts, and text of others in a line."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from typing import Any

from rich.markup import escape

from launcher.core.terminal import in_a_line, visible

LONGEST = 300  # characters of a reason


def number(value: Any) -> float | None:
    """A finite figure, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None  # NaN and infinity fail the comparison too


def short(value: float) -> str:
    """Three digits: 0.0123, 812, 12.3 k, 4.56 M."""
    for suffix in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 999.5:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.4g} E"


def size_text(size: float) -> str:
    """Bytes in binary units."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def duration(seconds: float) -> str:
    """0.123 s, 12.3 s, 4 min 5 s, 3 h 2 min, 2 d 3 h."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for limit, big, small, names in ((3600, 60, 1, "min s"), (86400, 3600, 60, "h min")):
        if whole < limit:
            first, second = names.split()
            return f"{whole // big} {first} {whole % big // small} {second}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: Any) -> str:
    """A UTC time from unix seconds."""
    found = number(seconds)
    try:
        return "-" if found is None else f"{datetime.fromtimestamp(found, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return "-"


def counted(count: int, noun: str) -> str:
    """1 line, 2 lines."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def printable(text: str) -> str:
    """For a terminal: no markup, no control characters, not endless."""
    return escape(in_a_line(text[:LONGEST]) + ("..." if len(text) > LONGEST else ""))


def escape_html(text: str) -> str:
    """Text of others for an HTML page: it is no HTML, turns no direction of writing, and has no control characters."""
    return html.escape(visible(text))
