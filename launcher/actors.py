"""Ranks as Ray actors in a placement group: embedded in this machine by default, or on a cluster.

Ray places, starts and watches them; restarting and resuming is ours (`train.py`), because the resume point must be a
scan of our own commits. One bundle holds the ranks of one ulysses group, so they share a node; rings cross nodes. Ray
Train is not used: it takes 9 to 17 s more to the first step, and its elastic mode knows no layout.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config import RunConfig
from launcher.hardware import cores, gpus
from launcher.processes import GRACE_SECONDS
from launcher.ranks import End, Where, run_reporting
from parallel.errors import InputError

CONNECT_SECONDS = 10.0
PLACE_SECONDS = 60.0
TOKEN_FILE = "~/.ray/auth_token"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}


class ActorRanks:
    """See `Ranks`.

    Args:
        address: of a running cluster's head, host:port; None starts an embedded Ray on this machine.
        ranks: that will be started, which an embedded Ray makes room for.
    """

    def __init__(self, address: str | None, ranks: int) -> None:
        os.environ.update({k: v for k, v in QUIET.items() if k not in os.environ})
        if address is None:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # "no cluster": listen on loopback only, as on macOS
        else:
            check_address(address)
            os.environ.update(use_token(os.environ))
        import ray

        self.ray, self.address = ray, address
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "namespace": "longreel"}
        if address is None:
            settings.update(
                address="local",
                num_cpus=max(ranks, cores()),
                include_dashboard=False,
                object_store_memory=128 << 20,
            )
            os.environ.setdefault("RAY_enable_worker_prestart", "0")  # idle workers would take our cores
        else:
            settings.update(address=address)
        # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. Ray's
        # own processes and the ranks inherit the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            ray.init(**settings)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.group: Any = None
        self.actors: list[Any] = []
        self.pending: dict[Any, int] = {}
        self.ends: dict[int, End] = {}
        self.first_failure = float("inf")

    def start(self, config: RunConfig) -> list[Where]:
        """See `Ranks`."""
        mesh = config.mesh.mesh()
        self._place(mesh.ranks // mesh.ulysses, mesh.ulysses, str(mesh))
        remote = self.ray.remote(_Rank)
        local = {"num_cpus": 1, "num_gpus": 1 if self._uses_gpus() else 0, "max_concurrency": 3}
        self.actors = [
            remote.options(**local, **self._spot(rank // mesh.ulysses)).remote() for rank in range(mesh.ranks)
        ]
        found: list[tuple[str, int]] = self.ray.get([a.where.remote() for a in self.actors])
        nodes = [node for node, _ in found]
        address = self.ray.get(self.actors[0].meeting_point.remote(self.address is None))
        self.ends, self.pending, self.first_failure = {}, {}, float("inf")
        for rank, actor in enumerate(self.actors):
            local_rank, local_world = nodes[:rank].count(nodes[rank]), nodes.count(nodes[rank])
            self.pending[actor.run.remote(config, rank, mesh.ranks, local_rank, local_world, address)] = rank
        return [Where(rank, node, pid) for rank, (node, pid) in enumerate(found)]

    def poll(self, seconds: float) -> list[End] | None:
        """See `Ranks`."""
        ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=seconds) if self.pending else ([], [])
        for reference in ready:
            rank = self.pending.pop(reference)
            try:
                self.ends[rank] = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                said = " ".join(str(error).split())
                self.ends[rank] = End(rank, "died", message=said.rpartition("Worker exit detail: ")[2])
            if self.ends[rank].how not in ("done", "stopped"):
                self.first_failure = min(self.first_failure, time.monotonic())
        if not self.pending or time.monotonic() > self.first_failure + GRACE_SECONDS:
            return [self.ends[r] for r in sorted(self.ends)]
        return None

    def stop(self) -> None:
        """See `Ranks`."""
        for actor in self.actors:
            actor.stop.remote()

    def kill(self) -> None:
        """See `Ranks`."""
        for actor in self.actors:
            self.ray.kill(actor, no_restart=True)
        if self.group is not None:
            self.ray.util.remove_placement_group(self.group)
        self.actors, self.pending, self.group = [], {}, None

    def close(self) -> None:
        """See `Ranks`."""
        self.kill()
        self.ray.shutdown()

    def _place(self, bundles: int, ulysses: int, mesh: str) -> None:
        bundle = {"CPU": float(ulysses)}
        if self._uses_gpus():
            bundle["GPU"] = float(ulysses)
        total = self.ray.cluster_resources()
        short = [f"{total.get(k, 0):g} {k}" for k, n in bundle.items() if total.get(k, 0) < n * bundles]
        if short:
            raise InputError(
                f"a mesh of {mesh} takes {' and '.join(f'{n * bundles:g} {k}' for k, n in bundle.items())}",
                f"the cluster has {', '.join(short)}",
                "a smaller mesh, or more nodes",
            )
        self.group = self.ray.util.placement_group([bundle] * bundles, strategy="PACK")
        if not self.group.wait(PLACE_SECONDS):
            raise InputError(
                f"a ulysses group of {ulysses} ranks lies on one node, and there is room for {bundles} of them",
                f"not placed within {PLACE_SECONDS:g} s on nodes of {self._node_sizes()}",
                "wait for other jobs to end, or fewer mesh.ulysses and more mesh.ring",
            )

    def _spot(self, bundle: int) -> dict[str, Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        }

    def _uses_gpus(self) -> bool:
        return bool(gpus()) if self.address is None else self.ray.cluster_resources().get("GPU", 0) > 0

    def _node_sizes(self) -> str:
        alive = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        return ", ".join(f"{r.get('CPU', 0):g} CPU {r.get('GPU', 0):g} GPU" for r in alive)


class _Rank:
    """The actor of one rank."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def where(self) -> tuple[str, int]:
        """Node and process."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), os.getpid()

    def meeting_point(self, loopback: bool) -> str:
        """An address on this node that all ranks reach, and a port that is free now."""
        import ray

        host = "127.0.0.1" if loopback else ray.util.get_node_ip_address()
        with socket.socket() as s:
            s.bind((host, 0))
            return f"{host}:{s.getsockname()[1]}"

    def run(self, config: RunConfig, rank: int, world: int, local_rank: int, local_world: int, address: str) -> End:
        def work() -> tuple[int, bool]:
            from launcher.rank import RankPlace, run

            outcome = run(config, RankPlace(rank, world, local_rank, local_world, address), self.asked.is_set)
            return outcome.step, outcome.stopped

        return run_reporting(config, rank, work)

    def stop(self) -> None:
        self.asked.set()


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
