"""A resume that proves itself: steps that were done before the stop and are done again must give the same numbers.

The lines of metrics.jsonl after the checkpoint are what the run gave before; on the same layout the first of them come
out bit by bit, on another one as near as floating point allows. What cannot be compared is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.checkpoints.reading import DISTRUSTED
from launcher.folder import RunFolder, read_lines
from parallel.errors import InputError

STEPS = 3  # that are compared
NEAR = {"float64": 1e-9, "float32": 1e-5, "bf16": 5e-2}  # relative, on another layout or a GPU
NEAR_TF32 = 1e-3  # of float32 on a GPU, whose products have 10 bits of each factor: other sums round them otherwise
COMPARED = ("loss", "grad_norm")


class DiffersError(RuntimeError):
    """A step done again gave other numbers."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        steps: that were compared.
        identical: how many of them bit by bit.
        near: how many of them within the tolerance.
        difference: of the first that was neither.
    """

    steps: tuple[int, ...]
    identical: int
    near: int
    difference: str | None = None


class Proof:
    """Compares the first steps after a resume.

    Args:
        checkpoint: the name of the one that the run went on from.
        layout: how steps are computed now (`checkpoints.manifest.layout_of`).
        exact: whether this machine repeats itself bit by bit.
        dtype: of the run.
        gpu: whether it computes on one.
    """

    def __init__(self, checkpoint: str, layout: str, exact: bool, dtype: str, gpu: bool = False) -> None:
        self.checkpoint, self.layout, self.exact = checkpoint, layout, exact
        self.near = NEAR_TF32 if gpu and dtype == "float32" else NEAR[dtype]
        self.before: dict[int, dict[str, Any]] = {}
        self.steps: list[int] = []
        self.identical = self.close = 0

    def expect(self, before: Sequence[dict[str, Any]]) -> None:
        """The lines of metrics.jsonl after the checkpoint, of which the first are compared."""
        self.before = {line["step"]: line for line in before[:STEPS]}

    def see(self, line: dict[str, Any]) -> Verdict | None:
        """A step done again; gives the verdict once it stands."""
        was = self.before.pop(line["step"], None)
        if was is None:
            return None
        self.steps.append(line["step"])
        same = all(_same(was.get(key), line[key]) for key in (*COMPARED, "samples"))
        near = was.get("samples") == line["samples"] and all(
            _same(was.get(key), line[key]) or math.isclose(was.get(key, math.nan), line[key], rel_tol=self.near)
            for key in COMPARED
        )
        self.identical += same
        self.close += near
        if not (same or (near and not (self.exact and was.get("layout") == self.layout))):
            self.before = {}
            return self._verdict(_difference(was, line))
        return None if self.before else self._verdict(None)

    def _verdict(self, difference: str | None) -> Verdict:
        return Verdict(tuple(self.steps), self.identical, self.close, difference)


def distrusted(folder: RunFolder) -> dict[str, str]:
    """Checkpoints from which a step was done again with other numbers, and which; those saved anew are trusted again.

    Raises:
        InputError: that happened with two in a row: it is not the checkpoint that changed.
    """
    found: dict[str, str] = {}
    for event in read_lines(folder.events):
        if event["event"] == "differs":
            found[event["checkpoint"]] = f"{DISTRUSTED}{event['difference']}"
        elif event["event"] == "verified":
            found = {}
        elif event["event"] == "checkpoint":
            found.pop(f"step-{event['step']:08d}", None)
    if len(found) > 1:
        raise InputError(
            "a resumed run gives the numbers that it gave before",
            "; ".join(f"{name}: {reason}" for name, reason in sorted(found.items())),
            "the software or the machine changed: bring it back, or restart.verify=false to go on with other numbers",
        )
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal, or both not a number."""
    return bool(one == other or (one != one and other != other))


def _difference(was: dict[str, Any], now: dict[str, Any]) -> str:
    if was.get("samples") != now["samples"]:
        return f"step {now['step']} had other samples"
    told = ", ".join(
        f"{key} {was.get(key)!r}, now {now[key]!r}" for key in COMPARED if not _same(was.get(key), now[key])
    )
    return f"step {now['step']}: {told}"
