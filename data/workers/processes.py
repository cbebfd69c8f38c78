"""Worker processes that may die, hang or eat all memory: it costs the job that did it, not the run.

Codecs are C, and a hostile file can bring one down. concurrent.futures has no pool for this: its process pool breaks as
a whole, and on CPython 3.11 may block for ever while it does. So each thread of a thread pool has a process of its own
and a pipe to it; the end of the pipe is the end of that process, and of nothing else.

Processes are forked where nothing else runs in this one yet, which takes milliseconds: so the smallest job has its
limits, too. Forking beside other threads may deadlock, so there, and in place of those that die, they are spawned, when
a job needs one: each loads its modules again, for half a second.

While a job runs, its thread looks at the clock and at the memory of the process every tenth of a second, and kills it
over a limit. RLIMIT_AS would not do: it counts what is mapped, of which torch takes gigabytes that it never uses.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, SpawnProcess
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

WORK, JOB = "work", "job"  # what may be sent to a worker
PR_SET_PDEATHSIG = 1  # of prctl(2)
WATCH_SECONDS = 0.1
MOST_FORKED = 8  # at once; more are spawned when there are jobs for them
NEVER_FORKED = frozenset(["ray", "grpc"])  # modules whose threads Python does not see
AHEAD_JOBS = 32  # per worker: what may be begun ahead of the reader, so that one slow job keeps none of them waiting
AHEAD_BYTES = 512 << 20  # of results that wait for the reader; beyond it only two jobs per worker are begun
LEAST_MEMORY, MOST_MEMORY = 1 << 30, 8 << 30  # bytes a worker may take, where nobody says how many


@dataclass(frozen=True)
class Lost(Generic[JobT]):
    """In place of a result: `job` gave none, and why."""

    job: JobT

    @property
    def reason(self) -> str:
        """For people."""
        raise NotImplementedError


@dataclass(frozen=True)
class Died(Lost[JobT]):
    """The process that ran it ended, twice, and once with nothing else to do."""

    @property
    def reason(self) -> str:
        """For people."""
        return "its worker process died"


@dataclass(frozen=True)
class TimedOut(Lost[JobT]):
    """It took longer than `seconds`."""

    seconds: float

    @property
    def reason(self) -> str:
        """For people."""
        return f"not done within {self.seconds:g} s: raise the timeout"


@dataclass(frozen=True)
class TooLarge(Lost[JobT]):
    """Its process took more than `limit` bytes of memory."""

    limit: int

    @property
    def reason(self) -> str:
        """For people."""
        return f"took more than {self.limit / 2**30:.3g} GiB of memory: raise the limit"


@dataclass(frozen=True)
class Limits:
    """Of one job; None for none.

    Attributes:
        seconds: from its start.
        memory: bytes that its process may have for itself; mapped files do not count.
    """

    seconds: float | None = None
    memory: int | None = None


class Pool(Protocol):
    """What runs jobs: `Workers` here, `RayWorkers` on a cluster. Use as a context manager."""

    def __enter__(self) -> Self:
        """Itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Ends what still runs."""
        ...

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT | Lost[JobT]]:
        """Results in the order of the jobs; what `work` raises is raised."""
        ...


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fair_memory(processes: int) -> int:
    """Bytes that each of so many workers may take, so that all together leave the machine a fifth of its memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(LEAST_MEMORY, min(MOST_MEMORY, total * 4 // 5 // max(1, processes)))


class Workers:
    """`processes` workers; 0 runs every job in this process, unprotected. Use as a context manager.

    Make them early, before this process has other threads.
    """

    def __init__(self, processes: int, limits: Limits | None = None) -> None:
        self.processes, self.limits = processes, limits or Limits()
        self._threads = ThreadPoolExecutor(max(processes, 1), thread_name_prefix="workers")
        self._lock = threading.Lock()  # over the next three
        self._idle = [_Process(forked=True) for _ in range(min(processes, MOST_FORKED))] if _alone() else []
        self._all = set(self._idle)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        self._threads.shutdown(cancel_futures=True)  # threads that wait for a process see the end of its pipe

    def map(self, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT | Lost[JobT]]:
        """Results in the order of the jobs, a bounded number of bytes and of jobs ahead of the reader."""
        if self.processes == 0:
            yield from map(work, jobs)
            return
        rest = iter(jobs)
        running: deque[tuple[JobT, Future[bytes | Lost[JobT]]]] = deque()
        ended = threading.Event()  # of any: waiting for each of them anew would cost a tenth of a small job
        while True:
            self._submit(work, rest, running, ended)
            if not running:
                return
            while not running[0][1].done():
                ended.wait()
                ended.clear()
                self._submit(work, rest, running, ended)
            job, future = running.popleft()
            result = future.result()
            if isinstance(result, Died):  # perhaps for what ran beside it: memory is shared
                wait([future for _, future in running])
                result = self._threads.submit(self._run, work, job).result()
            yield result if isinstance(result, Lost) else _opened(result)

    def _submit(
        self,
        work: Callable[[JobT], Any],
        rest: Iterator[JobT],
        running: deque[tuple[JobT, Future[bytes | Lost[JobT]]]],
        ended: threading.Event,
    ) -> None:
        """Begins as many jobs as may run or wait for the reader."""
        done = [future.result() for _, future in running if future.done() and not future.exception()]
        waiting = sum(len(result) for result in done if isinstance(result, bytes))
        most = AHEAD_JOBS if waiting < AHEAD_BYTES else 2
        free = min(most * self.processes - len(running), 2 * self.processes - (len(running) - len(done)))
        for job in islice(rest, max(0, free)):
            running.append((job, self._threads.submit(self._run, work, job)))
            running[-1][1].add_done_callback(lambda _: ended.set())

    def _run(self, work: Callable[[JobT], Any], job: JobT) -> bytes | Lost[JobT]:
        """Runs in a thread: the pickled answer of a worker."""
        process = self._take()
        try:
            process.learn(work)
            process.pipe.send((JOB, job))
            over = self._watch(process, job)
            if over is not None:
                self._drop(process)
                return over
            answer = process.pipe.recv_bytes()
        except (EOFError, OSError):
            self._drop(process)
            return Died(job)
        with self._lock:
            self._idle.append(process)
        return answer

    def _watch(self, process: _Process, job: JobT) -> Lost[JobT] | None:
        """Waits for the answer; tells if the job goes over a limit first."""
        began = time.monotonic()
        while not process.pipe.poll(WATCH_SECONDS):
            if self.limits.seconds is not None and time.monotonic() - began > self.limits.seconds:
                return TimedOut(job, self.limits.seconds)
            if self.limits.memory is not None and process.memory() > self.limits.memory:
                return TooLarge(job, self.limits.memory)
        return None

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

    def __init__(self, forked: bool = False) -> None:
        self._process: ForkProcess | SpawnProcess
        self._inherited = 0  # bytes of memory that were this process's before
        if forked:
            fork = multiprocessing.get_context("fork")
            self.pipe, theirs = fork.Pipe()
            self._process = fork.Process(target=_serve, args=(theirs, self.pipe), daemon=True)
        else:
            spawn = multiprocessing.get_context("spawn")
            self.pipe, theirs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
            resource_tracker.ensure_running()  # which would let signals in again
        # Ctrl-C goes to the whole group: a worker leaves it to its parent, from its first moment on
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():  # Python 3.12 warns of threads of libraries, which survive a fork
                warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # else this end would keep the pipe open when the worker dies
        if forked:
            self._inherited = self.memory()
        self._work: Any = None

    def alive(self) -> bool:
        return self._process.is_alive()

    def learn(self, work: Callable[[Any], Any]) -> None:
        """Makes it import all that `work` needs, which takes a second and no job's time."""
        if self._work is not work:
            self.pipe.send((WORK, work))
            self.pipe.recv_bytes()
            self._work = work

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def memory(self) -> int:
        """Bytes that it has for itself; 0 where the system does not tell."""
        try:
            said = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0
        _, found, rest = said.partition("RssAnon:")
        return max(0, int(rest.split()[0]) * 1024 - self._inherited) if found else 0


def _opened(answer: bytes) -> Any:
    result, error = pickle.loads(answer)
    if error is not None:
        raise error
    return result


def _alone() -> bool:
    """Whether this process may be forked: no other thread can hold a lock that a child would wait for."""
    main = threading.current_thread() is threading.main_thread()
    return main and threading.active_count() == 1 and not NEVER_FORKED & sys.modules.keys()


def _serve(pipe: Connection, other: Connection | None = None) -> None:
    """A worker: jobs come and results go, until the other end is gone, which a forked one has as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # should a library let it in again
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    if other is not None:
        other.close()
        gc.freeze()  # what was inherited is not looked through again, which would copy its pages
    work: Any = None
    while True:
        try:
            said, value = pipe.recv()
        except EOFError:
            return
        if said == WORK:
            work = value
            pipe.send_bytes(b"")
            continue
        answer: tuple[Any, BaseException | None]
        try:
            answer = work(value), None
        except Exception as error:
            answer = None, error
        pipe.send(answer)


def _die_with_parent() -> None:
    """Else a worker would finish its job first, which nobody waits for, where its parent was killed."""
    with suppress(OSError, AttributeError):  # no such call but on Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
