"""Connections to Ray: embedded in this machine, or to a cluster, for as long as a job or a command needs one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parallel.errors import InputError

CONNECT_SECONDS = 10.0
OBJECT_BYTES = 1 << 30  # for results on their way, in an embedded Ray; what is more goes to disk
TOKEN_FILE = "~/.ray/auth_token"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """As `connect`, until the block ends."""
    ray = connect(address, cpus)
    try:
        yield ray
    finally:
        ray.shutdown()


def connect(address: str | None, cpus: int, object_bytes: int = OBJECT_BYTES) -> Any:
    """The module `ray`, connected; `ray.shutdown()` ends it.

    Args:
        address: host:port of a cluster's head; None starts an embedded Ray, which listens on loopback only.
        cpus: that an embedded Ray has to give.
        object_bytes: of its object store.

    Raises:
        InputError: no Ray head answers there.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "namespace": "longreel"}
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # "no cluster": listen on loopback only, as on macOS
        os.environ.setdefault("RAY_enable_worker_prestart", "0")  # idle workers would take our cores
        embedded = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        settings.update(embedded, object_store_memory=object_bytes)
    else:
        check_address(address)
        os.environ.update(use_token(os.environ))
        settings.update(address=address)
    import ray

    # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. Ray's
    # own processes and the ranks inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(**settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ray


def check_address(address: str, seconds: float = CONNECT_SECONDS) -> None:
    """Make sure that a Ray head answers at host:port, which `ray.init` itself would wait minutes for.

    Raises:
        InputError: it is no address, nobody listens, or what listens is no Ray head.
    """
    remedy = "start one with: ray start --head --port=6379, or leave --address out for an embedded Ray"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError("the address of a Ray head is host:port", address, remedy)
    try:
        socket.create_connection((host, int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        raise InputError("a Ray head answers at --address", f"{address}: {error}", remedy) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2 * seconds, env=use_token(os.environ))
    except subprocess.TimeoutExpired:
        found = f"{address}: something listens, but gives no Ray answer within {2 * seconds:g} s"
        raise InputError("a Ray head answers at --address", found, remedy) from None
    if answer.returncode != 0 and "token" in answer.stderr.lower():
        raise InputError(
            "a cluster with token authentication is given its token",
            f"{address}: refused ours, or we have none",
            f"copy {TOKEN_FILE} from the head to this machine and every node, or name it in RAY_AUTH_TOKEN_PATH",
        )
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        raise InputError("a Ray head answers at --address", f"{address}: {reason}", remedy)


def use_token(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Ray's client shows its token, if there is one.

    `ray start --head` asks for the token that an earlier `ray.init()` wrote to the home folder; clients do not show it
    unless they are told to. A cluster that asks for none does not mind.
    """
    has_token = "RAY_AUTH_TOKEN" in environment or "RAY_AUTH_TOKEN_PATH" in environment
    if "RAY_AUTH_MODE" not in environment and (has_token or Path(TOKEN_FILE).expanduser().exists()):
        return {**environment, "RAY_AUTH_MODE": "token"}
    return dict(environment)
