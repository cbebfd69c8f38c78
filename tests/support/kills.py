"""Work that kills itself at its n-th file operation, in forks of a warm process: some fifty milliseconds a death.

What counts as an operation is whatever changes a file system: opening for writing, every write that reaches the
kernel, fsync, rename, link, unlink, mkdir, rmdir, truncate. Python's audit events and the kernel's own count of writes
(/proc/self/io) must agree with ours, so nothing goes unseen.

    test --(work, arguments, at, torn)--> helper --fork--> child: work until operation `at`, SIGKILL
         <--(killed, operations)---------
"""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

CALLS = ("fsync", "fdatasync", "replace", "rename", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "truncate")
CALLS += ("ftruncate", "write", "pwrite", "writev", "sendfile", "copy_file_range", "chmod", "utime")
AUDITED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operations:
    """Counts operations and ends the process before number `at`; `torn`: half of it, if it is a write."""

    def __init__(self, at: int, torn: bool) -> None:
        self.at, self.torn = at, torn
        self.log: list[tuple[str, ...]] = []
        self.writes = self.audited = self.named = 0

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.counted(name, getattr(os, name)))
        self.os_open, os.open = os.open, self.open_descriptor
        self.io_open = io.open
        io.open = builtins.open = self.open_file
        sys.addaudithook(self.audit)
        self.kernel = kernel_writes()

    def __call__(self, name: str, *where: Any) -> bool:
        """One operation is about to happen; True: only half of it."""
        self.writes += name in ("write", "pwrite", "writev")
        self.log.append((name, *map(str, where)))
        if len(self.log) - 1 != self.at:
            return False
        if self.torn and name == "write":
            return True
        die()
        return False

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.named += (
                f"os.{ {'replace': 'rename', 'unlink': 'remove', 'ftruncate': 'truncate'}.get(name, name) }" in AUDITED
            )
            self(name, name_of(args[0]), *(a for a in args[1:2] if isinstance(a, str | Path)))
            # a kill leaves all that the kernel has, flushed or not: nobody need wait for the disk
            return None if name in ("fsync", "fdatasync") else call(*args, **kwargs)

        return counting

    def open_descriptor(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & WRITING:
            self("open", path)
        return self.os_open(path, flags, *args, **kwargs)

    def open_file(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return self.io_open(file, mode, *args, **kwargs)
        assert set(mode) <= set("bwx"), f"{file}: opening with {mode} is not counted"
        self("open", file)
        return io.BufferedWriter(Raw(self, os.fspath(file), mode.replace("b", "")))

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in AUDITED:
            self.audited += 1
        if event == "open" and isinstance(args[2], int) and args[2] & WRITING and not isinstance(args[0], int):
            assert self.log[-1] == ("open", os.fspath(args[0])), f"{args[0]}: opened for writing, not counted"

    def check(self) -> None:
        """Nothing went past the counting."""
        assert self.audited == self.named, f"{self.audited} audited, {self.named} counted"
        assert kernel_writes() - self.kernel == self.writes, f"{kernel_writes() - self.kernel} writes, {self.writes}"


class Raw(io.FileIO):
    """A file whose writes are operations; what is buffered above it counts when it comes down."""

    def __init__(self, operations: Operations, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.operations, self.path = operations, path

    def write(self, data: Any) -> int:
        if self.operations("write", self.path):
            super().write(memoryview(data)[: len(data) // 2])
            die()
        return super().write(data)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kernel_writes() -> int:
    """How often this process has asked the kernel to write."""
    return int(Path("/proc/self/io").read_text().split("syscw:")[1].split()[0])


def name_of(where: int | str | Path) -> str:
    return os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else str(where)


@dataclass(frozen=True)
class Death:
    """How a child ended: by SIGKILL before its work was done, or with all `operations` behind it."""

    killed: bool
    operations: list[tuple[str, ...]]

    def points(self) -> list[tuple[int, bool]]:
        """Every (operation, torn) at which the same work can be killed."""
        return [
            (n, torn) for n, (name, *_) in enumerate(self.operations) for torn in (False, True)[: 1 + (name == "write")]
        ]


class Helper:
    """A process that forks children; a context manager."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def warm(self, work: Callable[..., Any], *args: Any) -> None:
        """Runs `work(*args)` in the helper itself, so that its children need not load anything."""
        self._ask(work, args, None)

    def run(self, work: Callable[..., Any], *args: Any, at: int = -1, torn: bool = False) -> Death:
        """Runs `work(*args)` in a fork that dies before operation `at`, or does not die."""
        return Death(*self._ask(work, args, (at, torn)))

    def _ask(self, *job: Any) -> tuple[bool, list[tuple[str, ...]]]:
        self.pipe.send(job)
        killed, answer = self.pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return killed, answer


def _serve(pipe: Connection) -> None:
    while True:
        try:
            work, args, when = pipe.recv()
        except EOFError:
            return
        if when is None:
            work(*args)
            pipe.send((False, []))
            continue
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _child(writing, work, args, *when)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            answer = file.read()
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        pipe.send((killed, pickle.loads(answer) if answer else []))


def _child(answer: int, work: Callable[..., Any], args: tuple[Any, ...], at: int, torn: bool) -> None:
    write, said = os.write, b""
    try:
        operations = Operations(at, torn)
        operations.install()
        work(*args)
        operations.check()
        said = pickle.dumps(operations.log)
    except BaseException:
        said = pickle.dumps(traceback.format_exc())
    finally:
        while said:
            said = said[write(answer, said) :]
        os._exit(0)
