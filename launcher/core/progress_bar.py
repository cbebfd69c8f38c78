"""Progress with rate and time left: a bar on a terminal; in a log or a pipe, a line every ten seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


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
        self.console, self.noun = console, noun
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task(noun, total=None, rate="", note="")
        self.began = self.told = time.monotonic()

    def update(self, done: int, total: int | None, note: str) -> None:
        """`done` of `total`; None while that is not known."""
        if not self.console.is_terminal:
            self._line(done, total, note)
            return
        speed = self.progress.tasks[0].speed
        rate = f"{speed:.1f}/s" if speed else ""
        self.progress.update(self.task, completed=done, total=total, rate=rate, note=escape(note))

    def _line(self, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        if now < self.told + SECONDS_BETWEEN_LINES or done == total:
            return  # the command's closing line says the rest
        self.told = now
        text = line_of(self.noun, done, total, now - self.began)
        self.console.print(f"{text}  {note}".rstrip(), markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


def line_of(noun: str, done: int, total: int | None, seconds: float) -> str:
    """How far it is, after so many seconds: "clips 12 of 240, 1.2/s, 190 s left"."""
    rate = done / seconds
    of = f" of {total:,}" if total is not None else ""
    left = f", {(total - done) / rate:,.0f} s left" if total is not None and rate else ""
    return f"{noun} {done:,}{of}, {rate:,.1f}/s{left}"
