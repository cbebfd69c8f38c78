"""What a person sees while a run goes on: its new lines of metrics.jsonl and events.jsonl, as they come.

The screen only reads the run folder, so it is the same whether ranks are processes or Ray actors, here or elsewhere.
On a terminal it is a progress bar; in a log file, a line every few seconds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from launcher.core.run_folder import RunFolder, is_step, parsed
from launcher.core.stacks import alike
from launcher.core.terminal import in_a_line

SECONDS_BETWEEN_LINES = 10.0
SECONDS_OF_SILENCE = 30.0  # in a log
CALLS = 8  # of a stack that are shown
GIB = 1 << 30
WIDE = 100  # columns of a terminal, in which a bar has room beside all figures
Event = dict[str, Any]
Line = tuple[str, str]  # a colour, and the text


class Tail:
    """The lines that are appended to a file from now on; it starts over if the file is rewritten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.inode = path.stat().st_ino if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines; none while the file cannot be read, which is for those to tell who write it."""
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                if self.inode and stat.st_ino != self.inode:
                    self.offset = stat.st_size  # rewritten on resume: what it holds was shown before
                self.inode = stat.st_ino
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [fields for line in whole.splitlines() if (fields := parsed(line)) is not None]


class Screen:
    """A run's progress.

    Args:
        folder: of the run.
        steps: of the run.
        done: of them, before this start.
        console: for a person.
        told: what has changed since the checkpoint, as the person knows it already.
    """

    def __init__(self, folder: RunFolder, steps: int, done: int, console: Console, told: Collection[str] = ()) -> None:
        self.known = frozenset(told)
        self.console, self.steps, self.done = console, steps, done
        self.metrics, self.events = Tail(folder.metrics), Tail(folder.events)
        self.last_line = 0.0
        self.told = time.monotonic()  # something, in a log
        self.began = self.told
        self.seen = 0  # steps
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task("starting", total=steps, completed=done)
            self.bar.start()

    def update(self) -> None:
        """Show what is new."""
        told: dict[int, str] = {}
        for event in self.events.read():
            if event.get("event") == "stacks" and type(event.get("rank")) is int:
                told[event["rank"]] = str(event.get("text"))
            text = describe(news(event, self.known))
            if text:
                self.console.print(text, highlight=False, soft_wrap=True)
        for calls, ranks in alike(told, CALLS).items():
            who = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
            text = "\n".join([f"stack of {who}:", *(f"    {line}" for line in calls.splitlines())])
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        for line in filter(is_step, self.metrics.read()):
            with suppress(KeyError, TypeError, ValueError):  # of another version or hand: the next line may be ours
                self._step(line)
        now = time.monotonic()
        if self.bar is None and self.done < self.steps and now > max(self.told, self.last_line) + SECONDS_OF_SILENCE:
            waited, self.told = now - max(self.began, self.last_line), now
            self.console.print(f"waiting for step {self.done + 1}, {waited:.0f} s so far", highlight=False)

    def close(self) -> None:
        """Show the rest and leave the terminal as it was."""
        self.update()
        if self.bar is not None:
            self.bar.stop()

    def _step(self, line: dict[str, Any]) -> None:
        self.done = line["step"]
        self.seen += 1
        parts = [f"loss {line['loss']:.4f}", f"{line['tokens_per_second']:,.0f} tokens/s"]
        if self.bar is None or self.console.width >= WIDE:  # the bar says how long it will take
            parts.append(f"{line['seconds']:.2f} s/step")
        text = "  ".join((*parts, *of_device(line)))
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=text)
            return
        now = time.monotonic()
        if self.done == self.steps or now > self.last_line + SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (self.steps - self.done) * line["seconds"]
            self.console.print(
                f"step {self.done:>6}/{self.steps}  {text}  {left:.0f} s left", highlight=False, soft_wrap=True
            )


def of_device(line: dict[str, Any]) -> Iterator[str]:
    """How full the fullest device is, and how well the devices are used: "71 of 139 GiB", "43 % MFU".

    On a CPU it is the resident set of a rank, and says so; a GPU whose peak nobody knows has its TFLOP/s.
    """
    peak, total = line.get("memory_bytes"), line.get("memory_total")
    if peak is not None and line.get("memory_of") == "process":
        yield f"RSS {peak / GIB:.1f} GiB"
    elif peak is not None and total:
        yield f"{math.ceil(peak / GIB)} of {math.floor(total / GIB)} GiB"
    if "mfu" in line:
        yield f"{100 * line['mfu']:.0f} % MFU"
    elif line.get("memory_of") == "gpu" and "flops_per_second_per_rank" in line:
        yield f"{line['flops_per_second_per_rank'] / 1e12:.0f} TFLOP/s a GPU"


def news(event: Event, known: Collection[str]) -> Event:
    """An event without the changes that the person was told of before the ranks were started."""
    changed = event.get("changed")
    if not known or event.get("event") != "resume" or not isinstance(changed, list):
        return event
    return {**event, "changed": [change for change in changed if change not in known]}


def describe(event: dict[str, Any]) -> str:
    """A line for a person; empty for events that are no news."""
    name = event.get("event")
    line = LINES.get(name) if isinstance(name, str) else None
    if line is None:
        return ""
    try:
        colour, text = line(event)
    except (KeyError, TypeError, ValueError, AttributeError):  # of another version, or not written by us
        colour, text = "yellow", ", ".join(f"{key} {value}" for key, value in event.items() if key != "time")[:300]
    text = in_a_line(text)
    return f"[{colour}]{escape(text)}[/]" if colour and text else escape(text)


def _failure(event: Event) -> Line:
    if event.get("how") == "hung":
        return "", ""  # its hang was told
    where = _where(event)
    if "words" not in event:
        return "red", f"{where} {event['how']} after step {event['step']}: {event['reason']}"
    when = f" (in {event['phase']} of step {event['step']})" if event.get("phase") else ""
    others = event.get("others")
    also = f" and {others} other{'s' if others != 1 else ''}" if others else ""
    return "red", f"{where}{also} {event['words']}{when}"


def _hang(event: Event) -> Line:
    kinds = {
        "silent": "gives no sign",
        "behind": "stands still while the others wait",
        "all": "stands still, and so do all others",
    }
    at = f"in {event['phase']} of step {event['step']}, for {event['seconds']:.0f} s"
    return "red", f"{_where(event)} {kinds[event['kind']]} {at}; its process: {event['state']}"


def _unsaved(event: Event) -> Line:
    again = f"; tried again in {event['again_in']:.0f} s" if "again_in" in event else ""
    goes_on = "" if event.get("last") else "; training goes on"
    return "yellow", f"step {event['step']} was not saved: {event['reason']}{again}{goes_on}"


def _restart(event: Event) -> Line:
    return "", f"restarting all ranks ({event['attempt']} of {event['limit']})"


def _verified(event: Event) -> Line:
    steps = event["steps"] if isinstance(event["steps"], int) else len(event["steps"])
    why = f"; {event['reason']}" if event.get("reason") else ""
    near = event.get("near", event["identical"])
    if near == event["identical"]:
        return "", f"resume verified: {event['identical']} of {steps} steps identical{why}"
    return "", f"resume verified: {near} of {steps} steps within rounding, {event['identical']} identical{why}"


def _resume(event: Event) -> Line:
    changed = "; ".join(event.get("changed") or ())
    return "", f"resumed from step {event['step']} ({event['checkpoint']}){f'; changed: {changed}' if changed else ''}"


def _anomaly(event: Event) -> Line:
    does = {"skip": "no update from it", "rewind": "the run goes back to the newest checkpoint", "end": "the run ends"}
    return "yellow", f"step {event['step']} {event['reason']}: {does[event['policy']]}"


def _where(event: Event) -> str:
    rank, host = event.get("rank", -1), event.get("host")
    return f"rank {rank}{f' on {host}' if host else ''}" if rank is not None and rank >= 0 else "the run"


def _sample(event: Event) -> str:
    return f"{event['file']} (sample {event['sample']})" if event.get("file") else f"sample {event['sample']}"


def _struck(event: Event) -> str:
    return f"rank {event['rank']}" if event["rank"] >= 0 else "the command"


LINES: dict[str, Callable[[Event], Line]] = {
    "resume": _resume,
    "fallback": lambda e: ("yellow", f"checkpoint {e['checkpoint']} is broken and was passed over: {e['reason']}"),
    "removed": lambda e: (
        "yellow",
        f"checkpoint {e['checkpoint']}, which was passed over, is removed: step {e['step']} of the new course is saved",
    ),
    "gap": lambda e: (
        "yellow",
        f"metrics.jsonl lacks {e['missing']} of the lines of steps 1 to {e['step']}: not drawn",
    ),
    "failure": _failure,
    "hang": _hang,
    "unsaved": _unsaved,
    "restart": _restart,
    "also": lambda e: ("red", f"{_where(e)} {e['how']} as well: {e['reason']}"),
    "placed": lambda e: ("", f"there is room, after {e['seconds']:.0f} s"),
    "stop": lambda e: ("", f"stopped at step {e['step']}: checkpoint {e['checkpoint']}" if e.get("checkpoint") else ""),
    "mesh": lambda e: ("yellow", f"mesh {e['from']} -> {e['to']}: {e['reason']}"),
    "verified": _verified,
    "unverified": lambda e: ("", f"steps done again were not compared: {e.get('reason', '')}"),
    "differs": lambda e: ("red", f"a step done again gave other numbers: {e.get('difference') or e.get('step')}"),
    "anomaly": _anomaly,
    "unreadable": lambda e: ("yellow", f"{_sample(e)} cannot be read and counts nothing: {e['reason']}"),
    "fault": lambda e: (
        "magenta",
        f"fault kit: {e['kind']} of {_struck(e)}, in {e['phase']} of step {e['step']}",
    ),
}
