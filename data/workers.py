"""Worker processes that may die: a job that kills its process costs that job, not the run.

Codecs are C, and a hostile file can bring one down. concurrent.futures has no pool for this: its process pool breaks as
a whole, and on CPython 3.11 may block for ever while it does. So each thread of a thread pool has a process of its own
and a pipe to it; the end of the pipe is the end of that process, and of nothing else. Processes are spawned, not
forked: forking a process that has threads (torch, OpenCV) may deadlock. Starting one takes about a second, so few small
jobs run better with none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Self, TypeVar

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
        self._threads = ThreadPoolExecutor(max(processes, 1), thread_name_prefix="workers")
        self._lock = threading.Lock()  # over the next three
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=True)  # threads that wait for a process see the end of its pipe

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT | Died[JobT]]:
        """Results in the order of the jobs, at most two jobs per worker ahead of the reader."""
        if self.processes == 0:
            yield from map(work, jobs)
            return
        rest = iter(jobs)
        running: deque[tuple[JobT, Future[ResultT | Died[JobT]]]] = deque()
        while True:
            for job in islice(rest, 2 * self.processes - len(running)):
                running.append((job, self._threads.submit(self._run, work, job)))
            if not running:
                return
            job, future = running.popleft()
            result = future.result()
            if isinstance(result, Died):  # perhaps for what ran beside it: memory is shared
                wait([future for _, future in running])
                result = self._threads.submit(self._run, work, job).result()
            yield result

    def _run(self, work: Callable[[JobT], ResultT], job: JobT) -> ResultT | Died[JobT]:
        process = self._take()
        try:
            process.pipe.send((work, job))
            result, error = process.pipe.recv()
        except (EOFError, OSError):
            self._drop(process)
            return Died(job)
        with self._lock:
            self._idle.append(process)
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _take(self) -> _Process:
        """A process that is alive and idle."""
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the workers are closed")
                process = self._idle.pop() if self._idle else _Process()
                self._all.add(process)
            if process.alive():
                return process
            self._drop(process)  # it died between two jobs

    def _drop(self, process: _Process) -> None:
        process.kill()
        with self._lock:
            self._all.discard(process)


class _Process:
    """One worker and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # else this end would keep the pipe open when the worker dies

    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    """A worker: jobs come and results go, until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent ends this process
    while True:
        try:
            work, job = pipe.recv()
        except EOFError:
            return
        answer: tuple[Any, BaseException | None]
        try:
            answer = work(job), None
        except Exception as error:
            answer = None, error
        pipe.send(answer)
