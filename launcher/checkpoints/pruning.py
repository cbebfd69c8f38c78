"""Which checkpoints of a run to remove, by hand: all but the newest, and never the newest whole one.

    step      100    200    300    400    500
    loss      2.1    0.9    1.0    1.2    broken
    --keep 1                                        400 stays: the newest whole one; 500 is told, not touched
    --keep 1 --keep-best     200           400      200 stays, too

The loss of a checkpoint is the mean of the last 50 steps before it, by metrics.jsonl, or of the last few, which its
manifest holds, where that file is not at hand: the training loss, of samples that are learned. It is no measure of what
a model can do, and says which of the checkpoints of a run that diverged is sane.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.checkpoints.checkpoint_manifest import BrokenError, Manifest, open_manifest
from launcher.checkpoints.reading import Verify
from launcher.checkpoints.storage import Storage
from launcher.core.run_folder import is_step
from parallel.parsing import ParseError, parse_json

STEPS = 50  # whose mean loss a checkpoint has
STEP = re.compile(rb'"step": ?(\d+)')
MOST_DIGITS = 12


@dataclass(frozen=True)
class Entry:
    """A checkpoint as it is listed.

    Attributes:
        name: of its folder.
        manifest: what it holds; None if that cannot be read.
        problem: what is wrong with it; None if it is whole.
        smooth: mean loss of many steps before it; None if nobody knows it.
    """

    name: str
    manifest: Manifest | None
    problem: str | None
    smooth: float | None = None

    @property
    def step(self) -> int | None:
        """Steps done."""
        return self.manifest.state.step if self.manifest else None

    @property
    def loss(self) -> float | None:
        """Mean of the last steps before it; None if nobody knows it, or it is not finite."""
        if self.smooth is not None:
            return self.smooth if math.isfinite(self.smooth) else None
        lines: Sequence[dict[str, Any]] = self.manifest.recent if self.manifest else ()
        found = [line["loss"] for line in lines if isinstance(line.get("loss"), int | float)]
        mean = sum(found) / len(found) if found else math.nan
        return mean if math.isfinite(mean) else None


def entries(storage: Storage, check: Verify, metrics: Path | None = None) -> list[Entry]:
    """Every checkpoint, oldest first.

    Args:
        storage: where they are.
        check: says what is wrong with the files of one.
        metrics: metrics.jsonl of the run, if it is at hand.
    """
    found: list[Entry] = []
    for name in storage.names():
        try:
            manifest = open_manifest(storage, name)
        except BrokenError as error:
            found.append(Entry(name, None, str(error)))
            continue
        found.append(Entry(name, manifest, check(storage, name, manifest)))
    smooth = mean_losses(metrics, [one.step for one in found if one.step]) if metrics else {}
    return [replace(one, smooth=smooth.get(one.step or 0)) for one in found]


def mean_losses(metrics: Path, steps: Sequence[int]) -> dict[int, float]:
    """The mean loss of the last STEPS steps up to each of these; other lines are not parsed, which takes most time."""
    found: dict[int, dict[int, float]] = {step: {} for step in steps}  # of a step done twice the last line counts
    if not metrics.is_file():
        return {}
    with metrics.open("rb") as lines:
        for line in lines:
            at = STEP.search(line)
            if at is None or len(at[1]) > MOST_DIGITS:
                continue
            number = int(at[1])
            after = [step for step in steps if step - STEPS < number <= step]
            loss = _loss(line, number) if after else None
            if loss is not None and math.isfinite(loss):
                for step in after:
                    found[step][number] = loss
    return {step: sum(losses.values()) / len(losses) for step, losses in found.items() if losses}


def _loss(line: bytes, number: int) -> float | None:
    """That of a step; None if the line is not that of this step, or broken by a kill."""
    try:
        fields = parse_json(line)
    except ParseError:
        return None
    if not isinstance(fields, dict) or not is_step(fields) or fields["step"] != number:
        return None
    loss = fields.get("loss")
    return None if loss is None else float(loss)


def best(there: Sequence[Entry]) -> Entry | None:
    """The whole one of the lowest loss, the newer of two; None if no loss is known."""
    whole = [one for one in there if one.problem is None and one.loss is not None]
    return min(reversed(whole), key=lambda one: one.loss or 0.0, default=None)


@dataclass(frozen=True)
class Pruning:
    """What to do.

    Attributes:
        remove: checkpoints that go.
        stay: those that stay, each with why.
    """

    remove: tuple[Entry, ...]
    stay: tuple[tuple[Entry, str], ...]

    @property
    def bytes(self) -> int:
        """Of those that go."""
        return sum(one.manifest.size for one in self.remove if one.manifest)


def pruning(there: Sequence[Entry], newest_whole: str, keep: int, keep_best: bool, every: int | None) -> Pruning:
    """What stays and what goes.

    Args:
        there: all, oldest first.
        newest_whole: the name of the newest one whose every hash is right: it stays, whatever else is asked for.
        keep: newest whole ones that stay, at least 1.
        keep_best: the best one stays, too.
        every: those of every so many steps stay (`checkpoint.keep_every`).
    """
    whole = [one.name for one in there if one.problem is None]
    newest, lowest = set(whole[-keep:]), best(there) if keep_best else None
    remove, stay = [], []
    for one in there:
        why = _why(one, newest_whole, newest, lowest, every)
        if why:
            stay.append((one, why))
        else:
            remove.append(one)
    return Pruning(tuple(remove), tuple(stay))


def _why(one: Entry, newest_whole: str, newest: set[str], lowest: Entry | None, every: int | None) -> str:
    """Why a checkpoint stays; empty if it goes."""
    if one.name == newest_whole:
        return "the newest whole one"
    if one.problem is not None:
        return f"broken, not touched: {one.problem}"
    if one.name in newest:
        return "one of the newest"
    if lowest is not None and one.name == lowest.name:
        return "the best one"
    if every and one.step is not None and one.step % every == 0:
        return f"of every {every} steps"
    return ""
