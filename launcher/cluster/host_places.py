"""The hosts of a run's ranks, what was last heard of each, and how one that does not answer is asked from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.cluster.placement import Placement
from launcher.cluster.ray_host import spy

LATE_SECONDS = 3.0  # after which a host that gave no look is asked after
STACK_SECONDS = 20.0
AWAY = "its machine does not answer: it died, or the link to it is cut"


@dataclass
class HostPlace:
    """A host, and what was last heard of it.

    Attributes:
        pids: of its ranks.
        pending: the look that was asked for.
        heard: when it last gave one.
        lost: it will give no more.
    """

    actor: Any
    node: str
    name: str
    ranks: list[int]
    pids: dict[int, int]
    pending: Any = None
    heard: float = 0.0
    lost: bool = False


def stacks_of(
    ray: Any, placement: Placement, places: Sequence[HostPlace], ranks: Sequence[int], away: Callable[[HostPlace], bool]
) -> dict[int, str]:
    """Where the code of ranks stands, or why nobody knows.

    Args:
        ray: the module, connected.
        placement: where a task can be sent to.
        places: of all ranks.
        ranks: that are asked after.
        away: whether the machine of a place does not answer.
    """
    asked: dict[Any, tuple[HostPlace, list[int]]] = {}
    told: dict[int, str] = {}
    for place in places:
        mine = [rank for rank in place.ranks if rank in ranks]
        if away(place):
            told.update(dict.fromkeys(mine, AWAY))
        elif time.monotonic() - place.heard < LATE_SECONDS:
            asked[place.actor.stacks.remote(mine)] = place, mine
        else:
            pids = {rank: place.pids[rank] for rank in mine}
            asked[ray.remote(spy).options(**placement.beside(place.node)).remote(pids)] = place, mine
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=STACK_SECONDS) if asked else ([], [])
    for answer in ready:
        place, mine = asked[answer]
        try:
            told.update(ray.get(answer))
        except ray.exceptions.RayError as error:
            told.update(dict.fromkeys(mine, words_of(error)))
    told.update({rank: f"no answer in {STACK_SECONDS:g} s" for answer in late for rank in asked[answer][1]})
    return told


def words_of(error: Exception) -> str:
    """What Ray says, without the many causes that it thinks of."""
    said = " ".join(str(error).split())
    return said.rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0][:500]
