"""An incident of a run, and one for each cause of those that show themselves again and again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.analysis.event_timeline import count_of

State = Literal["running", "done", "stopped", "failed", "vanished"]
TRACE_LINES = 12
ANOMALIES_SHOWN = 3
STEPS_SHOWN = 6


@dataclass
class Incident:
    """Something that went wrong.

    Attributes:
        time: when, in seconds since 1970.
        cause: one of `causes.CAUSES`.
        what: happened, in a sentence.
        where: rank, process and host, as far as they are known.
        when: step and phase, as far as they are known.
        rank, host, pid, step, phase: the same for a script.
        evidence: lines.
        after: what followed.
        remedy: what to do about it.
        commands: that do so, as they are typed.
        ended: the run ended with it.
        on_purpose: the fault kit did it.
    """

    time: float
    cause: str
    what: str
    rank: int | None = None
    host: str = ""
    pid: int = 0
    step: int | None = None
    phase: str | None = None
    where: str = ""
    when: str = ""
    evidence: list[str] = field(default_factory=list)
    after: str = ""
    remedy: str = ""
    commands: list[str] = field(default_factory=list)
    ended: bool = False
    on_purpose: bool = False


def merged(incidents: Sequence[Incident]) -> list[Incident]:
    """One incident for each cause, where the cause last showed itself: what it was, how often, and at which steps."""
    same: dict[tuple[Any, ...], list[Incident]] = {}
    for number, one in enumerate(incidents):
        same.setdefault(_same(one) or (number,), []).append(one)
    return sorted((_one_of(several) for several in same.values()), key=lambda one: one.time)


def _same(one: Incident) -> tuple[Any, ...] | None:
    """What incidents of one cause have in common; None for one that stands for itself."""
    if one.cause == "anomaly":
        return ("anomaly", one.on_purpose)
    if one.cause == "data" and ("at most data.max_unreadable_samples" in one.what or "could not be read" in one.what):
        return ("data",)
    if one.cause == "full":
        return ("full", one.on_purpose)
    words = re.sub(r"\d+", "#", one.what)
    if one.cause in ("store", "exception", "memory", "input", "data"):
        return (one.cause, words, one.rank, one.on_purpose, None if "checkpoint" in words else one.step)
    return None


def _one_of(several: Sequence[Incident]) -> Incident:
    """The last of them, with what the others add."""
    last = several[-1]
    if last.cause == "anomaly":
        told = [one for one in several if one.what.startswith("step ")]
        steps = sorted({one.step for one in several if one.step is not None})
        others = [one.what for one in told if one is not last][-ANOMALIES_SHOWN:]
        last.evidence = [*others, *(told[-1].evidence if told else [])]
        last.after = last.after or (told[-1].after if told else "")
        last.when = f"{count_of(len(steps), 'step')}: {_steps(steps)}" if len(steps) > 1 else last.when
    elif last.cause == "data" and last.what.startswith("refused"):
        last.evidence = [line for one in several for line in one.evidence][:TRACE_LINES]
    elif last.cause == "full" and len(several) > 1:
        last.evidence = list(dict.fromkeys(line for one in several for line in one.evidence))[-ANOMALIES_SHOWN:]
    elif len(several) > 1:
        last.what += f" ({len(several)} times)"
    return last


def _steps(steps: Sequence[int]) -> str:
    """Some numbers of steps: 3, 4, 9 or 3, 4 ... 9."""
    shown = list(map(str, steps))
    return ", ".join(shown) if len(shown) <= STEPS_SHOWN else f"{', '.join(shown[:STEPS_SHOWN])} ... {shown[-1]}"
