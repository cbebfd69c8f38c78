"""A progress bar with rate and time left on a terminal; in a log, nothing but the closing line of the command."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Progress over `total` things whose number is known with the first update."""

    def __init__(self, console: Console, noun: str) -> None:
        columns = (
            TextColumn(noun),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task(noun, total=None, rate="", note="")

    def update(self, done: int, total: int | None, note: str) -> None:
        """`done` of `total`; None while that is not known."""
        speed = self.progress.tasks[0].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self.progress.update(self.task, completed=done, total=total, rate=rate, note=escape(note))

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
