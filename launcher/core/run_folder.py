"""The run folder: where everything a run writes has its place, and the two line-by-line records of it.

    config.yaml         the resolved run
    metrics.jsonl       one line a step, written by rank 0
    events.jsonl        starts, resumes, failures, checkpoints: appended by whoever saw it
    checkpoints/        step-00000100/ ...
    samples/  tensorboard/  report.html

A line is appended in one write, so that a kill leaves at most one broken last line, which readers leave out.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic_core import from_json

from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

IDENTITY = ".id"
LONGEST_LINE = 64 << 20  # bytes; a step of many samples has some kilobytes
MOST_STEPS = 10**12
RECENT = 3  # steps that a checkpoint tells of
TOGETHER = 1000  # lines in one write
EXPECTED = ("loss", "grad_norm", "time", "seconds", "tokens", "tokens_per_second", "learning_rate", "data_seconds")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved run."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line a step."""
        return self.root / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """What happened."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folders of committed checkpoints."""
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        """What `longreel sample` wrote."""
        return self.root / "samples"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    def record(self, event: str, **fields: Any) -> None:
        """Append to events.jsonl."""
        append_line(self.events, {"time": time.time(), "event": event, **fields})


def take_id(folder: RunFolder, identity: str) -> None:
    """Be known as the run whose checkpoints were adopted."""
    write_whole(folder.root / IDENTITY, identity.encode())


def known_id(folder: RunFolder) -> str:
    """As `run_id`; empty if it was not made yet."""
    path = folder.root / IDENTITY
    return path.read_text().strip() if path.exists() else ""


def make_run_folder(folder: RunFolder) -> None:
    """Make it, if it is not there.

    Raises:
        InputError: it cannot be written, or holds what is no run.
    """
    names = {path.name for path in folder.root.iterdir()} if folder.root.is_dir() else set()
    if names and not names & {folder.config.name, folder.events.name}:
        found = f"{folder.root} has: {', '.join(sorted(names)[:5])}"
        raise InputError("a run has a folder of its own", found, "out=runs/NAME")
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
        with open(folder.events, "ab"):
            pass
    except OSError as error:
        raise InputError(
            "a run folder can be made and written", f"{folder.root}: {error.strerror}", "out=FOLDER that is yours"
        ) from None


def run_id(folder: RunFolder) -> str:
    """What a run folder is known by in its checkpoints, wherever they lie; made when it is first asked for."""
    path = folder.root / IDENTITY
    if not path.exists():
        write_whole(path, uuid4().hex.encode())
    return path.read_text().strip()


def append_line(path: Path, fields: dict[str, Any]) -> None:
    """One JSON line, in one write.

    Raises:
        OSError: it was not written, or not whole; the next line begins on a line of its own all the same.
    """
    line = (json.dumps(fields) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # of a kill, or of a full disk
            line = b"\n" + line
        written = os.write(file, line)
        if written < len(line):
            if os.fstat(file).st_size == size + written:  # nobody else has added to it
                os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(file)


class Lines:
    """The lines of a record that hold fields, one after the other as they are read.

    Args:
        path: of the record; no such file has no lines.

    Attributes:
        broken: lines so far that hold none: cut by a kill, too long, too deep, or no object.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.broken = path, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                    self.broken += 1
                    continue
                fields = parsed(line)
                if fields is not None:
                    yield fields
                elif not line.isspace():
                    self.broken += 1


def parsed(line: bytes) -> dict[str, Any] | None:
    """The fields of a line; None if it holds none."""
    try:
        fields = from_json(line, cache_strings="keys")  # twice as fast as json, and its depth is limited
    except ValueError:
        try:
            fields = parse_json(line)  # names of files may hold bytes that are not UTF-8
        except ParseError:
            return None
    return fields if isinstance(fields, dict) else None


def is_step(fields: Mapping[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is that of a step: a number of it, and numbers where those are expected."""
    step = fields.get("step")
    if type(step) is not int or not 0 <= step <= MOST_STEPS:
        return False
    return all(type(fields[name]) in (float, int) for name in EXPECTED if name in fields)


def is_event(fields: dict[str, Any]) -> bool:
    """Whether a line of events.jsonl is an event: its name, and a time that is one."""
    if type(fields.get("event")) is not str or type(fields.get("step", 0)) not in (int, float, type(None)):
        return False
    time_ = fields.get("time", 0.0)
    return type(time_) in (int, float) and 0 <= time_ < 1e11


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a record; none if there is no such file."""
    yield from Lines(path)


def steps_of(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl that are steps, in the order of their writing."""
    return filter(is_step, Lines(folder.metrics))


def events_of(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The lines of events.jsonl that are events, in the order of their writing."""
    return filter(is_event, Lines(folder.events))


def keep_steps(path: Path, last: int) -> tuple[int, list[dict[str, Any]], list[dict[str, Any]]]:
    """Rewrite metrics.jsonl with the steps up to `last`: what came after it is done again. Atomic.

    Returns:
        how many lines up to `last` are missing, because they could not be read or were never written; the newest
        `RECENT` of those that are there; and the lines after it, which are gone from the file.
    """
    if not path.exists():
        return last, [], []
    kept, recent, after = 0, deque[dict[str, Any]](maxlen=RECENT), list[dict[str, Any]]()

    def lines() -> Iterator[bytes]:
        nonlocal kept
        for fields in filter(is_step, Lines(path)):
            if fields["step"] > last:
                after.append(fields)
            else:
                kept += 1
                recent.append(fields)
                yield (json.dumps(fields) + "\n").encode()

    write_whole(path, map(b"".join, batched(lines(), TOGETHER)))
    return last - kept, list(recent), after


def batched(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    """Lists of `size` lines, the last one shorter."""
    while batch := list(islice(lines, size)):
        yield batch


Files = dict[str, bytes]  # suffix to content, of files that belong together


def keep(folder: Path, stem: str, files: Files | Callable[[str], Files]) -> str:
    """Write files of one name beside what is there, and never over it; gives the name, without a suffix.

    Where the name is taken by other content it gets a number; the same content again is the same file.

    Args:
        folder: made if it is not there.
        stem: of their names.
        files: each by its suffix; or what makes them, if they say how they are called.
    """
    number = 1
    while True:
        name = f"{stem}-{number}" if number > 1 else stem
        found = files(name) if callable(files) else files
        there = [folder / f"{name}{suffix}" for suffix in found]
        if all(not path.exists() or _holds(path, data) for path, data in zip(there, found.values(), strict=True)):
            break
        number += 1
    for path, data in zip(there, found.values(), strict=True):
        if not path.exists():
            write_whole(path, data)
    return name


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def write_whole(path: Path, data: bytes | Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file, from one or more chunks, that is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb", buffering=0) as file:
            for chunk in (data,) if isinstance(data, bytes) else data:
                view = memoryview(chunk)
                while view:  # the system may take a part of a large chunk
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextmanager
def only_writer(root: Path, rank: int, seconds: float = 60) -> Iterator[None]:
    """Hold the run folder while rank 0 writes to it.

    Ranks of a killed job may live on for a moment: wait for them, so that two jobs never write one record.

    Raises:
        InputError: somebody else still writes after `seconds`.
    """
    if rank != 0:
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".writer", "w") as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise in_use(root) from None
                time.sleep(0.1)
        yield


def in_use(root: Path) -> InputError:
    """Two jobs in one folder."""
    return InputError("one job at a time writes to a run folder", str(root), "stop the other one, or give out=FOLDER")


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
