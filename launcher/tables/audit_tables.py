"""An audit as tables for a person, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from launcher.analysis.data_audit import Audit, Epoch, Seen

SHOWN = 10  # of a long list


def found_table(found: Audit) -> list[RenderableType]:
    """The epochs, and what is wrong."""
    table = Table(title="epochs", title_justify="left")
    for name, of_text in (
        ("segment", False), ("dataset", True), ("epoch", False), ("samples", False), ("seen", False),
        ("lost", False), ("twice", False), ("", True),
    ):  # fmt: skip
        table.add_column(name, justify="left" if of_text else "right", overflow="fold")
    for (segment, dataset, *_), alike in groupby(found.epochs, _shown):
        epochs = list(alike)
        first, last, e = epochs[0].number, epochs[-1].number, epochs[0]
        counts = (f"{e.samples:,}", f"{len(e.seen):,}", f"{e.lost:,}", f"{e.again:,}")
        numbers = f"{first} to {last}" if last > first else str(first)
        table.add_row(str(segment), escape(dataset), numbers, *counts, "" if e.over else "not over")
    lines: list[RenderableType] = [table]
    lines += _some("no record of step", [str(step) for step in found.missing])
    lines += _some("step", [f"{step}: {what}" for step, what in found.different])
    bad = [f"{uid} ({times} times)" for uid, times in found.unreadable.items()]
    lines += _some("unreadable, counted as weight zero:", bad)
    lines.append(f"{found.steps:,} steps and {found.tokens:,} tokens compared; chain {found.chain}")
    told = "[green]every step saw what its plan says; nothing lost, nothing twice[/]"
    lines.append(told if found.clean else "[red]the record is not what the plan says[/]")
    return lines


def _shown(e: Epoch) -> tuple[int, str, int, int, int, int, bool]:
    """What a row says: epochs that are alike share one."""
    return e.segment, e.dataset, e.samples, len(e.seen), e.lost, e.again, e.over


def step_table(step: int, seen: Sequence[Seen]) -> Table:
    """One row a sample."""
    table = Table(title=f"step {step}: {len(seen)} samples", title_justify="left")
    for name in ("sample", "epoch", "tokens", "file", "caption", ""):
        numbers = name in ("epoch", "tokens")
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", no_wrap=name == "sample")
    for s in seen:
        table.add_row(
            escape(s.uid), str(s.epoch), f"{s.tokens:,}", escape(s.file), escape(s.caption), escape(s.unreadable)
        )
    return table


def as_json(found: Audit) -> str:
    """For a script."""
    epochs = [
        {"segment": e.segment, "dataset": e.dataset, "epoch": e.number, "samples": e.samples, "seen": len(e.seen)}
        | {"lost": e.lost, "twice": e.again, "over": e.over}
        for e in found.epochs
    ]
    rest = {"missing": found.missing, "different": found.different, "unreadable": dict(found.unreadable)}
    counts = {"clean": found.clean, "steps": found.steps, "tokens": found.tokens, "chain": found.chain}
    return json.dumps({**counts, "epochs": epochs, **rest})


def _some(noun: str, items: Sequence[str]) -> list[RenderableType]:
    more: list[RenderableType] = [f"... and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return [*(f"[red]{noun} {escape(item)}[/]" for item in items[:SHOWN]), *more]
