"""How processes for ranks are made here, without importing torch: who wants ranks should not wait to ask for them.

On CPU they are forked from a server that loads torch and DeepSpeed once; with a GPU they are spawned, because CUDA does
not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from launcher.config.run_yaml import parse_yaml, read_run
from launcher.core.hardware import Device, gpus
from parallel.errors import InputError

PRELOAD = [
    "torch._dynamo",
    "parallel.zero.preloaded_deepspeed",
    "launcher.training.loop",
]

USUAL_STAGE = 2


def context(stage: int, wanted: Device = "auto") -> BaseContext:
    """How processes are made here; the fork server starts to load its modules at once.

    Args:
        stage: of ZeRO, which decides what is loaded.
        wanted: the device of the ranks.
    """
    if gpus(wanted):
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    server.set_forkserver_preload(PRELOAD if stage else [m for m in PRELOAD if "deepspeed" not in m])
    # The server of Python 3.11 looks for what it loads in PYTHONPATH and the working folder alone. In a worker of Ray
    # neither is ours, and it would load an installed Longreel instead of the one that Ray brought.
    paths = [str(Path(__file__).resolve().parent.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. What is
    # blocked stays blocked in the server and in the ranks that it forks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


@contextmanager
def loading(run: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Let the server load its modules while the block checks a run, which itself takes seconds to load what it needs.

    If the block refuses the run, a server that was started for it is ended: whoever reads what a command prints would
    wait until it had loaded everything.
    """
    server: Any = multiprocessing.forkserver._forkserver
    before = server._forkserver_pid
    context(*asked(run, overrides))
    try:
        yield
    except InputError:
        if server._forkserver_pid != before:
            os.kill(server._forkserver_pid, signal.SIGKILL)
            server._stop()
        raise


def asked(run: Path, overrides: Sequence[str]) -> tuple[int, Device]:
    """Stage of ZeRO and device of a run, read from its text alone; where that is not clear, what most runs have.

    Raises:
        InputError: the run is no YAML.
    """
    settings = parse_yaml(read_run(run), str(run))[0]
    zero = settings.get("zero") if isinstance(settings, dict) else None
    found = {
        "zero.stage": zero.get("stage") if isinstance(zero, dict) else None,
        "device": settings.get("device") if isinstance(settings, dict) else None,
    }
    for override in overrides:
        key, _, value = override.partition("=")
        if key in found:
            found[key] = parse_yaml(value, override)[0]
    stage = found["zero.stage"]
    return stage if isinstance(stage, int) else USUAL_STAGE, "cpu" if found["device"] == "cpu" else "auto"
