"""One rank started by somebody else: `torchrun --nproc-per-node 2 -m launcher.worker RUN.yaml`, accelerate or srun.

It takes a file and no flags, because torchrun takes abbreviated flags for its own. Overrides are key=value.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from launcher.config.loading import load, to_yaml
from launcher.config.proposed_commands import filled
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, events_of, make_run_folder, write_whole
from launcher.core.terminal import visible
from launcher.supervision.failure_causes import cause_of, last_line
from launcher.supervision.rank_group import End, is_echo, run_reporting
from launcher.supervision.rank_processes import heartbeat_board_of
from launcher.supervision.run import DONE, FAILED, REFUSED, STOPPED, absolute
from parallel.errors import InputError

NAMES = {  # what torchrun and srun call the same things
    "rank": ("RANK", "SLURM_PROCID"),
    "world": ("WORLD_SIZE", "SLURM_NTASKS"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID"),
    "local_world": ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"),
}

PER_NODE = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")  # what SLURM_NTASKS_PER_NODE, if asked for, may not be


def place_from(environment: Mapping[str, str]) -> dict[str, int]:
    """Rank, world, local_rank and local_world from what the starter set.

    Raises:
        InputError: nobody set them.
    """
    found = {}
    of_srun = _tasks_here(environment)
    for key, names in NAMES.items():
        value = next((environment[n] for n in names if n in environment), None)
        if key == "local_world" and of_srun and names[0] not in environment:
            value = of_srun
        if value is None or not value.isdigit():
            raise InputError(
                "launcher.worker is started once per rank, with its rank in the environment",
                f"{' and '.join(names)} are not set",
                "torchrun --nproc-per-node 2 -m launcher.worker RUN.yaml, or: longreel train RUN.yaml",
            )
        found[key] = int(value)
    return found


def _tasks_here(environment: Mapping[str, str]) -> str | None:
    """What srun started on this node, from "8(x2),3" for eight on each of two nodes and three on the last."""
    told = next((environment[n] for n in PER_NODE if n in environment), "")
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", told):
        counts += [count] * int(times or 1)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else None


def main(arguments: list[str]) -> int:
    """Run one rank and end this process with its exit code; gives the code if nothing was run."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        if not arguments:
            raise InputError("launcher.worker takes a run", "no argument", "launcher.worker RUN.yaml [key=value ...]")
        place = place_from(os.environ)
        config = absolute(load(Path(arguments[0]), arguments[1:]))
        mesh = config.mesh.mesh()
        if mesh.ranks != place["world"]:
            raise InputError(
                "a mesh has as many ranks as were started",
                f"{mesh} = {mesh.ranks} ranks, {place['world']} started",
                f"start {mesh.ranks}, or change mesh.replica, mesh.ring or mesh.ulysses",
            )
        make_run_folder(RunFolder(config.out))
    except InputError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return REFUSED
    if place["rank"] == 0:
        write_whole(RunFolder(config.out).config, to_yaml(config).encode())
        RunFolder(config.out).record("start", steps=config.steps, mesh=str(mesh))

    def work() -> tuple[int, bool]:
        from launcher.training.loop import run
        from launcher.training.rendezvous import RankPlace

        address = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '29500')}"
        outcome = run(config, RankPlace(**place, address=address), asked.is_set, heartbeat)
        return outcome.step, outcome.stopped

    def finish(end: End) -> None:
        if end.message:
            if said := tell(config, end):
                print(visible(said), file=sys.stderr)
        elif place["rank"] == 0:
            RunFolder(config.out).record("stop" if end.how == "stopped" else "done", step=end.step)
            print(visible(f"{config.out}: {end.how} at step {end.step}"))
        leave({"done": DONE, "stopped": STOPPED, "refused": REFUSED}.get(end.how, FAILED))

    heartbeat = heartbeat_board_of(config, place["rank"], 0)
    run_reporting(place["rank"], work, heartbeat, finish)
    raise AssertionError("the process has ended")


def leave(code: int) -> NoReturn:
    """End this process at once: DeepSpeed and gloo sometimes abort at interpreter exit, after the work is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tell(config: RunConfig, end: End) -> str:
    """Record why this rank failed, for `longreel why`; gives what to print.

    Nobody sees these ranks through, so they share the record: the first that fails in some way tells it, the others of
    this start that fail in the same way, or only lost their peers, have nothing to add. A traceback is shown of what
    nobody foresaw.
    """
    if is_echo(end):
        return ""
    folder, cause, reason = RunFolder(config.out), cause_of(end, config=config), last_line(end)
    with open(folder.events, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        told: list[Any] = []
        for event in events_of(folder):
            if event["event"] == "start":
                told = []
            elif event["event"] == "failure":
                told.append(event.get("reason"))
        if reason in told:
            return ""
        folder.record(
            "failure", rank=end.rank, host=socket.gethostname(), pid=os.getpid(), how=end.how, cause=cause.kind,
            step=end.step, phase=end.phase, reason=reason, words=cause.words, remedy=cause.remedy,
            commands=cause.commands, trace=end.message,
        )  # fmt: skip
    if end.refusal is not None:
        rule, value, remedy = end.refusal
        return f"error: {InputError(rule, value, filled(remedy, config))}"
    if cause.kind == "exception":
        return end.message
    typed = "".join(f"\n          {command}" for command in cause.commands)
    return f"rank {end.rank} {cause.words}\n  remedy: {cause.remedy}{typed}"


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
