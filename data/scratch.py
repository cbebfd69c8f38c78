"""Folders for what a process needs for a while, which go with it, however it ends.

    <temporary folder>/longreel-<user>/<random>/file.mp4      the folder is locked as long as its process lives

The lock goes with the process, so whoever comes next removes the folders that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process's own, gone at the end, or when somebody comes by after the process was killed."""
    base = _base()
    base.mkdir(mode=0o700, exist_ok=True)
    with _locked(base, fcntl.LOCK_SH):  # not while somebody sweeps: a new folder is not locked yet
        folder = Path(tempfile.mkdtemp(dir=base))
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def sweep() -> None:
    """Removes what killed processes left in the temporary folder."""
    base = _base()
    if not base.is_dir():
        return
    with _locked(base, fcntl.LOCK_EX):
        for folder in base.iterdir():
            held = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                pass  # in use
            finally:
                os.close(held)


def _base() -> Path:
    return Path(tempfile.gettempdir()) / f"longreel-{os.getuid()}"


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, how)
        yield
    finally:
        os.close(held)
