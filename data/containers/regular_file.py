"""Opening what somebody else calls a file: a pipe would block whoever opens it, and a device never ends."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

NOT_REGULAR = "not a file with bytes, but a folder, a pipe or a device"


def open_regular(path: Path | str) -> BinaryIO:
    """A regular file for reading, at once; links are followed.

    Raises:
        OSError: there is none, it is something else, or it cannot be read.
    """

    def opener(name: str, flags: int) -> int:
        file = os.open(name, flags | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise OSError(errno.EINVAL, NOT_REGULAR)

    return open(path, "rb", opener=opener)


def open_source(source: Path | bytes) -> BinaryIO:
    """A regular file, or one in memory, for reading.

    Raises:
        OSError: as of `open_regular`.
    """
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def read_regular(path: Path | str) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as of `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()
