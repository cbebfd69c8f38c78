"""Where the checkpoints of a run lie: a folder that all machines see, or an object store through fsspec."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from data.remote.remote_files import filesystem
from launcher.core.run_folder import flush_folder, write_whole

MANIFEST = "manifest.json"
PREFIX = "step-"
NO_FILE = -1
Chunk = bytes | bytearray | memoryview


class Storage(Protocol):
    """Folders of files, each committed as a whole. A name is that of a folder, such as step-00000100.

    All may raise OSError, or what a store's driver raises.
    """

    def where(self, name: str) -> str:
        """For messages: the path or URL of a checkpoint."""

    def names(self) -> list[str]:
        """Committed checkpoints, oldest first."""

    def files(self, name: str) -> dict[str, int]:
        """Files of a committed checkpoint and their sizes in bytes; less than 0 for what is no file of its own."""

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytearray:
        """Bytes [start, stop) of a file of a committed checkpoint."""

    def read_into(self, name: str, file: str, start: int, view: memoryview) -> None:
        """As many bytes as there is room for, from `start` on."""

    def free(self) -> int | None:
        """Bytes that there is room for; None if nobody knows."""

    def write(self, name: str, file: str, chunks: Iterable[Chunk]) -> None:
        """Write a file of a checkpoint that is not committed yet, and make it survive a power cut."""

    def commit(self, name: str, files: Iterable[str], manifest: bytes) -> None:
        """Make these files a checkpoint, in the place of a broken one of the same name."""

    def abandon(self) -> None:
        """Give back the room of what was written and not committed, if that is quickly done."""

    def remove(self, name: str) -> None:
        """Remove a committed checkpoint; at no moment does a part of it look whole."""


def open_storage(folder: Path, to: str | None = None) -> Storage:
    """The checkpoints in `folder`, or in `to`, a path or a URL, if that is given.

    Raises:
        InputError: a URL of a kind that is not known, or whose driver is not installed.
    """
    if to is None or "://" not in to:
        return LocalStorage(folder if to is None else Path(to))
    return RemoteStorage(to)


class LocalStorage:
    """See `Storage`: a folder, on a disk or a file system that all machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, name: str) -> str:
        """See `Storage`."""
        return str(self.root / name)

    def names(self) -> list[str]:
        """See `Storage`."""
        return sorted(path.name for path in self.root.glob(f"{PREFIX}*"))

    def files(self, name: str) -> dict[str, int]:
        """See `Storage`."""
        found = {path.name: path.lstat() for path in (self.root / name).iterdir()}
        return {file: status.st_size if stat.S_ISREG(status.st_mode) else NO_FILE for file, status in found.items()}

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytearray:
        """See `Storage`."""
        data = bytearray(((self.root / name / file).stat().st_size if stop is None else stop) - start)
        self.read_into(name, file, start, memoryview(data))
        return data

    def read_into(self, name: str, file: str, start: int, view: memoryview) -> None:
        """See `Storage`."""
        path, done = self.root / name / file, 0
        with path.open("rb", buffering=0) as opened:
            opened.seek(start)
            while done < len(view):
                count = opened.readinto(view[done:])
                if not count:
                    raise EOFError(f"{path}: ends at byte {start + done}")
                done += count

    def free(self) -> int | None:
        """See `Storage`."""
        there = next(path for path in (self.root, *self.root.parents) if path.exists())
        return shutil.disk_usage(there).free

    def write(self, name: str, file: str, chunks: Iterable[Chunk]) -> None:
        """See `Storage`."""
        write_whole(self._pending(name) / file, chunks)

    def commit(self, name: str, files: Iterable[str], manifest: bytes) -> None:
        """See `Storage`."""
        pending, final, kept = self._pending(name), self.root / name, set(files)
        for path in pending.iterdir():
            if path.name not in kept:  # of an earlier try on another mesh
                path.unlink()
        write_whole(pending / MANIFEST, [manifest])
        aside = self._aside(name)
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():
            final.rename(aside)
        pending.rename(final)
        flush_folder(self.root)
        self.abandon()

    def abandon(self) -> None:
        """See `Storage`."""
        for path in self.root.glob(f".{PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self, name: str) -> None:
        """See `Storage`."""
        aside = self._aside(name)
        shutil.rmtree(aside, ignore_errors=True)
        (self.root / name).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _pending(self, name: str) -> Path:
        return self.root / f".{name}.tmp"

    def _aside(self, name: str) -> Path:
        return self.root / f".{name}.old"


class RemoteStorage:
    """See `Storage`: an object store. Objects appear whole, so a checkpoint is one that has its manifest."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._connected: tuple[Any, str] | None = filesystem(self.url, any_scheme=True)

    def where(self, name: str) -> str:
        """See `Storage`."""
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        """See `Storage`."""
        with self._connection() as (store, root):
            folders = [entry.rpartition("/")[2] for entry in _list(store, root)]
            found = [name for name in folders if name.startswith(PREFIX)]
            return sorted(name for name in found if store.exists(f"{root}/{name}/{MANIFEST}"))

    def files(self, name: str) -> dict[str, int]:
        """See `Storage`."""
        with self._connection() as (store, root):
            return {path.rpartition("/")[2]: int(size or 0) for path, size in _list(store, f"{root}/{name}").items()}

    def read(self, name: str, file: str, start: int = 0, stop: int | None = None) -> bytearray:
        """See `Storage`."""
        with self._connection() as (store, root):
            return bytearray(store.cat_file(f"{root}/{name}/{file}", start=start, end=stop))

    def read_into(self, name: str, file: str, start: int, view: memoryview) -> None:
        """See `Storage`."""
        view[:] = self.read(name, file, start, start + len(view))

    def free(self) -> int | None:
        """See `Storage`."""
        return None

    def write(self, name: str, file: str, chunks: Iterable[Chunk]) -> None:
        """See `Storage`."""
        with self._connection() as (store, root):
            store.makedirs(f"{root}/{name}", exist_ok=True)
            with store.open(f"{root}/{name}/{file}", "wb") as opened:
                for chunk in chunks:
                    opened.write(chunk)

    def commit(self, name: str, files: Iterable[str], manifest: bytes) -> None:
        """See `Storage`."""
        kept = {*files, MANIFEST}
        with self._connection() as (store, root):
            for path in _list(store, f"{root}/{name}"):
                if path.rpartition("/")[2] not in kept:  # of an earlier try on another mesh
                    store.rm_file(path)
            store.pipe_file(f"{root}/{name}/{MANIFEST}", manifest)

    def abandon(self) -> None:
        """See `Storage`. Without a manifest it is no checkpoint, and the next one of its step takes its place."""

    def remove(self, name: str) -> None:
        """See `Storage`."""
        with self._connection() as (store, root):
            with suppress(FileNotFoundError):
                store.rm_file(f"{root}/{name}/{MANIFEST}")
            store.rm(f"{root}/{name}", recursive=True)

    @contextmanager
    def _connection(self) -> Iterator[tuple[Any, str]]:
        """The store and the path in it. After a failure it is connected anew: some drivers keep what is dead."""
        if self._connected is None:
            self._connected = filesystem(self.url, any_scheme=True)
        try:
            yield self._connected
        except Exception:
            type(self._connected[0]).clear_instance_cache()
            self._connected = None
            raise


def _list(store: Any, path: str) -> dict[str, Any]:
    try:
        return {entry["name"].rstrip("/"): entry["size"] for entry in store.ls(path, detail=True)}
    except FileNotFoundError:
        return {}
