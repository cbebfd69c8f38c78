"""Ranks under Ray: embedded in this machine by default, or on a cluster.

Ray places them, tells of dead machines and ends them with the job; restarting and resuming is ours (`supervisor.py`),
because the resume point must be a scan of our own commits. One bundle holds the ranks of one ulysses group, so they
share a node; rings cross nodes. On each node an actor has the ranks as its children (`ray_host.py`). Ray Train is not
used: it takes 9 to 17 s more to the first step, and its elastic mode knows no layout.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from launcher.cluster.connection import HEAD_SECONDS, HeadWatch, connect, head_gone, resolved
from launcher.cluster.host_places import AWAY, LATE_SECONDS, HostPlace, stacks_of, words_of
from launcher.cluster.node_checks import alive, check_nodes
from launcher.cluster.placement import Placement
from launcher.cluster.rank_reports import RankReports
from launcher.cluster.ray_host import Host, HostReport, slay
from launcher.config.run_config import RunConfig
from launcher.core.hardware import Device, cores, gpus
from launcher.core.heartbeat import Heartbeat
from launcher.supervision.rank_group import (
    HOST,
    LINK,
    NODE,
    End,
    HeadGoneError,
    LostError,
    Seat,
    Wait,
    Where,
    is_bad,
    is_echo,
    settled,
)
from parallel.errors import InputError
from parallel.mesh import Mesh

OBJECT_BYTES = 128 << 20  # ranks send each other nothing by Ray's object store
START_SECONDS = 120.0  # for a host to start, which loads torch
ANSWER_SECONDS = 5.0  # for a host that is there already
LOOK_SECONDS = 1.0
KILL_SECONDS = 3.0
LEAST_LEASE = 30.0  # seconds after which a rank that is cut off from the launcher leaves
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
DEAF = "the Ray worker on its machine does not answer"


class ActorRanks:
    """See `Ranks`.

    Args:
        address: of a running cluster's head, host:port; None starts an embedded Ray on this machine.
        ranks: that will be started, which an embedded Ray makes room for.
        wanted: device of the ranks: with "cpu" no GPU is asked for.
    """

    def __init__(self, address: str | None, ranks: int, wanted: Device = "auto") -> None:
        self.wanted = wanted
        self.address, self.cpus = address, max(ranks, cores())
        self.ray: Any = None
        self.placement: Placement
        self.places: list[HostPlace] = []
        self.mesh: Mesh | None = None
        self.handles: list[int] = []  # of the ranks of an embedded Ray, for the day when Ray is gone
        self.known: set[str] = set()  # nodes that were looked at
        self.head: HeadWatch | None = None
        self.gone = False  # Ray itself: the head of the cluster, or what is embedded
        self._forget()
        self._connect()

    def place(self, config: RunConfig) -> Wait | None:
        """See `Ranks`."""
        if self.ray is None:
            self._connect()
        self._forget()
        self._look_after_head()
        mesh = config.mesh.mesh()
        with self._losing():
            self._look_at_nodes(config)
            if self.places and (mesh != self.mesh or not self._all_answer()):
                self._dismiss()
            return None if self.places else self.placement.hold(mesh)

    def start(self, config: RunConfig) -> list[Where]:
        """See `Ranks`."""
        mesh = config.mesh.mesh()
        with self._losing():
            if not self.places:
                self._make_hosts(mesh, config.zero.stage)
            return self._seat(config, mesh)

    def poll(self, seconds: float) -> list[End] | None:
        """See `Ranks`."""
        self._look_after_head()
        looks = self._ask()
        if looks:
            self.ray.wait(list(looks), num_returns=1, timeout=seconds)
            for ready in self.ray.wait(list(looks), num_returns=len(looks), timeout=0)[0]:
                self._take(looks[ready])
        else:
            time.sleep(seconds)
        self._look_after_ray()
        running = sum(len(place.ranks) for place in self.places)
        ends = self.reports.ends
        if not settled(ends, running, time.monotonic() - self.reports.first_failure):
            return None
        if all(is_echo(end) for end in ends if is_bad(end)):
            self._find_lost()
        return ends

    def heartbeats(self) -> dict[int, Heartbeat | None]:
        """See `Ranks`."""
        return self.reports.new_heartbeats([rank for place in self.places for rank in place.ranks])

    def last(self, rank: int) -> Heartbeat | None:
        """See `Ranks`."""
        return self.reports.last.get(rank)

    def state(self, rank: int) -> str:
        """See `Ranks`."""
        place = self._place_of(rank)
        if not place.lost and time.monotonic() - place.heard < LATE_SECONDS:
            return self.reports.states.get(rank, "unknown")
        return AWAY if self._away(place) else DEAF

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """See `Ranks`."""
        return stacks_of(self.ray, self.placement, self.places, ranks, self._away)

    def capacities(self, in_all: bool = False) -> tuple[int, ...] | None:
        """See `Ranks`."""
        return self.placement.capacities(in_all) if self.address is not None else None

    def kind(self) -> Literal["cuda", "cpu"]:
        """See `Ranks`."""
        return "cuda" if self.placement.gpus else "cpu"

    def stop(self) -> None:
        """See `Ranks`."""
        for place in self.places:
            place.actor.stop.remote()

    def kill(self) -> None:
        """See `Ranks`. Hosts stay, for the next attempt, if all of them did as they were told."""
        if self.gone:
            self._leave()
            return
        for place in self.places:
            place.actor.strike.remote()
        done = [place.actor.kill.remote() for place in self.places]
        try:
            self.ray.get(done, timeout=KILL_SECONDS)
        except self.ray.exceptions.RayError:  # of the first that is not there
            self._dismiss()
        self._forget()

    def close(self) -> None:
        """See `Ranks`."""
        self.kill()
        if self.ray is not None:
            self._dismiss()
            if self.address is None:  # its processes do not hear SIGTERM (`connect`): Ray would wait a second for each
                node = self.ray._private.worker._global_node
                end = node.kill_all_processes
                node.kill_all_processes = lambda **_: end(check_alive=False)
            self.ray.shutdown()
        if self.head is not None:
            self.head.close()

    def _connect(self) -> None:
        self.ray, self.gone = connect(self.address, self.cpus, OBJECT_BYTES), False
        if self.address is not None:
            self.head = HeadWatch(resolved(self.address))
        self.ray._private.worker._worker_logs_enabled = False  # what happened is told by events, and not twice
        seen = gpus() if self.address is None else self.ray.cluster_resources().get("GPU", 0)
        self.placement = Placement(self.ray, self.address is None, self.wanted != "cpu" and seen > 0)

    def _forget(self) -> None:
        """What the last attempt said."""
        self.reports = RankReports()
        for handle in self.handles:
            os.close(handle)
        self.handles = []
        for place in self.places:
            place.pending = None

    def _look_at_nodes(self, config: RunConfig) -> None:
        """Once for each node. If the run had begun before, a node that cannot be used is left out.

        Raises:
            InputError: at the first start, a node cannot be used.
        """
        if self.address is None:
            return
        try:
            self.known.update(check_nodes(self.ray, config, self.known | self.placement.shunned))
        except InputError:
            if not self.known:
                raise
            self.placement.shunned |= alive(self.ray).keys() - self.known

    def _all_answer(self) -> bool:
        try:
            self.ray.get([place.actor.where.remote() for place in self.places], timeout=ANSWER_SECONDS)
        except self.ray.exceptions.RayError:
            return False
        return bool(self.places)

    def _make_hosts(self, mesh: Mesh, stage: int) -> None:
        """One on each node; with GPUs one in each bundle, which then sees its own."""
        homes: dict[tuple[str, int], list[int]] = {}
        for bundle, node in enumerate(self.placement.bundles):
            homes.setdefault((node, bundle if self.placement.gpus else 0), []).append(bundle)
        remote, given = self.ray.remote(Host), (stage, os.getpid() if self.address is None else 0, self.wanted)
        takes = {"num_cpus": mesh.ulysses, "num_gpus": mesh.ulysses if self.placement.gpus else 0, "max_concurrency": 3}
        actors = [
            remote.options(**takes, scheduling_strategy=self.placement.spot(bundles[0])).remote(*given)
            for bundles in homes.values()
        ]
        told = self._answers([actor.where.remote() for actor in actors], [node for node, _ in homes])
        for actor, bundles, (node, name) in zip(actors, homes.values(), told, strict=True):
            ranks = [b * mesh.ulysses + i for b in bundles for i in range(mesh.ulysses)]
            self.places.append(HostPlace(actor, node, name, ranks, {}))
        self.mesh = mesh

    def _seat(self, config: RunConfig, mesh: Mesh) -> list[Where]:
        """Start the ranks."""
        first, embedded = self._place_of(0), self.address is None
        (address,) = self._answers([first.actor.rendezvous_address.remote(embedded)], [first.node])
        node_of = {rank: place.node for place in self.places for rank in place.ranks}
        nodes = [node_of[rank] for rank in range(mesh.ranks)]
        seats = [Seat(r, mesh.ranks, nodes[:r].count(nodes[r]), nodes.count(nodes[r]), address) for r in node_of]
        lease = None if embedded else max(LEAST_LEASE, 3 * config.restart.heartbeat_timeout_seconds)
        started = [p.actor.start.remote(config, [s for s in seats if s.rank in p.ranks], lease) for p in self.places]
        for place, pids in zip(self.places, self._answers(started, [p.node for p in self.places]), strict=True):
            place.pids, place.heard = pids, time.monotonic()
        found = [Where(rank, p.node, p.name, p.pids[rank]) for p in self.places for rank in p.ranks]
        if embedded:
            with suppress(OSError):  # one may have died already
                self.handles = [os.pidfd_open(where.pid) for where in found]
        return sorted(found, key=lambda where: where.rank)

    def _answers(self, asked: list[Any], nodes: list[str]) -> list[Any]:
        """Of hosts on these nodes. Ray alone would wait long for one whose machine was cut off meanwhile.

        Raises:
            LostError: one does not come.
        """
        deadline, waiting = time.monotonic() + START_SECONDS, asked
        while waiting and time.monotonic() < deadline:
            waiting = self.ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_SECONDS)[1]
            away = [node for answer, node in zip(asked, nodes, strict=True) if answer in waiting and self._gone(node)]
            if away:
                break
        if waiting:
            self._dismiss()
            raise LostError(AWAY if away else f"a Ray worker did not start within {START_SECONDS:g} s")
        found: list[Any] = self.ray.get(asked)
        return found

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """What goes wrong with Ray is a loss, after which another attempt may help."""
        try:
            yield
        except self.ray.exceptions.RayError as error:
            self._dismiss()
            raised = isinstance(error, self.ray.exceptions.RayTaskError) or "creation task" in str(error)
            raise LostError(words_of(error), COLOURS.sub("", str(error)) if raised else "") from None

    def _ask(self) -> dict[Any, HostPlace]:
        """Looks that are pending; hosts that gave theirs are asked again."""
        ended = self.reports.ended()
        for place in self.places:
            if place.pending is None and not place.lost and not ended.issuperset(place.ranks):
                place.pending = place.actor.look.remote(LOOK_SECONDS)
        return {place.pending: place for place in self.places if place.pending is not None}

    def _take(self, place: HostPlace) -> None:
        answer, place.pending = place.pending, None
        try:
            look: HostReport = self.ray.get(answer)
        except self.ray.exceptions.ActorUnavailableError:
            time.sleep(0.1)  # the line to it broke: Ray will find out whether it lives
            return
        except self.ray.exceptions.RayError as error:
            self._lose(place, error)
            return
        place.heard = time.monotonic()
        self.reports.take(look)

    def _lose(self, place: HostPlace, error: Exception | None) -> None:
        """A host is gone, and its ranks with it."""
        place.lost = True
        for_memory = isinstance(error, self.ray.exceptions.OutOfMemoryError)
        sign = HOST if for_memory or self.address is None else self.placement.trouble(place.node) or HOST
        if isinstance(error, self.ray.exceptions.NodeDiedError) or (error and "node has died" in str(error)):
            sign = LINK if sign == LINK else NODE
        said = f"the Ray worker on {place.name}: {words_of(error)}" if error is not None else "Ray itself died"
        message = {NODE: f"its machine {place.name} went away", LINK: f"{place.name} does not answer"}.get(sign, said)
        self.reports.lose(place.ranks, message, sign, for_memory)

    def _find_lost(self) -> None:
        """Ranks only say that they lost their peers: which machines do not answer?"""
        for place in self.places:
            late = time.monotonic() - place.heard > LATE_SECONDS
            if late and not place.lost and self._away(place):
                self._lose(place, None)

    def _away(self, place: HostPlace) -> bool:
        return self._gone(place.node)

    def _gone(self, node: str) -> bool:
        return self.address is not None and bool(self.placement.trouble(node))

    def _look_after_head(self) -> None:
        if self.head is not None and self.head.silent > HEAD_SECONDS:
            self.gone = True
            raise HeadGoneError(*head_gone(resolved(self.address or ""), self.head.silent).args)

    def _look_after_ray(self) -> None:
        """An embedded Ray dies as a machine does, and its workers would learn of it late."""
        if self.address is not None or not self.places or self.places[0].lost:
            return
        node = self.ray._private.worker._global_node
        dead = [name for name, _ in node.dead_processes() if name in ("raylet", "gcs_server")] if node else []
        if dead:
            self.gone = True
            for place in self.places:
                self._lose(place, None)

    def _place_of(self, rank: int) -> HostPlace:
        return next(place for place in self.places if rank in place.ranks)

    def _leave(self) -> None:
        """Ask Ray for nothing any more: a call would wait for minutes, or end this process.

        Ranks of an embedded Ray are killed from here; on a cluster they leave when their lease is over.
        """
        self._strike()
        self.places, self.mesh = [], None
        self._forget()
        if self.address is None:
            self.ray.shutdown()
        else:
            atexit.unregister(self.ray._private.worker.shutdown)
        self.ray = None

    def _strike(self) -> None:
        for handle in self.handles:
            with suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)

    def _dismiss(self) -> None:
        """End hosts and ranks, and hold no places."""
        self._strike()
        for place in self.places:
            if self.address is not None and place.pids and not self._away(place):
                self.ray.remote(slay).options(**self.placement.beside(place.node)).remote(list(place.pids.values()))
            self.ray.kill(place.actor, no_restart=True)
        self.placement.give_back()
        self.places, self.mesh = [], None
