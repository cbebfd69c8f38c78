"""The timeline of a run: one line for each event that is news, in the words of a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from launcher.core.terminal import in_a_line

Event = dict[str, Any]
MANY_DIGITS = re.compile(r"-?\d+\.\d{5,}(?:e[-+]?\d+)?")


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


def rounded(text: str) -> str:
    """Figures of many digits in a text with four of them: nobody reads more, and records of older runs have 17."""
    return MANY_DIGITS.sub(lambda found: f"{float(found[0]):.4g}", text)


def _who(event: Event) -> str:
    rank = event.get("rank")
    host = f" on {event['host']}" if event.get("host") else ""
    return f"rank {rank}{host}" if rank is not None and rank >= 0 else "the run"


def _others(event: Event) -> str:
    others = event.get("others")
    return f" and {count_of(others, 'other')}" if type(others) is int and others > 0 else ""


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
    "unverified": lambda e: str(e.get("reason", "")),
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
    "anomaly": _not_finite,
    "unreadable": lambda row: (
        f"{len(row)} sample{'s' if len(row) > 1 else ''}, {row[0].get('file') or row[0].get('sample')} ..."
    ),
}


def count_of(number: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
