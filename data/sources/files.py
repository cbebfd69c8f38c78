"""What is to be prepared: files, and where their bytes are: on a disk, in a tar, or behind a URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from data.captions.captions import Caption
from data.containers.regular_file import open_regular
from data.dataset.shards import digest_of
from data.media.image_sequence import is_numbered, numbered
from data.remote import remote_files
from data.remote.scratch import scratch, sweep
from parallel.errors import InputError

TAR_SUFFIX = ".tar"
CHUNK = 4 << 20  # bytes read at a time
# kinds of what cannot be used
NOT_READ, NOT_FETCHED, NO_ANSWER, BAD_CAPTION = "cannot be read", "cannot be fetched", "no answer", "unusable caption"
BAD_ROW = "unusable row"  # of a table


@dataclass(frozen=True)
class Place:
    """Where the bytes of a file are.

    Attributes:
        where: an absolute path or a URL.
        suffix: of the file, with its dot, in lower case.
        size: bytes, if known.
        span: (start, stop) of them in `where`, if they are a member of a tar.
        version: tells the bytes from later ones at the same place, as far as the place itself can; 32 hex digits.
        frames: names of the pictures, in order, if it is a folder that is one film.
    """

    where: str
    suffix: str
    size: int | None
    span: tuple[int, int] | None
    version: str
    frames: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether this machine reads it without a network, as far as it knows."""
        return not remote_files.is_url(self.where)


@dataclass(frozen=True)
class SourceFile:
    """A file to prepare; `name` is how reports and the index call it."""

    name: str
    place: Place
    caption: Caption


@dataclass(frozen=True)
class Unusable:
    """A file that will not be prepared: `kind` is a reason that others may share, `reason` says more of this one."""

    name: str
    kind: str
    reason: str


class ChangedError(Exception):
    """A file is not what it was when it was listed; its text is the reason, for people."""


def local_place(path: Path, span: tuple[int, int] | None = None, suffix: str = "") -> Place:
    """The place of a local file, or of bytes [start, stop) of it, or of a folder of numbered frames.

    Raises:
        OSError: there is none, or it is another folder, a pipe or a device.
    """
    path = Path(os.path.abspath(path))
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        return _folder_place(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a file with bytes, but a pipe or a device")
    size = span[1] - span[0] if span else found.st_size
    version = digest_of(os.fsencode(path).hex(), found.st_size, found.st_mtime_ns, span)
    return Place(str(path), suffix or path.suffix.lower(), size, span, version)


def _folder_place(folder: Path) -> Place:
    names = sorted(entry.name for entry in os.scandir(folder))
    try:
        frames = numbered(str(folder), names)
    except InputError as error:
        if is_numbered(names):
            raise OSError(f"{error.rule}; found: {error.value.removeprefix(f'{folder}: ')}; {error.remedy}") from error
        raise OSError(f"not a file but a folder; {error.value.removeprefix(f'{folder}: ')}") from error
    found = [os.stat(folder / name) for name in frames]
    version = digest_of(os.fsencode(folder).hex(), [(one.st_size, one.st_mtime_ns) for one in found], frames)
    return Place(str(folder), "", sum(one.st_size for one in found), None, version, tuple(frames))


def remote_place(url: str, size: int | None = None, mark: str = "", suffix: str = "") -> Place:
    """The place of a remote file; of one without a size and a mark, the URL alone stands for its bytes."""
    return Place(url, suffix or remote_files.suffix_of(url), size, None, digest_of(url, size, mark))


@contextmanager
def brought(place: Place, tries: int = remote_files.TRIES) -> Iterator[Path]:
    """The bytes of a place as a local file with its suffix: as it lies, or a copy that is gone afterwards.

    Args:
        place: where it is.
        tries: to fetch it, if it is remote; 0 if its server is known to be silent.

    Raises:
        FetchError: a remote file could not be fetched.
        ChangedError: a local one is not what it was, or has become so by now.
        OSError: it cannot be read.
    """
    if not place.local:
        if not tries:
            raise remote_files.FetchError("not tried: its server did not answer for the files before", answered=False)
        with _copy(place) as path:
            remote_files.fetch(place.where, path, place.span, place.size, tries)
            yield path
        return
    _check_unchanged(place)
    if place.span is None:
        yield Path(place.where)
    else:
        with _copy(place) as path:
            with path.open("wb") as file:
                file.writelines(chunks(place))
            yield path
    _check_unchanged(place)


@contextmanager
def _copy(place: Place) -> Iterator[Path]:
    sweep()  # after a process that was killed over its limits
    with scratch() as folder:
        yield folder / f"file{place.suffix}"


def _check_unchanged(place: Place) -> None:
    try:
        same = local_place(Path(place.where), place.span, place.suffix) == place
    except OSError as error:
        raise ChangedError(error.strerror or str(error)) from error
    if not same:
        raise ChangedError("it was changed while it was prepared")


def chunks(place: Place) -> Iterator[bytes]:
    """The bytes of a local place, a few megabytes at a time.

    Raises:
        OSError: it cannot be read, or is shorter than it was.
    """
    for name in place.frames:
        yield from chunks(local_place(Path(place.where) / name))
    if place.frames:
        return
    with open_regular(place.where) as file:
        file.seek(place.span[0] if place.span else 0)
        left = place.size or 0
        while left:
            data = file.read(min(CHUNK, left))
            if not data:
                raise OSError("it is shorter than it was")
            yield data
            left -= len(data)


def digest(place: Place) -> str:
    """As `shards.digest_file`, of a local place. Not by mapping it: a file that is cut meanwhile would kill us."""
    hasher = blake3()
    for data in chunks(place):
        hasher.update(data)
    return str(hasher.hexdigest(length=16))


def digest_path(path: Path) -> str:
    """As `digest`, of a whole file."""
    return digest(local_place(path))


def files_in(folder: Path, leave_out: Path | None = None) -> Iterator[str | Unusable]:
    """Names, relative to the folder, of all files in it to any depth; folders that cannot be read as `Unusable`.

    Links to folders are followed, after all real folders, and none to a folder that was seen. What begins with a dot
    does not count.

    Raises:
        OSError: the folder itself cannot be read.
    """
    outside = os.path.realpath(leave_out) if leave_out is not None else None
    seen = set()
    waiting, links = [""], list[str]()
    while waiting or links:
        name = waiting.pop() if waiting else links.pop()
        here = os.path.join(folder, name)
        try:
            found = os.stat(here)
            if (found.st_dev, found.st_ino) in seen or (name and os.path.realpath(here) == outside):
                continue
            seen.add((found.st_dev, found.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            if not name:
                raise
            yield Unusable(readable(name), NOT_READ, error.strerror or str(error))
            continue
        for entry in entries:
            inside = os.path.join(name, entry.name)
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(inside)
            else:
                yield inside


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; whoever opens it is told
        return False


def readable(name: str) -> str:
    """A name as text that can be written: bytes that are no UTF-8 as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
