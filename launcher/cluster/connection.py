"""Connections to Ray: embedded in this machine, or to a cluster, for as long as a job or a command needs one.

A head that is gone is told within half a minute, before a connection (`check_address`) and during one (`HeadWatch`).
Ray itself waits for minutes before, and during one it says nothing for 60 s and then aborts the process.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from launcher.cluster.ray_token import START_HEAD, TOKEN_FILE, close_token, has_token, own_token
from launcher.core.terminal import visible
from parallel.errors import InputError

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 20.0  # for Ray's own health check, which imports Ray first
HEAD_SECONDS = 20.0  # of silence, after which a head is gone
KNOCK_SECONDS = 2.0
OBJECT_BYTES = 1 << 30  # for results on their way, in an embedded Ray; what is more goes to disk
MOST_ADDRESS = 1024  # bytes of a file with an address
HERE_FILE = "/tmp/ray/ray_current_cluster"  # in which a node writes where its head is
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "GRPC_DNS_RESOLVER": "native",  # names as this machine knows them; gRPC's own way needs a DNS server
}


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
        address: host:port of a cluster's head, or "auto" for that of this node; None starts an embedded Ray, which
            listens on loopback only.
        cpus: that an embedded Ray has to give.
        object_bytes: of its object store.

    Raises:
        InputError: no Ray head answers there, or this machine is no node of its cluster.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    if told := close_token(os.environ):
        print(visible(told), file=sys.stderr, flush=True)
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "namespace": "longreel"}
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # "no cluster": listen on loopback only, as on macOS
        os.environ.setdefault("RAY_enable_worker_prestart", "0")  # idle workers would take our cores
        os.environ.update(own_token(os.environ))
        embedded = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        settings.update(embedded, object_store_memory=object_bytes)
    else:
        address = resolved(address)
        check_address(address)
        os.environ.update(use_token(os.environ))
        settings.update(address=address)
    import ray

    # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. Ray's
    # own processes and the ranks inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError) as error:
        if address is None:
            raise
        raise _no_member(address, str(error)) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ray


def resolved(address: str) -> str:
    """host:port of a head; "auto" is that of the cluster that this process runs in as a job, or this machine as a node.

    Raises:
        InputError: "auto" where there is none.
    """
    if address != "auto":
        return address
    found = os.environ.get("RAY_ADDRESS", "")  # a submitted job is told its head by Ray
    if not found or found == "auto":
        found = _said_here()
    if not found:
        remedy = "ray start --address HEAD:6379 first, or give --address HEAD:6379, or leave it out for an embedded Ray"
        raise InputError("--address auto is for a node of a cluster", "no Ray node runs on this machine", remedy)
    return found


def _said_here() -> str:
    """What the node of this machine says of its head; "" if there is none.

    Raises:
        InputError: another user wrote it: the folder is open to all, and the token would go where it points.
    """
    try:
        file = os.open(HERE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(file, "rb") as opened:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return ""
        if found.st_uid not in (0, os.geteuid()):
            wrote = f"{HERE_FILE} is a file of user {found.st_uid}"
            raise InputError("--address auto is for a node that you or root started", wrote, "give --address HEAD:6379")
        return opened.read(MOST_ADDRESS).decode(errors="replace").strip()


def check_address(address: str, seconds: float = CONNECT_SECONDS) -> None:
    """Make sure that a Ray head answers at host:port, which `ray.init` itself would wait minutes for.

    Args:
        address: host:port, or "auto".
        seconds: for a connection.

    Raises:
        InputError: it is no address, nobody listens, or what listens is no Ray head. After half a minute at most.
    """
    address = resolved(address)
    remedy = f"start one with: {START_HEAD}; or leave --address out for an embedded Ray"
    host, port = _host_port(address, remedy)
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        raise InputError("a Ray head answers at --address", f"{address}: {error}", remedy) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"{host}:{port}"]
    try:
        environment = {**SETTINGS, **use_token(os.environ)}
        answer = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        found = f"{address}: something listens, but gives no Ray answer within {HEALTH_SECONDS:g} s"
        raise InputError("a Ray head answers at --address", found, remedy) from None
    if answer.returncode != 0 and "token" in answer.stderr.lower():
        raise no_token(address)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        raise InputError("a Ray head answers at --address", f"{address}: {reason}", remedy)


def use_token(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Ray's client shows its token, if there is one.

    `ray start --head` asks for the token that an earlier `ray.init()` wrote to the home folder; clients do not show it
    unless they are told to. A cluster that asks for none does not mind.
    """
    if "RAY_AUTH_MODE" not in environment and has_token(environment):
        return {**environment, "RAY_AUTH_MODE": "token"}
    return dict(environment)


def asks_for_token(address: str) -> bool:
    """Whether the Ray head at host:port, or at "auto", turns away whoever shows no token. Takes a second or two.

    A head that does not answer counts as one that asks: `check_address` says what is wrong with it.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", resolved(address)]
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    stranger |= {**SETTINGS, "RAY_AUTH_MODE": "disabled"}
    try:
        answer = subprocess.run(command, capture_output=True, timeout=HEALTH_SECONDS, env=stranger)
    except subprocess.TimeoutExpired:
        return True
    return answer.returncode != 0


def no_token(address: str) -> InputError:
    """A cluster that asks for a token did not get it."""
    return InputError(
        "a cluster with token authentication is given its token",
        f"{address}: refused ours, or we have none",
        f"copy {TOKEN_FILE} from the head to this machine and every node, or name it in RAY_AUTH_TOKEN_PATH",
    )


def head_gone(address: str, seconds: float) -> InputError:
    """A head that answered before does not any more."""
    return InputError(
        "the head of a cluster answers as long as a run goes on",
        f"{address}: not for {seconds:.0f} s",
        "look at that machine and the way to it; once it is back, the same command goes on from the last checkpoint",
    )


class HeadWatch:
    """Knocks at a head's port while a connection lasts; `silent` tells for how long nobody has answered.

    Args:
        address: host:port.
        every: seconds between two knocks.
    """

    def __init__(self, address: str, every: float = KNOCK_SECONDS) -> None:
        self.place, self.every = _host_port(address, "host:port"), every
        self.heard = time.monotonic()
        self.closed = threading.Event()
        threading.Thread(target=self._knock, name="head-watch", daemon=True).start()

    @property
    def silent(self) -> float:
        """Seconds since the head last answered."""
        return time.monotonic() - self.heard

    def close(self) -> None:
        """No more knocking."""
        self.closed.set()

    def _knock(self) -> None:
        while not self.closed.wait(self.every):
            with suppress(OSError):
                socket.create_connection(self.place, timeout=self.every).close()
                self.heard = time.monotonic()


def _host_port(address: str, remedy: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError("the address of a Ray head is host:port", address, remedy)
    return host, int(port)


def _no_member(address: str, said: str) -> InputError:
    reason = " ".join(said.split())[:300]
    remedy = "longreel submit RUN.yaml --address http://HEAD:8265 from any machine, or: ray start --address here first"
    return InputError("ranks are started from a node of the cluster", f"{address}: {reason}", remedy)
