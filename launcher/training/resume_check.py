"""A resume that proves itself: steps that were done before the stop and are done again must give the same numbers.

The lines of metrics.jsonl after the checkpoint are what the run gave before, each with digests of what made it
(`launcher.training.number_digests`). A comparison counts against the checkpoint only if both lines were made with the
same:

    numbers  rounding        compared                    another number means
    same     same            bit by bit                  the checkpoint, or this machine, is not to be trusted
    same     another         to the tolerance of dtype   that rounding was another: it is told
    another                  not at all                  nothing: why is told
    update   another         this step, and none after   as above

What a step gives depends on those before it: once one since the checkpoint was made with other rounding, or has no
line, all later ones are compared to the tolerance at most. Samples depend on `numbers` alone: rounding excuses none.

A machine that does not repeat itself bit by bit (a GPU, unless torch is told to be deterministic) is compared to the
tolerance in the first case, too. What cannot be compared is said to be so, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.checkpoints.reading import DISTRUSTED
from launcher.core.run_folder import RunFolder, events_of
from parallel.errors import InputError

STEPS = 3  # that are compared
NEAR = {"float64": 1e-9, "float32": 1e-5, "bf16": 5e-2}  # relative, with other rounding or on a GPU
NEAR_TF32 = 1e-3  # of float32 on a GPU, whose products have 10 bits of each factor: other sums round them otherwise
COMPARED = ("loss", "grad_norm")
AGAIN = "again"  # in a line: what a checkpoint gave that is distrusted since then
UNKNOWN = "an older version wrote down its numbers, and not what they were made with"
LAWS = "another version wrote down what its numbers were made with, and in another way"
COURSE = "metrics.jsonl is of another course of the run than this checkpoint: in it step {} is another"


class DiffersError(RuntimeError):
    """A step done again gave other numbers, though it was made with the same."""


@dataclass(frozen=True)
class Verdict:
    """What the comparison found.

    Attributes:
        steps: that were compared.
        identical: how many of them bit by bit.
        near: how many of them within the tolerance.
        difference: of the first that was neither, though made with the same: what was compared is not to be trusted.
        reason: why no more steps were compared, or not bit by bit; empty if all were.
    """

    steps: tuple[int, ...]
    identical: int
    near: int
    difference: str | None = None
    reason: str = ""


class ResumeCheck:
    """Compares the first steps after a resume.

    Args:
        checkpoint: the name of the one that the run went on from.
        exact: whether this machine repeats itself bit by bit.
        dtype: of the run, or of its masters where those are coarser.
        tf32: whether products have 10 bits of each factor.
        changed: what is known to have changed since the checkpoint, one sentence each, for reasons.
        recent: the last steps before the checkpoint, as it tells them itself.
    """

    def __init__(
        self,
        checkpoint: str,
        exact: bool,
        dtype: str,
        tf32: bool = False,
        changed: Sequence[str] = (),
        recent: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.checkpoint, self.exact, self.changed = checkpoint, exact, "; ".join(changed)
        self.near = NEAR_TF32 if tf32 else NEAR[dtype]
        self.before: dict[int, dict[str, Any]] = {}
        self.steps: list[int] = []
        self.identical = self.close = 0
        self.reason = ""
        self.alike = True  # so far
        self.recent, self.forked = recent, 0

    def expect(self, before: Sequence[dict[str, Any]], kept: Sequence[dict[str, Any]] = ()) -> None:
        """What was done before.

        Args:
            before: the lines of metrics.jsonl after the checkpoint, of which the first are compared.
            kept: those before it. Where a run fell back and went on, then found a later checkpoint whole again, or was
                given one of another run, they are not the steps that the checkpoint came of; nor are those after it.
        """
        self.before = {line["step"]: line for line in before[:STEPS]}
        of_step = {line["step"]: line for line in kept}
        odd = (told["step"] for told in self.recent if not _is_told(of_step.get(told["step"], told), told))
        self.forked = next(odd, 0)

    def see(self, line: dict[str, Any]) -> Verdict | None:
        """A step done again; gives the verdict once it stands."""
        was = self.before.pop(line["step"], None)
        if was is None:
            self.alike = False  # how it was made is not known: of use where others follow
            return None
        if self.forked:
            return self._end("", said=COURSE.format(self.forked))
        odd = not _alike(was, line) and _alike(again := was | was.get(AGAIN, {}), line)
        if odd:
            was = again  # then it was the record that was odd
        old, new = _made(was), _made(line)
        laws = bool(old) and old.get("law") != new.get("law")
        if laws and (old["numbers"], old["update"]) != (new["numbers"], new["update"]):
            old = {}  # nobody knows whether that is more than another way to say the same
        if old and old["numbers"] != new["numbers"]:
            return self._end(f"step {line['step']} was made with other settings than now")
        rounding = bool(old) and old["rounding"] == new["rounding"]
        follows, self.alike = not self.alike, self.alike and rounding
        same, others = _alike(was, line), was.get("samples") != line["samples"]
        near = not others and all(
            _same(was.get(key), line[key]) or _near(was.get(key), line[key], self.near) for key in COMPARED
        )
        if not (same or near or self.alike or (old and others)):
            why = "was made with other rounding" if old else f"was made by an{'other' if laws else ' older'} version"
            if rounding and follows:
                why = "came after steps that were made with other rounding"
            return self._end(f"step {line['step']} {why}, and differs: {_difference(was, line)}")
        self.steps.append(line["step"])
        self.identical += same
        self.close += near
        if not (same or (near and not (self.exact and self.alike))):
            return self._end("", _difference(was, line))
        if not old:
            return self._end("", said=LAWS if laws else UNKNOWN)
        if not self.alike:
            self.reason = self.changed or "rounding was another: threads, versions or kernels"
        if self.before and odd:
            return self._end(f"step {line['step']} gave two numbers before, and those after it came of the other")
        if self.before and (old["update"] != new["update"] or was.get("updated", True) != line.get("updated", True)):
            return self._end(f"the update of step {line['step']} was another")
        return None if self.before else self._end("")

    def _end(self, reason: str, difference: str | None = None, said: str = "") -> Verdict:
        """No more is compared."""
        self.before = {}
        told = said or (f"{reason} ({self.changed})" if reason and self.changed else reason) or self.reason
        return Verdict(tuple(self.steps), self.identical, self.close, difference, told)


def distrusted(folder: RunFolder) -> dict[str, str]:
    """Checkpoints from which a step was done again with other numbers, and which; those saved anew are trusted again.

    A checkpoint that was saved since then was made by a person who went on all the same: what its steps are compared
    with was made after it, so nothing is held against it.

    Raises:
        InputError: that happened with two in a row: it is not the checkpoint that changed.
    """
    found: dict[str, str] = {}
    for event in events_of(folder):
        if event["event"] == "differs":
            found[str(event.get("checkpoint"))] = f"{DISTRUSTED}{event.get('difference')}"
        elif event["event"] in ("verified", "checkpoint"):
            found = {}
    if len(found) > 1:
        raise InputError(
            "a resumed run gives the numbers that it gave before",
            "; ".join(f"{name}: {reason}" for name, reason in sorted(found.items())),
            "settings, versions and threads are the same, so this machine does not repeat itself: longreel doctor; "
            "restart.verify=false goes on with other numbers",
        )
    return found


def _made(line: Mapping[str, Any]) -> dict[str, str]:
    """Empty if the line does not tell."""
    found = line.get("made")
    return dict(found) if isinstance(found, Mapping) and {"numbers", "rounding", "update"} <= found.keys() else {}


def _same(one: Any, other: Any) -> bool:
    """Equal, or both not a number."""
    return bool(one == other or (one != one and other != other))


def _alike(was: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    return all(_same(was.get(key), line[key]) for key in (*COMPARED, "samples"))


def _is_told(line: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether a checkpoint tells of this line, as far as it tells, and of what was made of its gradient."""
    alike = all(_same(line.get(key), told.get(key)) for key in (*COMPARED, "samples"))
    one, other = _made(line), _made(told)
    return alike and (not one or not other or one["update"] == other["update"] or one.get("law") != other.get("law"))


def _near(one: Any, other: float, tolerance: float) -> bool:
    return isinstance(one, int | float) and math.isclose(one, other, rel_tol=tolerance)


def _difference(was: dict[str, Any], now: dict[str, Any]) -> str:
    if was.get("samples") != now["samples"]:
        return f"step {now['step']} had other samples"
    told = ", ".join(
        f"{key} {was.get(key)!r}, now {now[key]!r}" for key in COMPARED if not _same(was.get(key), now[key])
    )
    return f"step {now['step']}: {told}"
