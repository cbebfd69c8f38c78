"""Worker processes that may die: a job that kills its process costs that job, not the run.

Codecs are C, and a hostile file can bring one down. Processes are spawned, not forked: forking a process that has
threads (torch, OpenCV) may deadlock. Starting one takes about a second, so few small jobs run better with none.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Self, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Died(Generic[JobT]):
    """In place of a result: the process that ran `job` ended, twice, and once with nothing else to do."""

    job: JobT


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """`processes` workers; 0 runs every job in this process, unprotected. Use as a context manager."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT | Died[JobT]]:
        """Results in the order of the jobs, at most two jobs per worker ahead of the reader."""
        if self.processes == 0:
            yield from map(work, jobs)
            return
        rest = iter(jobs)
        running: deque[tuple[JobT, Future[ResultT]]] = deque()
        while True:
            for job in islice(rest, 2 * self.processes - len(running)):
                running.append((job, self._submit(work, job)))
            if not running:
                return
            job, future = running.popleft()
            result: ResultT | Died[JobT]
            try:
                result = future.result()
            except BrokenExecutor:  # some job killed its process, and the pool with it
                result = self._alone(work, job)
                running = deque((j, f if _succeeded(f) else self._submit(work, j)) for j, f in running)
            yield result

    def _alone(self, work: Callable[[JobT], ResultT], job: JobT) -> ResultT | Died[JobT]:
        self._stop()
        try:
            return self._submit(work, job).result()
        except BrokenExecutor:
            self._stop()
            return Died(job)

    def _submit(self, work: Callable[[JobT], ResultT], job: JobT) -> Future[ResultT]:
        try:
            return self._started().submit(work, job)
        except BrokenExecutor:  # it died between two jobs
            self._stop()
            return self._started().submit(work, job)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, mp_context=multiprocessing.get_context("spawn"))
        return self._pool

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _succeeded(future: Future[ResultT]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
