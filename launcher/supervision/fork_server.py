"""How processes for ranks are made here, without importing torch: who wants ranks should not wait to ask for them.

On CPU they are forked from a server that loads torch and DeepSpeed once; with a GPU they are spawned, because CUDA does
not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import BaseContext
from pathlib import Path

from launcher.core.hardware import Device, gpus

PRELOAD = [
    "torch._dynamo",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # what initialize() imports, for two to four seconds
    "deepspeed.runtime.zero.stage3",
    "launcher.training.loop",
]


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
    from multiprocessing.forkserver import ensure_running

    # The server of Python 3.11 looks for what it loads in PYTHONPATH and the working folder alone. In a worker of Ray
    # neither is ours, and it would load an installed Longreel instead of the one that Ray brought.
    paths = [str(Path(__file__).resolve().parent.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. What is
    # blocked stays blocked in the server and in the ranks that it forks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server
