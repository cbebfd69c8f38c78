"""What `longreel prepare` says at its end: where files and clips went, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.dataset.outcome import Rejection
from data.dataset.shards import QUARANTINE
from data.prepare.pipeline import Summary
from data.prepare.rejection_remedies import remedy_of
from launcher.config.proposed_commands import setting
from launcher.core.text import printable
from launcher.reports.funnel import rows
from parallel import shell

LISTED = 20  # rejections that are told one by one


def print_summary(console: Console, summary: Summary, out: Path, funnel: Path | None) -> None:
    """The closing tables."""
    console.print(_stages(summary))
    if summary.rejected:
        console.print(_rejected(summary.rejected))
        if len(summary.rejected) > LISTED:
            _say(console, f"all {len(summary.rejected):,} with file, rows and reason: {out / QUARANTINE}/")
    if summary.ignored:
        said = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(summary.ignored.items()))
        _say(console, f"passed over, because they are no videos or images to prepare: {said}")
    for note in summary.notes:
        console.print(printable(note), highlight=False, soft_wrap=True)
    if funnel is not None:
        _say(console, f"{funnel}  the same as a picture, of all that is in the dataset")
    _say(console, f"{out}")
    show, key = shell.join(["longreel", "data", "show", str(out)]), setting("data.dataset", str(out))
    _say(console, f"next: {show}   longreel train recipes/quickstart.yaml {key}")


def _stages(summary: Summary) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    for _ in range(3):
        table.add_column(justify="right")
    table.add_column(overflow="fold")
    for cells in _lines(summary):
        table.add_row(*cells)
    return table


def _lines(summary: Summary) -> Iterator[tuple[str, str, str, str, str]]:
    """Name, count, how many the step before it has more, which share of them, why."""
    if summary.skipped:
        yield "files found", f"{summary.files:,}", "", "", ""
        yield "done before", f"{summary.skipped:,}", "", "", "not done again"
        if not summary.tally.found:
            return
    stages, dropped = summary.tally.funnel(summary.limits)
    if summary.skipped:
        stages[0] = ("files to do", stages[0][1])
    before = stages[0][1]
    for row in rows(stages, dropped):
        lost, share = (f"-{row.lost:,}", f"{100 * row.lost / before:.1f} %") if row.lost else ("", "")
        several = len(row.reasons) > 1
        why = ", ".join(f"{count:,} {reason}" if several else reason for reason, count in row.reasons)
        yield row.name, f"{row.count:,}", lost, share, why
        before = row.count
    yield "frames", f"{summary.frames:,}", "", "", ""
    shards = "1 shard" if summary.shards == 1 else f"{summary.shards:,} shards"
    yield "megabytes", f"{summary.bytes / 1e6:,.1f}", "", "", f"in {shards}"
    rate = summary.tally.found / summary.seconds if summary.seconds else 0.0
    yield "seconds", f"{summary.seconds:,.1f}", "", "", f"{rate:,.1f} files/s"


def _rejected(rejected: list[Rejection]) -> Table:
    """One by one, or, if there are many, by kind with an example."""
    few = len(rejected) <= LISTED
    table = Table(title="rejected", title_justify="left")
    table.add_column("file" if few else "reason", overflow="fold")
    table.add_column("rows" if few else "times", justify="right")
    table.add_column("reason" if few else "such as", overflow="fold")
    table.add_column("remedy", overflow="fold")
    if few:
        for one in rejected:
            table.add_row(printable(one.file), one.rows, printable(one.reason), printable(remedy_of(one)))
        return table
    first: dict[str, Rejection] = {}
    for one in rejected:
        first.setdefault(one.kind, one)
    for kind, times in Counter(one.kind for one in rejected).most_common():
        one = first[kind]
        example = printable(f"{one.file} {one.rows}".strip() + f": {one.reason}")
        table.add_row(kind, f"{times:,}", example, printable(remedy_of(one)))
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
