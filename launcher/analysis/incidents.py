"""What happened to a run, from its records alone: every incident with its cause and evidence, and what to type next.

events.jsonl   hang, stacks, failure, unsaved, unreadable, differs ...   -->   incidents, one a cause, a timeline
metrics.jsonl  when steps were done                                      -->   what an incident cost
.launcher      is somebody holding it?                                   -->   running, or ended without a word
config.yaml    its rate, its datasets                                    -->   commands with nothing left to fill in

A cause that shows itself again and again, as steps that are not finite do, is told once, with how often.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.analysis.event_timeline import Event, rounded, timeline_of
from launcher.analysis.incident import TRACE_LINES, Incident, State, merged
from launcher.analysis.next_commands import next_commands, settings_of, with_commands
from launcher.core.run_folder import RunFolder
from launcher.core.run_records import Steps, read_events, read_steps
from launcher.core.stacks import alike
from parallel.errors import InputError

SAMPLES_SHOWN = 4
CALLS = 6  # of a stack
FRESH_SECONDS = 120.0  # without a launcher, a run whose last step is not older goes on
VANISHED = (
    "the launcher itself ended without a word: it was killed (SIGKILL, or the memory killer), or its machine went down"
)
UNSAVED = {
    "full": "the disk of the checkpoints is full",
    "store": "the storage of the checkpoints did not take it",
    "died": "the rank that wrote it died",
}


@dataclass(frozen=True)
class Story:
    """A run, told.

    Attributes:
        run: its folder.
        state: how it stands; "vanished" has ended without a word.
        step, steps: done and asked for.
        attempts: how often its ranks were started.
        incidents: oldest first.
        timeline: (seconds since 1970, kind of event, what), oldest first.
        next: what to type, each with a reason.
        broken: lines of the two records that are none, and were left out.
    """

    run: Path
    state: State
    step: int
    steps: int
    attempts: int
    incidents: tuple[Incident, ...]
    timeline: tuple[tuple[float, str, str], ...]
    next: tuple[tuple[str, str], ...]
    broken: int = 0


def why(run: Path) -> Story:
    """Read the records of a run.

    Raises:
        InputError: the folder holds no run.
    """
    folder = RunFolder(run)
    events, broken = read_events(folder.events)
    if not events:
        what = f"{run} has no events" if run.is_dir() else f"{run} is no folder"
        raise InputError("longreel why takes the folder of a run that was started", what, "give the `out` of a run")
    steps, settings = read_steps(folder.metrics), settings_of(folder)
    asked = next((e["steps"] for e in reversed(events) if e["event"] == "start" and type(e.get("steps")) is int), 0)
    state = _state(events, steps, is_held(run), time.time())
    found = list(incidents_of(events, steps))
    if state == "vanished":
        found.append(_vanished(events, steps))
    incidents = [with_commands(one, run, settings, steps) for one in merged(found)]
    if incidents and state in ("failed", "vanished"):
        incidents[-1].ended = True
    attempts = sum(event["event"] == "ranks" for event in events)
    saved = any(event["event"] == "checkpoint" for event in events)
    told = tuple(next_commands(run, state, saved, asked, incidents))
    timeline = tuple(timeline_of(events))
    return Story(run, state, steps.done, asked, attempts, tuple(incidents), timeline, told, broken + steps.broken)


def is_held(run: Path) -> bool:
    """Whether a launcher has the run in hand."""
    try:
        with open(run / ".launcher") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def incidents_of(events: Sequence[Event], steps: Steps) -> Iterator[Incident]:
    """What went wrong, oldest first; an event that lacks what it should tell is left to the timeline."""
    for number, event in enumerate(events):
        name = event["event"]
        try:
            if name == "failure":
                yield _failure(event, events[:number], events[number + 1 :], steps)
            elif name in ("unsaved", "unreadable") and not _repeats(name, events, number):
                yield (_unsaved if name == "unsaved" else _unreadable)(event, events[number + 1 :])
            elif name in OTHERS:
                yield OTHERS[name](event)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _state(events: Sequence[Event], steps: Steps, held: bool, now: float) -> State:
    if held:
        return "running"
    names = [event["event"] for event in events]
    since = len(names) - 1 - names[::-1].index("start") if "start" in names else 0
    last = [name for name in names[since:] if name in ("done", "stop", "failure", "restart")]
    ends: dict[str, State] = {"done": "done", "stop": "stopped", "failure": "failed"}
    if last and last[-1] in ends:
        return ends[last[-1]]
    watched = "ranks" in names[since:] or any("samples" in e for e in events[since:] if e["event"] == "start")
    fresh = now - steps.last.get("time", 0.0) < FRESH_SECONDS
    return "running" if fresh and not watched else "vanished"  # torchrun's ranks have no launcher of ours


def _failure(event: Event, before: Sequence[Event], after: Sequence[Event], steps: Steps) -> Incident:
    rank = event.get("rank")
    found = Incident(
        event.get("time", 0.0),
        event.get("cause", "exception"),
        event.get("words") or f"{event.get('how', 'failed')}: {event.get('reason', 'no word')}",
        rank if rank is not None and rank >= 0 else None,
        event.get("host", ""), event.get("pid", 0), event.get("step"), event.get("phase"),
        remedy=str(event.get("remedy", "")), commands=list(map(str, event.get("commands") or ())),
    )  # fmt: skip
    _place(found)
    found.evidence = list(_evidence(event, before))
    found.after = _recovery(event, after, steps)
    injected = [e for e in before if e["event"] == "fault" and found.time - e.get("time", 0.0) < 3600]
    since = next((e.get("time", 0.0) for e in reversed(before) if e["event"] == "ranks"), 0.0)
    found.on_purpose = any(e.get("time", 0.0) >= since for e in injected)
    return found


def _place(found: Incident) -> None:
    """Say where and when in words."""
    if found.rank is not None:
        process = f", process {found.pid}" if found.pid else ""
        found.where = f"rank {found.rank}{process}{f' on {found.host}' if found.host else ''}"
    if found.step is not None:
        found.when = f"{found.phase} of step {found.step}" if found.phase else f"step {found.step}"


def _evidence(event: Event, before: Sequence[Event]) -> Iterator[str]:
    if event.get("how") == "hung":
        texts: dict[int, str] = {}
        for earlier in reversed(before):
            if earlier["event"] == "stacks":
                texts[earlier["rank"]] = earlier["text"]
            elif earlier["event"] == "hang":
                yield f"its machine says of its process: {earlier.get('state', 'nothing')}"
                break
        for calls, ranks in alike(texts, CALLS).items():
            yield f"stack of rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}:"
            yield from (f"    {line}" for line in calls.splitlines())
        return
    if event.get("cause", "exception") != "exception":
        return  # its words say all that a traceback would
    lines = str(event.get("trace") or event.get("reason") or "").rstrip().splitlines()
    if len(lines) > TRACE_LINES:
        yield f"... {len(lines) - TRACE_LINES} lines more in events.jsonl"
    yield from lines[-TRACE_LINES:]


def _recovery(event: Event, after: Sequence[Event], steps: Steps) -> str:
    """What followed a failure, and what it cost."""
    begun = event.get("time", 0.0)
    until = next((e.get("time", 0.0) for e in after if e["event"] == "failure"), float("inf"))
    mine = [e for e in after if e.get("time", 0.0) <= until]
    if not any(e["event"] in ("restart", "ranks") for e in mine):
        return ""
    resumed = next((e for e in mine if e["event"] == "resume"), None)
    mesh = next((e for e in mine if e["event"] == "mesh"), None)
    times = steps.column("time")
    times = times[(times > begun) & (times < until)]
    next_step = float(times.min()) if len(times) else None
    if next_step is None and resumed is None:
        return "restarted, and failed again before it was resumed" if until < float("inf") else "restarted"
    told = f"resumed from step {resumed['step']}" if resumed is not None else "started again from the first step"
    if next_step is not None:
        told += f", {next_step - begun:.1f} s later at the next step"
    again = max(0, event.get("step", 0) - 1 - (resumed["step"] if resumed is not None else 0))
    if again:
        told += f"; {again} step{'s' if again > 1 else ''} done again"
    return told + (f"; mesh {mesh['from']} -> {mesh['to']}: {mesh['reason']}" if mesh is not None else "")


def _repeats(name: str, events: Sequence[Event], number: int) -> bool:
    """Whether the same trouble was told since training began or was saved again."""
    for place in range(number - 1, -1, -1):
        if events[place]["event"] == name:
            return True
        if events[place]["event"] in ("ranks", "checkpoint"):
            return False
    return False


def _unsaved(event: Event, after: Sequence[Event]) -> Incident:
    kind = event.get("cause", "store")
    found = Incident(
        event.get("time", 0.0), kind if kind in ("full", "store") else "killed",
        f"a checkpoint was not saved: {UNSAVED.get(kind, kind)}", step=event.get("step"),
        evidence=[str(event.get("reason", ""))],
    )  # fmt: skip
    _place(found)
    following = next((e for e in after if e["event"] in ("checkpoint", "failure", "stop", "done")), None)
    saved = following is not None and following["event"] == "checkpoint"
    without = "the run had no more steps to do" if event.get("last") else "training went on without it"
    found.after = f"saved again at step {following['step']}" if saved and following else without
    if not saved:
        room = "make room there; a save is tried again by itself" if kind == "full" else "look at that storage"
        found.remedy = room
    return found


def _unreadable(event: Event, after: Sequence[Event]) -> Incident:
    more = [e for e in after if e["event"] == "unreadable"]
    samples = dict.fromkeys(e.get("sample") for e in (event, *more))
    some = (
        f"{event.get('file') or 'sample'} ({event.get('sample')})" if len(samples) == 1 else f"{len(samples)} samples"
    )
    found = Incident(
        event.get("time", 0.0), "data", f"{some} could not be read and counted nothing", step=event.get("step"),
        evidence=[f"{e.get('file') or e.get('sample')}: {e.get('reason')}" for e in (event, *more)][:TRACE_LINES],
        remedy="longreel data check DATASET --repair",
    )  # fmt: skip
    _place(found)
    return found


def _anomaly(event: Event) -> Incident:
    samples = event.get("samples")
    names = [str(name) for name in samples] if isinstance(samples, list) else []
    shown = ", ".join(names[:SAMPLES_SHOWN]) + (f" ... {len(names)} in all" if len(names) > SAMPLES_SHOWN else "")
    found = Incident(
        event.get("time", 0.0), "anomaly", f"step {event.get('step')} {rounded(str(event.get('reason')))}",
        step=event.get("step"), evidence=[f"samples of step {event.get('step')}: {shown}"] if names else [],
        after=POLICIES.get(str(event.get("policy")), ""),
    )  # fmt: skip
    _place(found)
    return found


def _differs(event: Event) -> Incident:
    return Incident(
        event.get("time", 0.0), "exception", "a step that was done again after a resume gave other numbers",
        evidence=[f"{event.get('checkpoint')}: {event.get('difference')}"],
        remedy="the software or the machine changed, or the checkpoint: an older one is taken next",
    )  # fmt: skip


def _fallback(event: Event) -> Incident:
    return Incident(
        event.get("time", 0.0), "store", f"checkpoint {event.get('checkpoint')} is broken and was passed over",
        evidence=[str(event.get("reason", ""))], after="an older one was taken", remedy="look at that storage",
    )  # fmt: skip


def _vanished(events: Sequence[Event], steps: Steps) -> Incident:
    last = max((line.get("time", 0.0) for line in (*events[-1:], steps.last)), default=0.0)
    found = Incident(last, "killed", VANISHED, step=steps.done if len(steps) else None)
    if found.step is not None:
        found.when = f"step {found.step} was the last that it recorded"
    return found


POLICIES = {
    "skip": "it made no update, and the run went on",
    "rewind": "the run went back to its newest checkpoint, and made no update from there to this step",
    "end": "the run ended, and saved nothing of it",
}
OTHERS: dict[str, Callable[[Event], Incident]] = {"anomaly": _anomaly, "differs": _differs, "fallback": _fallback}
