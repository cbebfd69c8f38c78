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

from launcher.ranks import NoRoomError
from parallel.mesh import Mesh

PROBE_SECONDS = 1.0
FRESH_SECONDS = 2.0  # for which a probe is good
PLACE_SECONDS = 60.0
NODE_LABEL = "ray.io/node-id"
Trouble = Literal["", "node", "link"]


class Nodes:
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
        self._probed: dict[str, tuple[float, Trouble]] = {}

    def take(self, mesh: Mesh, seconds: float = PLACE_SECONDS) -> list[str]:
        """Hold places for a mesh; gives the node of each ulysses group.

        Raises:
            NoRoomError: there are too few.
        """
        count, kinds = mesh.ranks // mesh.ulysses, self._kinds()
        bundle = {kind: float(mesh.ulysses) for kind in kinds}
        nodes = self._answering()
        total = {kind: sum(node["Resources"].get(kind, 0) for node in nodes.values()) for kind in kinds}
        short = [f"{total[kind]:g} {kind}" for kind in kinds if total[kind] < bundle[kind] * count]
        if short:
            raise NoRoomError(
                f"a mesh of {mesh} takes {' and '.join(f'{n * count:g} {kind}' for kind, n in bundle.items())}",
                f"the cluster has {', '.join(short)}",
                "a smaller mesh, or more nodes",
            )
        away = [node["NodeID"] for node in self.ray.nodes() if node["Alive"] and node["NodeID"] not in nodes]
        selector = [{NODE_LABEL: f"!in({','.join(away)})"}] * count if away else None
        self.group = self.ray.util.placement_group([bundle] * count, strategy="PACK", bundle_label_selector=selector)
        if not self.group.wait(seconds):
            self.give_back()
            sizes = ", ".join(" ".join(f"{n['Resources'].get(k, 0):g} {k}" for k in kinds) for n in nodes.values())
            raise NoRoomError(
                f"a ulysses group of {mesh.ulysses} ranks lies on one node, and there is room for {count} of them",
                f"not placed within {seconds:g} s on nodes of {sizes}",
                "wait for other jobs to end, or fewer mesh.ulysses and more mesh.ring",
            )
        held = self.ray.util.placement_group_table(self.group)["bundles_to_node_id"]
        self.bundles, self.ulysses = [held[index] for index in range(count)], mesh.ulysses
        return self.bundles

    def give_back(self) -> None:
        """Hold nothing."""
        if self.group is not None:
            self.ray.util.remove_placement_group(self.group)
        self.group, self.bundles = None, []

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

    def rooms(self) -> tuple[int, ...]:
        """Ranks that each node has room for, those included that are held."""
        from ray._private.state import available_resources_per_node  # no public call tells it by node

        free, held = available_resources_per_node(), Counter(self.bundles)
        found = []
        for node in self._answering():
            now = free.get(node, {})
            found.append(int(min(now.get(kind, 0) for kind in self._kinds())) + held[node] * self.ulysses)
        return tuple(found)

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
