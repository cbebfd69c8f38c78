"""`longreel train`: check, start the ranks and see them through (`supervisor.py`), alone in the run folder."""

from __future__ import annotations

import fcntl
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape

from launcher.batches.datasets import with_own_codec
from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.hardware import cores, gpus
from launcher.core.run_folder import RunFolder, in_use, make_run_folder, write_whole
from launcher.preflight import preflight
from launcher.supervision.attempt import StopRequests
from launcher.supervision.console_view import Screen
from launcher.supervision.orphans import end_leftovers
from launcher.supervision.rank_group import Ranks
from launcher.supervision.supervisor import DONE, FAILED, REFUSED, STOPPED, Supervisor
from parallel import shell

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
        for line in header(ready, available != 0):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        for rank in end_leftovers(folder):
            console.print(f"[yellow]rank {rank} of an earlier start was stopped and is ended[/]", highlight=False)
        folder.record(
            "start", step=ready.step, steps=config.steps, samples=ready.samples, mesh=str(config.mesh_after(ready.step))
        )
        ranks = make_ranks()
        try:
            with stop_signals() as asked:
                screen = Screen(folder, config.steps, ready.step, console, ready.changed)
                return Supervisor(config, ranks, screen, asked, console, ready.flops).run()
        finally:
            ranks.close()


def header(ready: preflight.Ready, here: bool) -> Iterator[str]:
    """What will be trained, where, and where to look: before the ranks start, which takes a while.

    Args:
        ready: what the checks found.
        here: on this machine, rather than on a cluster whose devices are not known yet.
    """
    config, mesh, folder = ready.config, ready.config.mesh_after(ready.step), RunFolder(ready.config.out)
    learned, frozen = ready.parameters.trained, ready.parameters.frozen
    of_them = f", {count_text(frozen)} of them frozen" if frozen else ""
    yield f"model    {config.model.kind}, {count_text(learned + frozen)} parameters{of_them}, {config.dtype}"
    where = ("GPUs" if gpus(config.device) else f"CPU, {cores()} cores") if here else "a cluster"
    yield f"ranks    {mesh.ranks} on {where}: {mesh}, ZeRO stage {config.zero.stage}"
    packs = f"{config.data.packs_per_step} pack{'s' if config.data.packs_per_step > 1 else ''}"
    yield f"data     {ready.samples:,} samples; about {ready.step_tokens:,.0f} tokens a step, in {packs}"
    left = config.steps - ready.step
    done = f"{ready.step:,} done, {left:,} to do" if ready.step else f"{left:,}"
    yield f"steps    {done}: {left / ready.epoch_steps:,.3g} epochs of about {math.ceil(ready.epoch_steps):,} steps"
    yield f"folder   {folder.root}"
    look = (["tensorboard", "--logdir", str(folder.tensorboard)], ["longreel", "report", str(folder.root)])
    yield f"to look  {'   or   '.join(map(shell.join, look))}"
    yield "starting the ranks: some 10 seconds until torch and DeepSpeed are loaded, then the first step"


def count_text(number: int) -> str:
    """Of parameters, as people say it: 1.79 million."""
    for name, size in (("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:,}"


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
def stop_signals() -> Iterator[StopRequests]:
    """Count SIGINT and SIGTERM instead of dying of them. Installed after Ray has put in its own handlers."""
    asked = StopRequests()

    def note(*_: Any) -> None:
        asked.times += 1

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def absolute(config: RunConfig) -> RunConfig:
    """The same run with absolute paths and the codec of its latents, so that it means the same in every process."""
    config = with_own_codec(config)
    data = config.data.with_absolute(_absolute)
    codec = config.codec
    if codec.folder is not None:
        codec = codec.model_copy(update={"path": _absolute(codec.folder)})
    to, saving = config.checkpoint.location, config.checkpoint
    if to is not None and "://" not in to:
        saving = saving.model_copy(update={"location": _absolute(to)})
    return config.model_copy(update={"out": _absolute(config.out), "data": data, "codec": codec, "checkpoint": saving})


def _absolute(path: Any) -> Any:
    return type(path)(os.path.abspath(os.path.expanduser(path)))
