"""A connection to Ray for as long as a command needs one: embedded in this machine, or to a cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OBJECT_BYTES = 1 << 30  # for results on their way, in an embedded Ray; what is more goes to disk


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """The module `ray`, connected.

    Args:
        address: host:port of a cluster's head; None starts an embedded Ray, which listens on loopback only.
        cpus: that an embedded Ray has to give.

    Raises:
        InputError: no Ray head answers there.
    """
    from launcher.actors import QUIET, check_address, use_token

    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "namespace": "longreel"}
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # "no cluster": listen on loopback only, as on macOS
        os.environ.setdefault("RAY_enable_worker_prestart", "0")  # idle workers would take our cores
        embedded = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        settings.update(embedded, object_store_memory=OBJECT_BYTES)
    else:
        check_address(address)
        os.environ.update(use_token(os.environ))
        settings.update(address=address)
    import ray

    # who stops a command may signal all of its processes: only this one listens; the others inherit the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(**settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield ray
    finally:
        ray.shutdown()
