"""What `longreel data import` says at its end: what came in, what was kept, and why the rest was not."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.dataset.shards import QUARANTINE
from data.prepare.import_webdataset import ImportSummary
from launcher.config.proposed_commands import setting
from launcher.core.text import duration, size_text
from launcher.tables.check_tables import plain
from parallel import shell

LISTED = 20  # rejections that are told one by one
IGNORED = 12  # suffixes that are named


def print_summary(console: Console, summary: ImportSummary, out: Path) -> None:
    """The closing tables."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    linked = f"{summary.shards - summary.copied:,} linked, {summary.copied:,} copied" if summary.shards else ""
    rate = f"{size_text(summary.bytes / summary.seconds)}/s" if summary.seconds else ""
    rows = [
        ("tars found", summary.tars, f"{summary.skipped:,} there already" if summary.skipped else ""),
        ("shards", summary.shards, linked),
        ("videos", summary.videos, f"{summary.frames - summary.images:,} frames"),
        ("images", summary.images, ""),
        ("text alone", summary.texts, ""),
        ("rejected", len(summary.rejected), ""),
    ]
    for name, count, more in rows:
        table.add_row(name, f"{count:,}", more)
    table.add_row("read", size_text(summary.bytes), f"in {duration(summary.seconds)}, {rate}")
    console.print(table)
    for tar, note in summary.notes:
        _say(console, f"{plain(tar)}: {plain(note)}")
    if summary.ignored:
        named = [f"{times:,} {plain(suffix)}" for suffix, times in summary.ignored.most_common(IGNORED)]
        more = f", and {len(summary.ignored) - IGNORED} other kinds" if len(summary.ignored) > IGNORED else ""
        _say(console, f"parts without a use, passed over: {', '.join(named)}{more}")
    if summary.rejected:
        console.print(_rejected(summary.rejected))
        _say(console, f"all with their reasons: {plain(str(out / QUARANTINE))}/")
    _say(console, plain(str(out)))
    show, key = shell.join(["longreel", "data", "show", str(out)]), setting("data.dataset", str(out))
    _say(console, plain(f"next: {show}   longreel train recipes/quickstart.yaml {key}"))


def as_json(summary: ImportSummary) -> str:
    """For a script."""
    return json.dumps({**asdict(summary), "kept": summary.kept})


def _rejected(rejected: list[tuple[str, str]]) -> Table:
    """One by one, or, if there are many, by reason with an example."""
    table = Table(title="rejected", title_justify="left")
    if len(rejected) <= LISTED:
        table.add_column("sample", overflow="fold")
        table.add_column("reason", overflow="fold")
        for file, reason in rejected:
            table.add_row(plain(file), plain(reason))
        return table
    times = Counter(reason for _, reason in rejected)
    example = {reason: file for file, reason in reversed(rejected)}
    table.add_column("reason", overflow="fold")
    table.add_column("times", justify="right")
    table.add_column("such as", overflow="fold")
    for reason, count in times.most_common(LISTED):
        table.add_row(plain(reason), f"{count:,}", plain(example[reason]))
    if len(times) > LISTED:
        table.add_row("other reasons", f"{sum(times.values()) - sum(n for _, n in times.most_common(LISTED)):,}", "")
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
