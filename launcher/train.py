"""`longreel train`: check, start the ranks and see them through (`supervisor.py`), alone in the run folder."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from launcher import preflight
from launcher.config import RunConfig, to_yaml
from launcher.folder import RunFolder, in_use, make_run_folder, write_whole
from launcher.leftovers import end_leftovers
from launcher.ranks import Ranks
from launcher.screen import Screen
from launcher.supervisor import DONE, FAILED, REFUSED, STOPPED, Asked, Supervisor

__all__ = ["DONE", "FAILED", "REFUSED", "STOPPED", "absolute", "only_launcher", "stop_signals", "train"]


def train(config: RunConfig, make_ranks: Callable[[], Ranks], console: Console, available: int | None = None) -> int:
    """Run `config` to its last step; gives the exit code.

    Args:
        config: of the run, with absolute paths.
        make_ranks: makes what starts the ranks, once the checks have passed.
        console: for a person.
        available: see `preflight.check`.
    """
    ready = preflight.check(config, available)
    config = ready.config
    for note in ready.notes:
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)
    if ready.step >= config.steps:
        console.print(
            f"{config.out} has done {ready.step} steps already, and {config.steps} are asked for: nothing to do",
            markup=False,
            highlight=False,
        )
        return DONE
    folder = RunFolder(config.out)
    with only_launcher(folder):
        write_whole(folder.config, to_yaml(config).encode())
        for rank in end_leftovers(folder):
            console.print(f"[yellow]rank {rank} of an earlier start was stopped and is ended[/]", highlight=False)
        folder.record(
            "start", step=ready.step, steps=config.steps, samples=ready.samples, mesh=str(config.mesh_after(ready.step))
        )
        ranks = make_ranks()
        try:
            with stop_signals() as asked:
                screen = Screen(folder, config.steps, ready.step, console)
                return Supervisor(config, ranks, screen, asked, console, ready.flops).run()
        finally:
            ranks.close()


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
    to, saving = config.checkpoint.to, config.checkpoint
    if to is not None and "://" not in to:
        saving = saving.model_copy(update={"to": _absolute(to)})
    return config.model_copy(update={"out": _absolute(config.out), "data": data, "codec": codec, "checkpoint": saving})


def _absolute(path: Any) -> Any:
    return type(path)(os.path.abspath(os.path.expanduser(path)))
