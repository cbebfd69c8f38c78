"""The folder of a dataset: whether a path can be one, one writer at a time, and where what is not of it goes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.dataset.shards import FOLDERS, QUARANTINE, make_folder, sync_folder
from parallel.errors import InputError

LOOKS, LOOK_SECONDS = 5, 0.02


def check_place(dataset: Path) -> None:
    """Whether a dataset may be written here.

    Raises:
        InputError: it is a file, or a folder of something else.
    """
    if not dataset.exists():
        return
    if not dataset.is_dir():
        raise InputError("a dataset is a folder", f"{dataset} is a file", "give another --out")
    names = {path.name for path in dataset.iterdir()}
    if names and not names & set(FOLDERS):
        found = ", ".join(sorted(names)[:5])
        raise InputError(
            "the output is a dataset, or an empty or new folder", f"{dataset} has: {found}", "give another --out"
        )


@contextmanager
def held(dataset: Path) -> Iterator[None]:
    """The dataset for this writer alone; the lock goes with the process, however it ends. Leaves no empty folder.

    Raises:
        InputError: another process writes to it.
    """
    make_folder(dataset)
    folder = os.open(dataset, os.O_RDONLY)
    try:
        _lock(folder, dataset)
        try:
            yield
        finally:
            for empty in [*(dataset / name for name in FOLDERS), dataset]:
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()
    finally:
        os.close(folder)


def _lock(folder: int, dataset: Path) -> None:
    """Takes the lock; who only looks whether it is taken holds it for a moment."""
    for _ in range(LOOKS):
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_SECONDS)
    raise InputError("one process at a time writes to a dataset", f"{dataset} is in use", "wait for it to end")


def put_aside(dataset: Path, path: Path) -> str:
    """Moves a file or folder of a dataset into quarantine/strays/; where it went, relative to the dataset."""
    to = dataset / QUARANTINE / "strays" / path.relative_to(dataset)
    while to.exists():
        to = to.with_name(f"{to.name}+")
    make_folder(to.parent)
    path.replace(to)
    sync_folder(to.parent)
    sync_folder(path.parent)
    return to.relative_to(dataset).as_posix()
