"""Where on a Ray cluster there is room for ranks, and whether a machine answers, which Ray itself learns late.

Ray takes a machine for alive until it has missed health checks for a quarter of a minute or more. Its raylet listens on
a port, and connecting to that tells in milliseconds, or after a second of silence. Machines that do not answer get no
ranks.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from typing import Any, Literal

from launcher.supervision.rank_group import NoCapacityError, Wait
from parallel.mesh import Mesh

PROBE_SECONDS = 1.0
FRESH_SECONDS = 2.0  # for which a probe is good
PLACE_SECONDS = 10.0  # for Ray to place a run for which there is room
WAIT_SECONDS = 1.0  # between two looks at a queue
NODE_LABEL = "ray.io/node-id"
Trouble = Literal["", "node", "link"]


class Placement:
    """The machines of a cluster, and the placement group that holds a run's places on them.

    Args:
        ray: the module, connected.
        embedded: Ray runs on this machine alone.
        gpus: a rank takes a GPU too.
    """

    def __init__(self, ray: Any, embedded: bool, gpus: bool) -> None:
        self.ray, self.embedded, self.gpus = ray, embedded, gpus
        self.group: Any = None
        self.bundles: list[str] = []  # the node of each
        self.ulysses = 1
        self.shunned: set[str] = set()
        self._asked: tuple[Mesh, frozenset[str]] | None = None  # what the group was made for
        self._probed: dict[str, tuple[float, Trouble]] = {}

    def hold(self, mesh: Mesh) -> Wait | None:
        """Hold places for a mesh, or take a place in Ray's queue; None once they are held.

        Raises:
            NoCapacityError: there are too few, whoever holds them.
        """
        count, kinds, nodes = mesh.ranks // mesh.ulysses, self._kinds(), self._answering()
        self._refuse_too_large(mesh, nodes)
        away = frozenset(n["NodeID"] for n in self.ray.nodes() if n["Alive"]) - nodes.keys()
        if (mesh, away) != self._asked:
            self.give_back()
            self._asked = mesh, away
            bundles = [{kind: float(mesh.ulysses) for kind in kinds}] * count
            selector = [{NODE_LABEL: f"!in({','.join(sorted(away))})"}] * count if away else None
            self.group = self.ray.util.placement_group(bundles, strategy="PACK", bundle_label_selector=selector)
        free = self._free()
        has_room = sum(self._slots(free.get(node, {})) // mesh.ulysses for node in nodes) >= count
        if not self.group.wait(PLACE_SECONDS if has_room else WAIT_SECONDS):
            left = {kind: int(sum(free.get(node, {}).get(kind, 0) for node in nodes)) for kind in kinds}
            total = {kind: int(sum(node["Resources"].get(kind, 0) for node in nodes.values())) for kind in kinds}
            return Wait(dict.fromkeys(kinds, mesh.ranks), left, total)
        held = self.ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        self.bundles, self.ulysses = [held[index] for index in range(count)], mesh.ulysses
        return None

    def give_back(self) -> None:
        """Hold nothing, and wait for nothing."""
        if self.group is not None:
            self.ray.util.remove_placement_group(self.group)
        self.group, self.bundles, self._asked = None, [], None

    def spot(self, bundle: int) -> Any:
        """Where an actor goes that shall be in this bundle."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)

    def beside(self, node: str) -> dict[str, Any]:
        """Options of a task that runs on a node, whatever else does."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {
            "num_cpus": 0,
            "max_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }

    def capacities(self, in_all: bool) -> tuple[int, ...]:
        """See `Ranks`."""
        free, held, nodes = self._free(), Counter(self.bundles), self._answering()
        if in_all:
            return tuple(self._slots(node["Resources"]) for node in nodes.values())
        return tuple(self._slots(free.get(node, {})) + held[node] * self.ulysses for node in nodes)

    def trouble(self, node: str) -> Trouble:
        """Why a machine cannot be used: "node" if Ray is gone from it, "link" if nothing answers; empty if it can."""
        when, found = self._probed.get(node, (-FRESH_SECONDS, ""))
        if time.monotonic() - when < FRESH_SECONDS:
            return found
        known = next((n for n in self.ray.nodes() if n["NodeID"] == node), None)
        found = (
            "node" if not known or not known["Alive"] else _probe(known["NodeManagerAddress"], known["NodeManagerPort"])
        )
        self._probed[node] = (time.monotonic(), found)
        return found

    def _refuse_too_large(self, mesh: Mesh, nodes: dict[str, dict[str, Any]]) -> None:
        count, kinds = mesh.ranks // mesh.ulysses, self._kinds()
        total = {kind: sum(node["Resources"].get(kind, 0) for node in nodes.values()) for kind in kinds}
        short = [f"{total[kind]:g} {kind}" for kind in kinds if total[kind] < mesh.ranks]
        if short:
            raise NoCapacityError(
                f"a mesh of {mesh} takes {' and '.join(f'{mesh.ranks} {kind}' for kind in kinds)}",
                f"the cluster has {', '.join(short)}",
                "a smaller mesh, or more nodes",
            )
        if sum(self._slots(node["Resources"]) // mesh.ulysses for node in nodes.values()) < count:
            sizes = ", ".join(" ".join(f"{n['Resources'].get(k, 0):g} {k}" for k in kinds) for n in nodes.values())
            raise NoCapacityError(
                f"a ulysses group of {mesh.ulysses} ranks lies on one node, and there is room for {count} of them",
                f"nodes of {sizes}",
                "fewer mesh.ulysses and more mesh.ring, or larger nodes",
            )

    def _slots(self, resources: dict[str, float]) -> int:
        return int(min(resources.get(kind, 0) for kind in self._kinds()))

    def _free(self) -> dict[str, dict[str, float]]:
        from ray._private.state import available_resources_per_node  # no public call tells it by node

        found: dict[str, dict[str, float]] = available_resources_per_node()
        return found

    def _answering(self) -> dict[str, dict[str, Any]]:
        alive = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
        if self.embedded:
            return alive
        return {n: node for n, node in alive.items() if n not in self.shunned and not self.trouble(n)}

    def _kinds(self) -> tuple[str, ...]:
        return ("CPU", "GPU") if self.gpus else ("CPU",)


def _probe(address: str, port: int) -> Trouble:
    try:
        socket.create_connection((address, port), timeout=PROBE_SECONDS).close()
    except ConnectionRefusedError:
        return "node"
    except OSError:  # no route, no answer
        return "link"
    return ""
