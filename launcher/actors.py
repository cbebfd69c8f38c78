"""Ranks as Ray actors in a placement group: embedded in this machine by default, or on a cluster.

Ray places, starts and watches them; restarting and resuming is ours (`train.py`), because the resume point must be a
scan of our own commits. One bundle holds the ranks of one ulysses group, so they share a node; rings cross nodes. Ray
Train is not used: it takes 9 to 17 s more to the first step, and its elastic mode knows no layout.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

from launcher.cluster import connect
from launcher.config import RunConfig
from launcher.hardware import cores, gpus
from launcher.processes import GRACE_SECONDS
from launcher.ranks import End, Where, run_reporting
from parallel.errors import InputError

OBJECT_BYTES = 128 << 20  # ranks send each other nothing by Ray's object store
PLACE_SECONDS = 60.0


class ActorRanks:
    """See `Ranks`.

    Args:
        address: of a running cluster's head, host:port; None starts an embedded Ray on this machine.
        ranks: that will be started, which an embedded Ray makes room for.
    """

    def __init__(self, address: str | None, ranks: int) -> None:
        self.ray, self.address = connect(address, max(ranks, cores()), OBJECT_BYTES), address
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
