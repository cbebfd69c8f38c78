"""What a person sees while a run goes on: its new lines of metrics.jsonl and events.jsonl, as they come.

The screen only reads the run folder, so it is the same whether ranks are processes or Ray actors, here or elsewhere.
On a terminal it is a progress bar; in a log file, a line every few seconds.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from launcher.folder import RunFolder

SECONDS_BETWEEN_LINES = 10.0


class Tail:
    """The lines that are appended to a file from now on; it starts over if the file is rewritten."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0
        self.inode = path.stat().st_ino if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines."""
        if not self.path.exists():
            return []
        stat = self.path.stat()
        if self.inode and stat.st_ino != self.inode:
            self.offset = stat.st_size  # rewritten on resume: what it holds was shown before
        self.inode = stat.st_ino
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Screen:
    """A run's progress."""

    def __init__(self, folder: RunFolder, steps: int, done: int, console: Console) -> None:
        self.console, self.steps, self.done = console, steps, done
        self.metrics, self.events = Tail(folder.metrics), Tail(folder.events)
        self.last_line = 0.0
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task("starting", total=steps, completed=done)
            self.bar.start()

    def update(self) -> None:
        """Show what is new."""
        for event in self.events.read():
            text = describe(event)
            if text:
                self.console.print(text, highlight=False, soft_wrap=True)
        for line in self.metrics.read():
            self._step(line)

    def close(self) -> None:
        """Show the rest and leave the terminal as it was."""
        self.update()
        if self.bar is not None:
            self.bar.stop()

    def _step(self, line: dict[str, Any]) -> None:
        self.done = line["step"]
        text = f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s  {line['seconds']:.2f} s/step"
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


def describe(event: dict[str, Any]) -> str:
    """A line for a person; empty for events that are no news."""
    name = event.get("event")
    if name == "resume":
        return f"resumed from step {event['step']} ({event['checkpoint']})"
    if name == "fallback":
        return f"[yellow]checkpoint {event['checkpoint']} is broken and was passed over: {escape(event['reason'])}[/]"
    if name == "failure":
        return f"[red]rank {event['rank']} {event['how']} after step {event['step']}: {escape(event['reason'])}[/]"
    if name == "gap":
        return (
            f"[yellow]metrics.jsonl lacks {event['missing']} of the lines of steps 1 to {event['step']}: not drawn[/]"
        )
    if name == "restart":
        return f"restarting all ranks ({event['attempt']} of {event['limit']})"
    return ""
