"""Folders for what a process needs for a while, which go with it, however it ends.

    <temporary folder>/longreel-<user>/<random>/file.mp4      the folder is locked as long as its process lives

The lock goes with the process, so whoever comes next removes the folders that nobody holds.

Others may write into the temporary folder too, and can guess our name in it. So what stands there is used only if it is
a folder and no link, belongs to this user and is open to nobody else; and what is removed is removed through the open
folder, never by a path that somebody might have turned elsewhere meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parallel.errors import InputError
from parallel.shell import quote

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process's own, gone at the end, or when somebody comes by after the process was killed.

    Raises:
        InputError: the folder that it would be made in is not ours alone.
    """
    path = _base()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    with _opened(path) as base:
        name = secrets.token_hex(8)
        with _locked(base, fcntl.LOCK_SH):  # not while somebody sweeps: a new folder is not locked yet
            os.mkdir(name, 0o700, dir_fd=base)
            held = os.open(name, FOLDER, dir_fd=base)
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield path / name
        finally:
            shutil.rmtree(name, ignore_errors=True, dir_fd=base)
            os.close(held)


def sweep() -> None:
    """Removes what killed processes left in the temporary folder.

    Raises:
        InputError: as of `scratch`.
    """
    path = _base()
    if not os.path.lexists(path):
        return
    with _opened(path) as base, _locked(base, fcntl.LOCK_EX):
        for name in os.listdir(base):
            with suppress(OSError):  # what is no folder is none of ours
                held = os.open(name, FOLDER, dir_fd=base)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(name, ignore_errors=True, dir_fd=base)
                except BlockingIOError:
                    pass  # in use
                finally:
                    os.close(held)


def _base() -> Path:
    return Path(tempfile.gettempdir()) / f"longreel-{os.getuid()}"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder, if it is one that nobody else could write into."""
    try:
        base = os.open(path, FOLDER)
    except OSError as error:
        raise _foreign(path, "a link, or no folder" if os.path.lexists(path) else str(error.strerror)) from error
    try:
        found = os.fstat(base)
        if found.st_uid != os.geteuid():
            raise _foreign(path, f"it belongs to user {found.st_uid}")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise _foreign(path, f"others may open it (mode {stat.S_IMODE(found.st_mode):04o})")
        yield base
    finally:
        os.close(base)


def _foreign(path: Path, found: str) -> InputError:
    return InputError(
        "the folder for temporary files is this user's alone",
        f"{path}: {found}",
        f"remove it (rm -r {quote(str(path))}), or export TMPDIR=FOLDER with a folder of your own",
    )


@contextmanager
def _locked(folder: int, how: int) -> Iterator[None]:
    fcntl.flock(folder, how)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)
