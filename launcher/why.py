"""What happened to a run, from its records alone: every incident with its cause and evidence, and what to type next.

events.jsonl   hang, stacks, failure, unsaved, unreadable, differs ...   -->   incidents, a timeline
metrics.jsonl  when steps were done                                      -->   what an incident cost
.launcher      is somebody holding it?                                   -->   running, or ended without a word
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.folder import RunFolder, read_lines
from launcher.stacks import alike
from parallel.errors import InputError

Event = dict[str, Any]
State = Literal["running", "done", "stopped", "failed", "vanished"]
TRACE_LINES = 12
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
    ended: bool = False
    on_purpose: bool = False


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
    """

    run: Path
    state: State
    step: int
    steps: int
    attempts: int
    incidents: tuple[Incident, ...]
    timeline: tuple[tuple[float, str, str], ...]
    next: tuple[tuple[str, str], ...]


def why(run: Path) -> Story:
    """Read the records of a run.

    Raises:
        InputError: the folder holds no run.
    """
    folder = RunFolder(run)
    events = [event for event in read_lines(folder.events) if "event" in event]
    if not events:
        found = f"{run} has no events" if run.is_dir() else f"{run} is no folder"
        raise InputError("longreel why takes the folder of a run that was started", found, "longreel why RUN")
    steps = list(read_lines(folder.metrics))
    done = max((line.get("step", 0) for line in steps), default=0)
    asked = next((e["steps"] for e in reversed(events) if e["event"] == "start" and "steps" in e), 0)
    state = _state(events, steps, is_held(run), time.time())
    incidents = list(incidents_of(events, steps))
    if state == "vanished":
        incidents.append(_vanished(events, steps))
    if incidents and state in ("failed", "vanished"):
        incidents[-1].ended = True
    attempts = sum(event["event"] == "ranks" for event in events)
    told = tuple(_next(run, state, done, asked, incidents))
    return Story(run, state, done, asked, attempts, tuple(incidents), tuple(timeline_of(events)), told)


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


def incidents_of(events: Sequence[Event], steps: Sequence[Event]) -> Iterator[Incident]:
    """What went wrong, oldest first."""
    for number, event in enumerate(events):
        before, after = events[:number], events[number + 1 :]
        name = event["event"]
        if name == "failure":
            yield _failure(event, before, after, steps)
        elif name == "unsaved" and not _repeats(event, before):
            yield _unsaved(event, after)
        elif name == "unreadable" and not _repeats(event, before):
            yield _unreadable(event, after)
        elif name in OTHERS:
            yield OTHERS[name](event)


def timeline_of(events: Sequence[Event]) -> Iterator[tuple[float, str, str]]:
    """One line for each event that is news; checkpoints and samples in a row share one."""
    row: list[Event] = []
    for event in (*events, {"event": ""}):
        name = event["event"]
        if row and name != row[0]["event"]:
            yield row[0].get("time", 0.0), row[0]["event"], ROWS[row[0]["event"]](row)
            row = []
        if name in ROWS:
            row.append(event)
        elif name in LINES:
            yield event.get("time", 0.0), name, LINES[name](event)


def _state(events: Sequence[Event], steps: Sequence[Event], held: bool, now: float) -> State:
    if held:
        return "running"
    names = [event["event"] for event in events]
    since = len(names) - 1 - names[::-1].index("start") if "start" in names else 0
    last = [name for name in names[since:] if name in ("done", "stop", "failure", "restart")]
    ends: dict[str, State] = {"done": "done", "stop": "stopped", "failure": "failed"}
    if last and last[-1] in ends:
        return ends[last[-1]]
    watched = "ranks" in names[since:] or any("samples" in e for e in events[since:] if e["event"] == "start")
    fresh = bool(steps) and now - steps[-1].get("time", 0.0) < FRESH_SECONDS
    return "running" if fresh and not watched else "vanished"  # torchrun's ranks have no launcher of ours


def _failure(event: Event, before: Sequence[Event], after: Sequence[Event], steps: Sequence[Event]) -> Incident:
    rank = event.get("rank")
    found = Incident(
        event.get("time", 0.0),
        event.get("cause", "exception"),
        event.get("words") or f"{event.get('how', 'failed')}: {event.get('reason', 'no word')}",
        rank if rank is not None and rank >= 0 else None,
        event.get("host", ""), event.get("pid", 0), event.get("step"), event.get("phase"),
        remedy=event.get("remedy", ""),
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
    lines = (event.get("trace") or event.get("reason") or "").rstrip().splitlines()
    if len(lines) > TRACE_LINES:
        yield f"... {len(lines) - TRACE_LINES} lines more in events.jsonl"
    yield from lines[-TRACE_LINES:]


def _recovery(event: Event, after: Sequence[Event], steps: Sequence[Event]) -> str:
    """What followed a failure, and what it cost."""
    begun = event.get("time", 0.0)
    until = next((e.get("time", 0.0) for e in after if e["event"] == "failure"), float("inf"))
    mine = [e for e in after if e.get("time", 0.0) <= until]
    if not any(e["event"] in ("restart", "ranks") for e in mine):
        return ""
    resumed = next((e for e in mine if e["event"] == "resume"), None)
    mesh = next((e for e in mine if e["event"] == "mesh"), None)
    next_step = next((s for s in steps if begun < s.get("time", 0.0) < until), None)
    if next_step is None and resumed is None:
        return "restarted, and failed again before it was resumed" if until < float("inf") else "restarted"
    told = f"resumed from step {resumed['step']}" if resumed is not None else "started again from the first step"
    if next_step is not None:
        told += f", {next_step['time'] - begun:.1f} s later at the next step"
    again = max(0, event.get("step", 0) - 1 - (resumed["step"] if resumed is not None else 0))
    if again:
        told += f"; {again} step{'s' if again > 1 else ''} done again"
    return told + (f"; mesh {mesh['from']} -> {mesh['to']}: {mesh['reason']}" if mesh is not None else "")


def _repeats(event: Event, before: Sequence[Event]) -> bool:
    """Whether the same trouble was told since training began or was saved again."""
    for earlier in reversed(before):
        if earlier["event"] == event["event"]:
            return True
        if earlier["event"] in ("ranks", "checkpoint"):
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
    found.after = f"saved again at step {following['step']}" if saved and following else "training went on without it"
    if not saved:
        room = "make room there; a save is tried again by itself" if kind == "full" else "look at that storage"
        found.remedy = room
    return found


def _unreadable(event: Event, after: Sequence[Event]) -> Incident:
    more = [e for e in after if e["event"] == "unreadable"]
    samples = dict.fromkeys(e.get("sample") for e in (event, *more))
    some = f"sample {event.get('sample')}" if len(samples) == 1 else f"{len(samples)} samples"
    found = Incident(
        event.get("time", 0.0), "data", f"{some} could not be read and counted nothing", step=event.get("step"),
        evidence=[f"{e.get('sample')}: {e.get('reason')}" for e in (event, *more)][:TRACE_LINES],
        remedy="longreel data check DATASET --repair",
    )  # fmt: skip
    _place(found)
    return found


def _nonsense(event: Event) -> Incident:
    found = Incident(
        event.get("time", 0.0), "nonsense",
        f"the step {event.get('reason')}",
        step=event.get("step"), evidence=[f"samples: {event.get('samples')}"],
        after=POLICIES.get(str(event.get("policy")), ""),
        remedy="try a lower optimizer.learning_rate, or look at these samples: longreel data audit RUN --step STEP",
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


def _vanished(events: Sequence[Event], steps: Sequence[Event]) -> Incident:
    last = max((line.get("time", 0.0) for line in (*events[-1:], *steps[-1:])), default=0.0)
    found = Incident(last, "killed", VANISHED, step=steps[-1].get("step") if steps else None)
    if found.step is not None:
        found.when = f"step {found.step} was the last that it recorded"
    return found


def _next(run: Path, state: State, done: int, asked: int, incidents: Sequence[Incident]) -> Iterator[tuple[str, str]]:
    again = f"longreel train {run / 'config.yaml'}"
    if state == "running":
        yield f"tail -f {run / 'events.jsonl'}", "it goes on; this is what it records"
        return
    if state == "done":
        yield f"longreel sample {run}", "videos from its last checkpoint"
        yield f"longreel report {run}", "one page about it"
        return
    if state == "failed" and incidents and incidents[-1].remedy:
        yield incidents[-1].remedy, "first"
    yield again, f"goes on from its last checkpoint to step {asked}" if done else "starts it again"


POLICIES = {
    "skip": "it made no update, and the run went on",
    "rewind": "the run went back to its newest checkpoint, and made no update from there to this step",
    "end": "the run ended, and saved nothing of it",
}
OTHERS: dict[str, Callable[[Event], Incident]] = {"nonsense": _nonsense, "differs": _differs, "fallback": _fallback}


def _who(event: Event) -> str:
    rank = event.get("rank")
    host = f" on {event['host']}" if event.get("host") else ""
    return f"rank {rank}{host}" if rank is not None and rank >= 0 else "the run"


def _struck(event: Event) -> str:
    return "the command" if event.get("rank", 0) < 0 else f"rank {event.get('rank')}"


def _started(event: Event) -> str:
    hosts = dict.fromkeys(place.get("host") or place.get("node") for place in event.get("places", ()))
    ranks = len(event.get("places", ()))
    mesh = f", {event['mesh']}" if "mesh" in event else ""
    return f"{ranks} rank{'s' if ranks != 1 else ''} on {', '.join(map(str, hosts))}{mesh}"


def _stopped(event: Event) -> str:
    return f"step {event.get('step')}: {event.get('reason', 'on request, with a checkpoint')}"


def _saved(row: Sequence[Event]) -> str:
    steps = [event.get("step") for event in row]
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} of them, steps {steps[0]} to {steps[-1]}"


LINES: dict[str, Callable[[Event], str]] = {
    "start": lambda e: f"to step {e.get('steps')}" + (f" from step {e['step']}" if e.get("step") else ""),
    "ranks": _started,
    "resume": lambda e: "; ".join([f"from step {e.get('step')}, {e.get('checkpoint')}", *(e.get("changed") or ())]),
    "verified": lambda e: f"{e.get('identical')} steps done again are identical",
    "unproven": lambda e: str(e.get("reason", "")),
    "differs": lambda e: str(e.get("difference", "")),
    "fallback": lambda e: f"{e.get('checkpoint')}: {e.get('reason')}",
    "unsaved": lambda e: f"step {e.get('step')}: {e.get('reason')}",
    "nonsense": lambda e: f"step {e.get('step')} {e.get('reason')}: {e.get('policy')}",
    "hang": lambda e: f"{_who(e)}, {e.get('phase')} of step {e.get('step')}: {e.get('kind')}, {e.get('state')}",
    "failure": lambda e: f"{_who(e)} {e.get('words') or e.get('reason')}",
    "also": lambda e: f"{_who(e)} {e.get('how')}: {e.get('reason')}",
    "queued": lambda e: "for " + ", ".join(f"{n} {kind}" for kind, n in e.get("needs", {}).items()),
    "placed": lambda e: f"after {e.get('seconds')} s",
    "restart": lambda e: f"{e.get('attempt')} of {e.get('limit')} without a new checkpoint",
    "mesh": lambda e: f"{e.get('from')} -> {e.get('to')}: {e.get('reason')}",
    "fault": lambda e: f"on purpose: {e.get('kind')}, {_struck(e)}, {e.get('phase')} of step {e.get('step')}",
    "gap": lambda e: f"{e.get('missing')} lines of metrics.jsonl are missing",
    "stop": _stopped,
    "done": lambda e: f"step {e.get('step')}",
}
ROWS: dict[str, Callable[[Sequence[Event]], str]] = {
    "checkpoint": _saved,
    "unreadable": lambda row: f"{len(row)} sample{'s' if len(row) > 1 else ''}, {row[0].get('sample')} ...",
}
