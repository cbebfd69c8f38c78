"""What `longreel data chat` reads and tells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from data.chat.chat_builder import ChatBuildSummary
from data.chat.chat_index import LEFT_OUT
from data.chat.records import captions_of, records_of
from data.dataset.index import Index
from launcher.config.proposed_commands import setting

LEFT_OUT_SHOWN = 8


def records(files: Sequence[Path], captions: Path | None) -> tuple[Iterator[tuple[str, Any]], int]:
    """All records, and how many there are.

    Args:
        files: of conversations.
        captions: a dataset whose captions are conversations too.

    Raises:
        InputError: a file is no JSON.
    """
    found = [one for file in files for one in records_of(file)]
    found += list(captions_of(Index.open(captions))) if captions else []
    return iter(found), len(found)


def table_of(told: ChatBuildSummary, out: Path) -> list[Table | str]:
    """For a person."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in (
        ("conversations", told.kept),
        ("tokens of words", told.tokens),
        ("of them answers", told.answers),
        ("videos and images", told.visuals),
        ("left out", len(told.left_out)),
    ):
        table.add_row(name, f"{count:,}")
    found: list[Table | str] = [table]
    if told.left_out:
        found.append(f"{len(told.left_out):,} of {told.kept + len(told.left_out):,} records cannot be used:")
    found += [f"left out: {where}: {reason}" for where, reason in told.left_out[:LEFT_OUT_SHOWN]]
    if len(told.left_out) > LEFT_OUT_SHOWN:
        found.append(f"and {len(told.left_out) - LEFT_OUT_SHOWN:,} more: {out / LEFT_OUT}")
    return [*found, "next: longreel train RUN.yaml " + setting("data.dataset", str(out))]


def as_json(told: ChatBuildSummary) -> str:
    """For a script."""
    return json.dumps(asdict(told))
