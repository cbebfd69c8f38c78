"""`longreel train`: check, start the ranks, show progress, restart them when one dies, say how it ended.

check -> start -> watch --all done--> 0
           ^        |--asked to stop, checkpoint saved--> 75
           |        |--a rank refused its input--> 2
           +--------+--a rank failed or died, restarts left
                    +--none left--> 1
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from launcher import preflight
from launcher.checkpoint import newest
from launcher.config import RunConfig, to_yaml
from launcher.folder import RunFolder, in_use, make_run_folder, write_whole
from launcher.ranks import End, Ranks, culprit
from launcher.screen import Screen
from parallel.errors import InputError

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 75
POLL_SECONDS = 0.2
LASTING = {  # what would happen again after a restart, and what a person can do
    FloatingPointError.__name__: "try a lower optimizer.learning_rate",
    "No space left on device": "make room; the same command goes on from the last checkpoint",
}


@dataclass
class Asked:
    """How often a person or the system asked to stop."""

    times: int = 0


def train(config: RunConfig, make_ranks: Callable[[], Ranks], console: Console, available: int | None = None) -> int:
    """Run `config` to its last step; gives the exit code.

    Args:
        config: of the run, with absolute paths.
        make_ranks: makes what starts the ranks, once the checks have passed.
        console: for a person.
        available: see `preflight.check`.
    """
    ready = preflight.check(config, available)
    for note in ready.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    if ready.step >= config.steps:
        console.print(
            f"{config.out} has done {ready.step} steps already, and {config.steps} are asked for: nothing to do",
            highlight=False,
        )
        return DONE
    folder = RunFolder(config.out)
    with only_launcher(folder):
        write_whole(folder.config, to_yaml(config).encode())
        folder.record("start", step=ready.step, steps=config.steps, samples=ready.samples, mesh=str(config.mesh.mesh()))
        ranks = make_ranks()
        try:
            with stop_signals() as asked:
                return supervise(config, ranks, Screen(folder, config.steps, ready.step, console), asked, console)
        finally:
            ranks.close()


def supervise(config: RunConfig, ranks: Ranks, screen: Screen, asked: Asked, console: Console) -> int:
    """Start the ranks until they end well, or too often badly."""
    folder = RunFolder(config.out)
    attempt, saved, before = 0, None, (-1, "")
    try:
        while True:
            places = ranks.start(config)
            folder.record("ranks", places=[asdict(p) for p in places])
            ends = watch(ranks, screen, asked)
            ranks.kill()
            bad = culprit(ends)
            screen.update()
            if bad is None:
                stopped = any(e.how == "stopped" for e in ends)
                folder.record("stop" if stopped else "done", step=ends[0].step)
                return STOPPED if stopped else DONE
            if bad.refusal is not None:
                raise InputError(*bad.refusal)
            if asked.times > 1:
                folder.record("stop", step=screen.done, reason="killed on request")
                return FAILED
            if asked.times:
                folder.record("stop", step=screen.done, reason=f"rank {bad.rank} {bad.how} before it had saved")
                console.print(f"rank {bad.rank} {bad.how} before it had saved: {last_line(bad)}", markup=False)
                return FAILED
            folder.record(
                "failure", rank=bad.rank, how=bad.how, step=screen.done, reason=last_line(bad), trace=bad.message
            )
            fault = (screen.done, last_line(bad))
            remedy = (
                "it failed twice at the same step in the same way" if bad.how == "failed" and fault == before else None
            )
            remedy = next((r for sign, r in LASTING.items() if sign in fault[1]), remedy)
            before = fault
            if remedy is not None:
                screen.update()
                console.print(bad.message, highlight=False, markup=False, soft_wrap=True)
                console.print(f"[red]not restarted, because it would happen again: {remedy}[/]", soft_wrap=True)
                return FAILED
            found = newest(folder.checkpoints, verify=False)[0]
            attempt = 1 if found and found.path.name != saved else attempt + 1
            saved = found.path.name if found else None
            if attempt > config.restart.limit:
                screen.update()
                console.print(bad.message, highlight=False, markup=False)
                console.print(f"[red]given up after {config.restart.limit} restarts without a new checkpoint[/]")
                return FAILED
            folder.record("restart", attempt=attempt, limit=config.restart.limit)
            screen.update()
    finally:
        screen.close()


def watch(ranks: Ranks, screen: Screen, asked: Asked) -> list[End]:
    """Wait for the ranks; pass on requests to stop, the second of which does not wait for a checkpoint."""
    passed_on = False
    while True:
        ends = ranks.poll(POLL_SECONDS)
        screen.update()
        if ends is not None:
            return ends
        if asked.times > 1:
            return [End(-1, "died", message="killed on request")]
        if asked.times and not passed_on:
            screen.console.print("stopping after this step, with a checkpoint (again to stop at once)")
            ranks.stop()
            passed_on = True


@contextmanager
def only_launcher(folder: RunFolder) -> Iterator[None]:
    """Refuse a second launcher on the same run folder."""
    make_run_folder(folder)
    with open(folder.root / ".launcher", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use(folder.root) from None
        yield


@contextmanager
def stop_signals() -> Iterator[Asked]:
    """Count SIGINT and SIGTERM instead of dying of them. Installed after Ray has put in its own handlers."""
    asked = Asked()

    def note(*_: Any) -> None:
        asked.times += 1

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def absolute(config: RunConfig) -> RunConfig:
    """The same run with absolute paths, so that it means the same in every process."""
    data = config.data.with_absolute(_absolute)
    codec = config.codec
    if codec.path is not None:
        codec = codec.model_copy(update={"path": _absolute(codec.path)})
    return config.model_copy(update={"out": _absolute(config.out), "data": data, "codec": codec})


def _absolute(path: Any) -> Any:
    return type(path)(os.path.abspath(os.path.expanduser(path)))


def last_line(end: End) -> str:
    """The last words of a rank."""
    lines = [line for line in end.message.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "no word"
