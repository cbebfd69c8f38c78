"""What `longreel data check` found and did, as tables for a person, or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from data.captions.captions import LONG_CAPTION
from data.dataset.index import Index
from data.dataset.shards import QUARANTINE
from data.integrity.findings import Finding
from data.integrity.repair import Repaired
from launcher.core.terminal import visible
from launcher.core.text import duration, size_text
from parallel.errors import InputError

LISTED = 40  # findings that are told one by one


def findings_table(findings: Sequence[Finding]) -> list[RenderableType]:
    """The findings, and what can be done about each kind."""
    table = Table(title=_counted(findings), title_justify="left")
    for name in ("kind", "file and sample", "part", "found"):
        table.add_column(name, overflow="fold", no_wrap=name == "kind")
    for one in findings[:LISTED]:
        where = plain(one.file) + (f"\n{plain(one.sample)}" if one.sample else "")
        table.add_row(one.kind, where, escape(one.part.replace(",", ", ")), plain(one.what))
    lines: list[RenderableType] = [table]
    if len(findings) > LISTED:
        lines.append(f"and {len(findings) - LISTED:,} more: --json lists all")
    remedies: dict[str, list[str]] = {}
    for one in findings:
        kinds = remedies.setdefault(one.remedy, [])
        if one.kind not in kinds:
            kinds.append(one.kind)
    lines += [f"{', '.join(kinds)}: {escape(remedy)}" for remedy, kinds in remedies.items()]
    return lines


def repaired_table(dataset: Path, repaired: Repaired) -> list[RenderableType]:
    """What was done, and what is no longer in the dataset."""
    table = Table(title="repaired", title_justify="left")
    for name in ("file", "done"):
        table.add_column(name, overflow="fold")
    for file, done in repaired.done[:LISTED]:
        table.add_row(plain(file), plain(done))
    lines: list[RenderableType] = [table] if repaired.done else []
    if len(repaired.done) > LISTED:
        lines.append(f"and {len(repaired.done) - LISTED:,} more: --json lists all")
    reasons = Counter(entry["reason"] for entry in repaired.lost)
    lines += [f"left out, {reason}: {times:,}" for reason, times in reasons.most_common()]
    if repaired.lost:
        lines.append(
            escape(f"listed in {dataset / QUARANTINE}/; prepare or import their sources again to get them back")
        )
    if repaired.generation is not None:
        lines.append(f"generation {repaired.generation} is what runs that begin now train on")
    return lines


def closing_line(dataset: Path, shards: int, size: int, seconds: float, deep: bool, clean: bool) -> str:
    """How much was looked at, and whether it is whole."""
    rate = f", {size_text(size / seconds)}/s" if deep and seconds else ""
    looked = f"{shards:,} shards, {size_text(size)} in {duration(seconds)}{rate}" if deep else f"{shards:,} shards"
    if not clean:
        return f"[red]{escape(str(dataset))} is not whole[/]: {looked}"
    how = "every byte is as it was written" if deep else "sizes and structure are as written; no bytes compared"
    return f"[green]{escape(str(dataset))}: {how}[/]: {looked}"


def long_captions(dataset: Path) -> str | None:
    """What to tell of captions of which the built-in text encoder reads only a part; None if there are none."""
    try:
        index = Index.open(dataset)
    except InputError:
        return None  # what is wrong with it is told already
    sizes = np.maximum(index.caption_bytes("short"), index.caption_bytes("long"))
    longer, row = int((sizes > LONG_CAPTION).sum()), int(sizes.argmax())
    if not longer:
        return None
    read = f"training reads the first {LONG_CAPTION:,} unless model.text.max_bytes says more"
    longest = f"the longest has {int(sizes[row]):,} ({index.file(row)})"
    return f"{longer:,} samples have captions of more than {LONG_CAPTION:,} bytes, of which {read}: {longest}"


def as_json(findings: Sequence[Finding], repaired: Repaired | None, left: Sequence[Finding]) -> str:
    """For a script: what was found, what was done, what is left."""
    told: dict[str, Any] = {"findings": [asdict(one) for one in findings], "left": [asdict(one) for one in left]}
    if repaired is not None:
        done = [{"file": file, "done": what} for file, what in repaired.done]
        told["repaired"] = {"done": done, "lost": repaired.lost, "generation": repaired.generation}
    return json.dumps(told)


def plain(text: str) -> str:
    """Text for a terminal: markup has no meaning, and bytes that are not UTF-8 are shown as such."""
    return escape(visible(text))


def _counted(findings: Sequence[Finding]) -> str:
    kinds = Counter(one.kind for one in findings)
    return ", ".join(f"{times:,} {kind}" for kind, times in kinds.most_common())
