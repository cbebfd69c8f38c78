"""`RayWorkers`: as `Workers`, on a Ray cluster that this process is connected to.

    driver --job--> actor on a node, one per core --pipe--> worker process
           <-result, through the object store-            |  killed over its limits, as everywhere

Each actor keeps a worker process of its own, so a job that dies, hangs or eats memory is handled on its node as it
would be here, and costs Ray nothing. If an actor goes down with its node, its jobs go to others. Actors for which there
is no room yet join when there is. Places that jobs name must be reached by the nodes: URLs, or a shared folder.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Self, TypeVar

from data.workers.processes import AHEAD_JOBS, Died, Limits, Lost, Workers, fair_memory
from parallel.errors import InputError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

TRIES = 2  # of a job whose actor is lost
PLACE_SECONDS = 60.0


class Sandbox:
    """Runs on a node: one worker process and its limits."""

    def __init__(self, limits: Limits, actors_here: int) -> None:
        vars(sys.modules["__main__"]).pop("__file__", None)  # or a worker would import all of Ray's own script first
        self.workers = Workers(1, limits if limits.memory else replace(limits, memory=fair_memory(actors_here)))

    def ready(self) -> bool:
        """Answers once it has its place."""
        return True

    def run(self, work: Callable[[Any], Any], job: Any) -> tuple[bool, Any]:
        """(whether `work` raised, its result or what it raised). They travel apart: the first is small."""
        try:
            (result,) = self.workers.map(work, [job])
        except Exception as error:
            return True, error
        return False, result


@dataclass(eq=False)
class _Begun(Generic[JobT]):
    """A job, where it runs or ran, and its result when it is done, which may still lie on its node."""

    job: JobT
    tries: int = 0
    actor: Any = None
    raised: bool = False
    result: Any = None
    done: bool = False


class RayWorkers:
    """One actor for each of `processes` cores of the cluster; None takes all. Use as a context manager."""

    def __init__(self, ray: Any, processes: int | None, limits: Limits) -> None:
        self.ray, self.limits = ray, limits
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        self.cores_of_a_node = max(cores, default=1)
        self.processes = max(1, min(sum(cores), processes or sum(cores)))
        self.starting: dict[Any, Any] = {}  # actors that have no place yet, by what tells when they do
        self.placed: set[Any] = set()
        self.idle: list[Any] = []  # of these; an actor has one job, so that a lost one takes no other with it
        self.flying: dict[Any, _Begun[Any]] = {}  # jobs, by what tells when they are done
        self.lost: deque[_Begun[Any]] = deque()  # to be sent again

    def __enter__(self) -> Self:
        for _ in range(self.processes):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self.placed, *self.starting.values()]:
            self.ray.kill(actor, no_restart=True)
        self.placed, self.idle, self.starting = set(), [], {}

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT | Lost[JobT]]:
        """See `Pool`. At most 32 jobs per actor are begun ahead of the reader; results wait on their nodes.

        Raises:
            InputError: no actor found room.
        """
        rest = iter(jobs)
        order: deque[_Begun[JobT]] = deque()
        self.lost = deque()
        shared = self.ray.put(work)
        while True:
            while not self.placed:
                self._wait()
            while self.idle and self.lost:
                self._send(shared, self.lost.popleft())
            for job in islice(rest, max(0, min(len(self.idle), AHEAD_JOBS * len(self.placed) - len(order)))):
                order.append(_Begun(job))
                self._send(shared, order[-1])
            if not order:
                return
            if not order[0].done:
                self._wait()
            elif self._fetched(order[0]):
                first = order.popleft()
                if first.raised:
                    raise first.result
                yield first.result

    def _start(self) -> None:
        actor = self.ray.remote(Sandbox).options(num_cpus=1).remote(self.limits, self.cores_of_a_node)
        self.starting[actor.ready.remote()] = actor

    def _send(self, work: Any, begun: _Begun[Any]) -> None:
        begun.actor = self.idle.pop()
        begun.tries += 1
        told, begun.result = begun.actor.run.options(num_returns=2).remote(work, begun.job)
        self.flying[told] = begun

    def _wait(self) -> None:
        """Until a job is done, or an actor has found its place."""
        watched = [*self.flying, *self.starting]
        ready, _ = self.ray.wait(watched, num_returns=1, timeout=None if self.placed else PLACE_SECONDS)
        if not ready:
            found = f"no free core within {PLACE_SECONDS:g} s for one of {self.processes} workers"
            raise InputError("workers find room on the cluster", found, "wait for other jobs to end, or add nodes")
        (told,) = ready
        begun = self.flying.pop(told, None)
        actor = begun.actor if begun is not None else self.starting.pop(told)
        try:
            said = self.ray.get(told)
        except self.ray.exceptions.RayError as error:
            if actor in self.placed:
                self.placed.discard(actor)
                self.ray.kill(actor, no_restart=True)  # should it live
                self._start()  # in its place
            elif not self.placed and not self.starting:
                reason = " ".join(str(error).split())[-300:]
                raise InputError("workers start on the nodes", reason, "install longreel on every node") from error
            if begun is not None:
                self._lose(begun)
            return
        self.placed.add(actor)
        self.idle.append(actor)
        if begun is not None:
            begun.raised, begun.done = said, True

    def _fetched(self, begun: _Begun[Any]) -> bool:
        """Brings a result here; False if it was lost with its node, and the job is done once more."""
        if isinstance(begun.result, self.ray.ObjectRef):
            try:
                begun.result = self.ray.get(begun.result)
            except self.ray.exceptions.RayError:
                self._lose(begun)
        return begun.done

    def _lose(self, begun: _Begun[Any]) -> None:
        begun.done = begun.tries >= TRIES
        if begun.done:
            begun.result = Died(begun.job)
        else:
            self.lost.append(begun)
