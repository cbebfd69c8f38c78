"""What happened to a run, from its records alone: every incident with its cause and evidence, and what to type next.

events.jsonl   hang, stacks, failure, unsaved, unreadable, differs ...   -->   incidents, one a cause, a timeline
metrics.jsonl  when steps were done                                      -->   what an incident cost
.launcher      is somebody holding it?                                   -->   running, or ended without a word
config.yaml    its rate, its datasets                                    -->   commands with nothing left to fill in

A cause that shows itself again and again, as steps that are not finite do, is told once, with how often.
"""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launcher.config import proposed_commands
from launcher.config.run_yaml import parse_yaml, read_run
from launcher.core.run_folder import RunFolder
from launcher.core.run_records import Steps, read_events, read_steps
from launcher.core.stacks import alike
from launcher.core.terminal import in_a_line
from parallel import shell
from parallel.errors import InputError

Event = dict[str, Any]
State = Literal["running", "done", "stopped", "failed", "vanished"]
TRACE_LINES = 12
NONSENSE_SHOWN, SAMPLES_SHOWN, STEPS_SHOWN = 3, 4, 6
MANY_DIGITS = re.compile(r"-?\d+\.\d{5,}(?:e[-+]?\d+)?")
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
    steps, settings = read_steps(folder.metrics), _settings(folder)
    asked = next((e["steps"] for e in reversed(events) if e["event"] == "start" and type(e.get("steps")) is int), 0)
    state = _state(events, steps, is_held(run), time.time())
    found = list(incidents_of(events, steps))
    if state == "vanished":
        found.append(_vanished(events, steps))
    incidents = [_with_commands(one, run, settings, steps) for one in merged(found)]
    if incidents and state in ("failed", "vanished"):
        incidents[-1].ended = True
    attempts = sum(event["event"] == "ranks" for event in events)
    saved = any(event["event"] == "checkpoint" for event in events)
    told = tuple(_next(run, state, saved, asked, incidents))
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


def merged(incidents: Sequence[Incident]) -> list[Incident]:
    """One incident for each cause, where the cause last showed itself: what it was, how often, and at which steps."""
    same: dict[tuple[Any, ...], list[Incident]] = {}
    for number, one in enumerate(incidents):
        same.setdefault(_same(one) or (number,), []).append(one)
    return sorted((_one_of(several) for several in same.values()), key=lambda one: one.time)


def _same(one: Incident) -> tuple[Any, ...] | None:
    """What incidents of one cause have in common; None for one that stands for itself."""
    if one.cause == "nonsense":
        return ("nonsense", one.on_purpose)
    if one.cause == "data" and ("at most data.tolerate" in one.what or "could not be read" in one.what):
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
    if last.cause == "nonsense":
        told = [one for one in several if one.what.startswith("step ")]
        steps = sorted({one.step for one in several if one.step is not None})
        others = [one.what for one in told if one is not last][-NONSENSE_SHOWN:]
        last.evidence = [*others, *(told[-1].evidence if told else [])]
        last.after = last.after or (told[-1].after if told else "")
        last.when = f"{_count(len(steps), 'step')}: {_steps(steps)}" if len(steps) > 1 else last.when
    elif last.cause == "data" and last.what.startswith("refused"):
        last.evidence = [line for one in several for line in one.evidence][:TRACE_LINES]
    elif last.cause == "full" and len(several) > 1:
        last.evidence = list(dict.fromkeys(line for one in several for line in one.evidence))[-NONSENSE_SHOWN:]
    elif len(several) > 1:
        last.what += f" ({len(several)} times)"
    return last


def _steps(steps: Sequence[int]) -> str:
    """Some numbers of steps: 3, 4, 9 or 3, 4 ... 9."""
    shown = list(map(str, steps))
    return ", ".join(shown) if len(shown) <= STEPS_SHOWN else f"{', '.join(shown[:STEPS_SHOWN])} ... {shown[-1]}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def timeline_of(events: Sequence[Event]) -> Iterator[tuple[float, str, str]]:
    """One line for each event that is news; checkpoints and samples in a row share one."""
    row: list[Event] = []
    for event in (*events, {"event": ""}):
        name = event["event"]
        if row and name != row[0]["event"]:
            yield row[0].get("time", 0.0), row[0]["event"], _line(ROWS[row[0]["event"]], row)
            row = []
        if name in ROWS:
            row.append(event)
        elif name in LINES:
            yield event.get("time", 0.0), name, _line(LINES[name], event)


def _line(tell: Callable[[Any], str], what: Any) -> str:
    """What an event says, in one line; of one that lacks what it should tell, that."""
    try:
        return in_a_line(tell(what))
    except (KeyError, TypeError, ValueError, AttributeError):
        return "(this line of events.jsonl lacks what it should tell)"


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


def _nonsense(event: Event) -> Incident:
    samples = event.get("samples")
    names = [str(name) for name in samples] if isinstance(samples, list) else []
    shown = ", ".join(names[:SAMPLES_SHOWN]) + (f" ... {len(names)} in all" if len(names) > SAMPLES_SHOWN else "")
    found = Incident(
        event.get("time", 0.0), "nonsense", f"step {event.get('step')} {rounded(str(event.get('reason')))}",
        step=event.get("step"), evidence=[f"samples of step {event.get('step')}: {shown}"] if names else [],
        after=POLICIES.get(str(event.get("policy")), ""),
    )  # fmt: skip
    _place(found)
    return found


def rounded(text: str) -> str:
    """Figures of many digits in a text with four of them: nobody reads more, and records of older runs have 17."""
    return MANY_DIGITS.sub(lambda found: f"{float(found[0]):.4g}", text)


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


def _settings(folder: RunFolder) -> Mapping[str, Any]:
    """The run's settings as plain values; none if they cannot be read."""
    try:
        settings, _ = parse_yaml(read_run(folder.config), folder.config.name)
    except InputError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _with_commands(one: Incident, run: Path, settings: Mapping[str, Any], steps: Steps) -> Incident:
    """Its remedy with nothing left to fill in."""
    data, optimizer = settings.get("data"), settings.get("optimizer")
    dataset = data.get("dataset") if isinstance(data, dict) else None
    folders = list(map(str, dataset)) if isinstance(dataset, dict) else [dataset] if isinstance(dataset, str) else []
    if folders and proposed_commands.CHECK in one.remedy:
        mend = " && ".join(shell.join(["longreel", "data", "check", folder, "--repair"]) for folder in folders)
        one.remedy, one.commands = one.remedy.replace(proposed_commands.CHECK, mend), [mend]
    if one.cause == "nonsense" and not one.on_purpose:
        rate = optimizer.get("learning_rate") if isinstance(optimizer, dict) else None
        one.remedy, one.commands = proposed_commands.LOWER_RATE, [proposed_commands.slower(run, rate)]
        if one.step is not None and one.step in steps.column("step"):  # else its samples are not written down
            one.commands.append(shell.join(["longreel", "data", "audit", str(run), "--step", str(one.step)]))
    return one


def _next(run: Path, state: State, saved: bool, asked: int, incidents: Sequence[Incident]) -> Iterator[tuple[str, str]]:
    goes_on = f"goes on from its last checkpoint to step {asked}" if saved else "starts again"
    if state == "running":
        yield shell.join(["tail", "-f", str(run / "events.jsonl")]), "it goes on; this is what it records"
        return
    if state == "done":
        yield shell.join(["longreel", "sample", str(run)]), "videos from its last checkpoint"
        yield shell.join(["longreel", "report", str(run)]), "one page about it"
        return
    proposed = incidents[-1].commands if state == "failed" and incidents else []
    for command in proposed:
        if not command.startswith("longreel train"):
            yield command, next((reason for kind, reason in REASONS.items() if command.startswith(kind)), "first")
            continue
        yield command, f"{goes_on}, with what is proposed above"
        if saved and incidents[-1].cause == "nonsense":
            elsewhere = proposed_commands.setting("out", f"{run}-again")
            yield f"{command} {elsewhere}", "or from the first step, should the checkpoint be spoiled already"
    if not any(command.startswith("longreel train") for command in proposed):
        yield proposed_commands.train(run), goes_on


REASONS = {
    "longreel data audit": "the samples of that step",
    "longreel data check": "first: what is broken there, and what can be mended",
    "longreel dryrun": "first: what that saves",
}
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


def _others(event: Event) -> str:
    others = event.get("others")
    return f" and {_count(others, 'other')}" if type(others) is int and others > 0 else ""


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


def _not_finite(row: Sequence[Event]) -> str:
    last = row[-1]
    steps = (
        f"steps {row[0].get('step')} to {last.get('step')}: the last" if len(row) > 1 else f"step {last.get('step')}"
    )
    return f"{steps} {rounded(str(last.get('reason')))}: {last.get('policy')}"


LINES: dict[str, Callable[[Event], str]] = {
    "start": lambda e: f"to step {e.get('steps')}" + (f" from step {e['step']}" if e.get("step") else ""),
    "ranks": _started,
    "resume": lambda e: "; ".join([f"from step {e.get('step')}, {e.get('checkpoint')}", *(e.get("changed") or ())]),
    "verified": lambda e: f"{e.get('identical')} steps done again are identical",
    "unproven": lambda e: str(e.get("reason", "")),
    "differs": lambda e: str(e.get("difference", "")),
    "fallback": lambda e: f"{e.get('checkpoint')}: {e.get('reason')}",
    "unsaved": lambda e: f"step {e.get('step')}: {e.get('reason')}",
    "hang": lambda e: f"{_who(e)}, {e.get('phase')} of step {e.get('step')}: {e.get('kind')}, {e.get('state')}",
    "failure": lambda e: f"{_who(e)}{_others(e)} {rounded(str(e.get('words') or e.get('reason')))}",
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
    "nonsense": _not_finite,
    "unreadable": lambda row: (
        f"{len(row)} sample{'s' if len(row) > 1 else ''}, {row[0].get('file') or row[0].get('sample')} ..."
    ),
}
