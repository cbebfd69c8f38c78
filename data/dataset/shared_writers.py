"""Several processes that write one dataset together, each its own shards of it.

    shared(dataset)      held by all of them while they work; no other writer comes in
      claimed(id)        one of them makes this shard; the others leave it
    turn(dataset)        one at a time: who comes last finds every commit, and publishes

Locks of the system go with their process, however it ends. A claim is a lock on a file that `sweep` removes, should its
process be killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.dataset.shards import COMMITS, SHARDS, make_folder
from parallel.errors import InputError

PATIENCE = 10.0  # seconds that another process may take to tidy up


@contextmanager
def shared(dataset: Path, tidy: Callable[[], object]) -> Iterator[None]:
    """The dataset for this writer and others that share it.

    Args:
        dataset: the folder; made if absent.
        tidy: called if no one else is there yet.

    Raises:
        InputError: another process writes to it alone.
    """
    make_folder(dataset)
    folder = os.open(dataset, os.O_RDONLY)
    try:
        if _locked(folder, fcntl.LOCK_EX):
            tidy()
        deadline = time.monotonic() + PATIENCE
        while not _locked(folder, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise InputError(
                    "one process at a time writes to a dataset", f"{dataset} is in use", "wait for it to end"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(folder)


@contextmanager
def claimed(dataset: Path, shard_id: str) -> Iterator[bool]:
    """Whether this process may make the shard; no other does meanwhile. Look for its commit only now."""
    path = dataset / SHARDS / f".{shard_id}.claim.tmp"
    make_folder(path.parent)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        mine = _locked(file, fcntl.LOCK_EX)
        try:
            yield mine
        finally:
            if mine:  # while it is held: who opened it before us finds the commit, who comes later makes a new one
                path.unlink(missing_ok=True)
    finally:
        os.close(file)


@contextmanager
def turn(dataset: Path) -> Iterator[None]:
    """One process after the other."""
    path = dataset / COMMITS
    make_folder(path)
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
