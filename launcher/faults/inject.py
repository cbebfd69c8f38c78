"""The fault kit: what a rank does to itself because its run asks for it, addressed by (rank, step, phase).

    faults: [{kind: kill, rank: 1, step: 8, phase: backward}]

    heartbeat --(phase, step)--> striker          kill, pause, raise, memory, slow, terminate, cut
    a loss --(step)--------> poisoned         nan
    saver --write----------> FaultyStorage    full, tear

The faults are real: signals, bytes that are half written, connections that are shut down. Each strikes once in the
life of a run folder, restarts included: a marker under `.faults/` is made first, by O_EXCL, so that the rank that is
restarted does not strike again. A fault whose (step, phase) does not come, such as "save" where nothing is saved, does
not strike.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoints.storage import PREFIX, Chunk, Storage
from launcher.config.sections import FaultConfig
from launcher.core.heartbeat import Phase
from launcher.core.run_folder import RunFolder
from launcher.faults.exhaust_memory import exhaust_memory
from parallel.errors import InputError

MARKERS = ".faults"
OF_STORAGE = ("full", "tear")
OF_LOSS = ("nan",)


class InjectedFaultError(RuntimeError):
    """Raised on purpose, because `faults` of the run asks for it."""


@dataclass(frozen=True)
class Fault:
    """One fault of this rank.

    Attributes:
        settings: what it is.
        folder: of the run.
        name: of its marker; equal faults have a name each.
    """

    settings: FaultConfig
    folder: RunFolder
    name: str

    @property
    def has_struck(self) -> bool:
        """In the life of this run folder."""
        return self._marker.exists()

    def claim(self, step: int, phase: str) -> bool:
        """Whether to strike now: true once; then it is recorded, because what strikes may not live to tell."""
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        self.folder.record("fault", kind=self.settings.kind, rank=self.settings.rank, step=step, phase=phase)
        return True

    @property
    def _marker(self) -> Path:
        return self.folder.root / MARKERS / self.name


def striker(
    faults: Sequence[FaultConfig], out: Path, rank: int, launcher_pid: int | None
) -> Callable[[Phase, int], None] | None:
    """What strikes at the phases of a rank's steps, called with each (phase, step); None if nothing does.

    Args:
        faults: of the run.
        out: run folder, which keeps what has struck.
        rank: this one.
        launcher_pid: of the command that started the run; None or 0 if it runs on another machine.
    """
    mine = [f for f in faults_of(faults, out, rank) if f.settings.kind not in (*OF_STORAGE, *OF_LOSS)]

    def strike(phase: Phase, step: int) -> None:
        for fault in mine:
            settings = fault.settings
            if (settings.step, settings.phase) == (step, phase) and fault.claim(step, phase):
                STRIKES[settings.kind](settings, launcher_pid or 0)

    return strike if mine else None


def poisoned(faults: Sequence[FaultConfig], out: Path, rank: int) -> Callable[[int], bool]:
    """Whether the loss of this micro-step of step n is to be made not finite; true once."""
    mine = [f for f in faults_of(faults, out, rank) if f.settings.kind in OF_LOSS]

    def is_poisoned(step: int) -> bool:
        return any(f.settings.step == step and f.claim(step, "forward") for f in mine)

    return is_poisoned


def storage(faults: Sequence[FaultConfig], out: Path, rank: int, storage: Storage) -> Storage:
    """The same storage, on which this rank's faults of writing strike; itself if there are none."""
    mine = [f for f in faults_of(faults, out, rank) if f.settings.kind in OF_STORAGE]
    return FaultyStorage(storage, mine) if mine else storage


def faults_of(faults: Sequence[FaultConfig], out: Path, rank: int) -> list[Fault]:
    """Those of one rank, each with a name of its own."""
    found, seen = [], Counter[str]()
    for settings in faults:
        name = f"{settings.kind}-rank{settings.rank}-step{settings.step}-{settings.phase}"
        seen[name] += 1
        if settings.rank == rank:
            found.append(Fault(settings, RunFolder(out), f"{name}-{seen[name]}"))
    return found


class FaultyStorage:
    """See `Storage`: one that fails as asked, at the first write of a checkpoint of the fault's step or a later one.

    full  half of the bytes are written, then ENOSPC; for so many seconds nothing can be written, and nothing is free
    tear  half of the bytes are written, then SIGKILL
    """

    def __init__(self, inner: Storage, faults: Iterable[Fault]) -> None:
        self.inner, self.faults = inner, tuple(faults)
        self.full_until = 0.0

    def where(self, name: str) -> str:
        """See `Storage`."""
        return self.inner.where(name)

    def names(self) -> list[str]:
        """See `Storage`."""
        return self.inner.names()

    def files(self, name: str) -> dict[str, int]:
        """See `Storage`."""
        return self.inner.files(name)

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytearray:
        """See `Storage`."""
        return self.inner.read(name, file, start, stop)

    def read_into(self, name: str, file: str, start: int, view: memoryview) -> None:
        """See `Storage`."""
        self.inner.read_into(name, file, start, view)

    def free(self) -> int | None:
        """See `Storage`."""
        return 0 if self._is_full else self.inner.free()

    def write(self, name: str, file: str, chunks: Iterable[Chunk]) -> None:
        """See `Storage`."""
        step = int(name.removeprefix(PREFIX))
        due = next((f for f in self.faults if step >= f.settings.step and f.claim(step, "save")), None)
        if due is not None and due.settings.kind == "full":
            self.full_until = time.monotonic() + due.settings.seconds
        if due is not None and due.settings.kind == "tear":
            chunks = _half(chunks, kill)
        elif self._is_full:
            chunks = _half(chunks, _refuse)
        self.inner.write(name, file, chunks)

    def commit(self, name: str, files: Iterable[str], manifest: bytes) -> None:
        """See `Storage`."""
        if self._is_full:
            _refuse()
        self.inner.commit(name, files, manifest)

    def abandon(self) -> None:
        """See `Storage`."""
        self.inner.abandon()

    def remove(self, name: str) -> None:
        """See `Storage`."""
        self.inner.remove(name)

    @property
    def _is_full(self) -> bool:
        return time.monotonic() < self.full_until


def kill() -> None:
    """SIGKILL to this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def cut() -> int:
    """Shut down all network connections of this process, as if its link were cut; gives how many there were.

    Each side learns of it with its next call. Pipes to the parent process are no network and stay.
    """
    closed = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or it only listens
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                closed += _shut(socket.socket(fileno=os.dup(int(name))))
    return closed


def _shut(connection: socket.socket) -> bool:
    with connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        connection.getpeername()
        connection.shutdown(socket.SHUT_RDWR)
        return True


def _half(chunks: Iterable[Chunk], then: Callable[[], None]) -> Iterator[Chunk]:
    """The first half of the bytes, and `then` whatever happens."""
    views = [memoryview(chunk) for chunk in chunks]  # of tensors: they take no memory
    left = sum(map(len, views)) // 2
    for view in views:
        yield view[: min(left, len(view))]
        left -= min(left, len(view))
        if not left:
            break
    then()


def _refuse() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _raise(settings: FaultConfig) -> None:
    raise InjectedFaultError(
        f"rank {settings.rank} fails on purpose in {settings.phase} of step {settings.step}, because faults asks for it"
    )


def _terminate(launcher: int) -> None:
    if not launcher:
        raise InputError(
            "a rank can send SIGTERM to its launcher only on the launcher's machine",
            "faults: kind terminate on a cluster",
            "send SIGTERM to the longreel command yourself, or run without --address",
        )
    os.kill(launcher, signal.SIGTERM)


STRIKES: dict[str, Callable[[FaultConfig, int], object]] = {
    "kill": lambda settings, launcher: kill(),
    "pause": lambda settings, launcher: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": lambda settings, launcher: _raise(settings),
    "memory": lambda settings, launcher: exhaust_memory(settings.seconds),
    "slow": lambda settings, launcher: time.sleep(settings.seconds),
    "terminate": lambda settings, launcher: _terminate(launcher),
    "cut": lambda settings, launcher: cut(),
}
