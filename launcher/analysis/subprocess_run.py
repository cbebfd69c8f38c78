"""`longreel train` as a process of its own, and the record that it writes, for those who watch: drills and soaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from launcher.core.run_folder import RunFolder, events_of, steps_of

HOME = Path(__file__).resolve().parent.parent.parent  # of the packages, also where they are not installed
STOP_SECONDS = 10.0  # for a command that was asked twice to stop at once
LAST_LINES = 12


class Command:
    """One start of `longreel train FILE`; a context manager that leaves no process behind.

    Args:
        file: the run.
        flags: such as --no-ray.
        log: what the command prints is appended there.
    """

    def __init__(self, file: Path, flags: Sequence[str], log: Path) -> None:
        self.log = log
        path = os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launcher", "train", str(file), *flags],
                env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120"}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Stop it at once, with its ranks; stopped ones do not notice by themselves that it is gone."""
        for _ in range(2):
            if self.process.poll() is None:
                self.process.terminate()
                time.sleep(0.5)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The end of what it printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.strip().splitlines()[-LAST_LINES:])


class Record:
    """What a run folder tells while it is written.

    A resume takes the lines of the steps that are done again out of metrics.jsonl: they are remembered here.

    Attributes:
        first: when each step was done for the first time, in seconds since 1970.
        lines: of metrics.jsonl, by step, as they are now.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.first: dict[int, float] = {}
        self.lines: dict[int, dict[str, Any]] = {}
        self._seen: tuple[int, int] | None = None

    @property
    def step(self) -> int:
        """The furthest so far."""
        return max(self.first, default=0)

    def update(self) -> None:
        """Read what is new."""
        path = self.folder.metrics
        try:
            stat = path.stat()
        except FileNotFoundError:
            return
        if (stat.st_ino, stat.st_size) == self._seen:
            return
        self._seen = (stat.st_ino, stat.st_size)
        self.lines = {line["step"]: line for line in steps_of(self.folder)}
        for step, line in self.lines.items():
            self.first.setdefault(step, float(line.get("time", 0.0)))

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Of one name, or all."""
        return [event for event in events_of(self.folder) if name in ("", event["event"])]
