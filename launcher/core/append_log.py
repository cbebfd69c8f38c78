"""Rank 0's lines in the records of a run, which a full disk may delay but not lose.

The records lie on the disk that checkpoints fill up most often. A small file, `.reserve`, is given up when there is no
byte left, so that the record can say so; what does not fit even then is held until there is room.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.core.run_folder import RunFolder, append_line

RESERVE = ".reserve"
RESERVE_BYTES = 256 << 10
AGAIN_SECONDS = 10.0  # after which a reserve that was given up is made again, if there is room
FULL = (errno.ENOSPC, errno.EDQUOT)


class AppendLog:
    """Appends to the records of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self.reserve = folder.root / RESERVE
        self.held: deque[tuple[Path, dict[str, Any]]] = deque()
        self._next = 0.0
        self._keep_reserve()

    def append(self, path: Path, fields: dict[str, Any]) -> None:
        """Add a line, now or when there is room; lines keep their order."""
        self.held.append((path, fields))
        while self.held:
            if not self._written(*self.held[0]):
                return
            self.held.popleft()
        self._keep_reserve()

    def close(self) -> None:
        """Give the reserve back."""
        self.reserve.unlink(missing_ok=True)

    def _written(self, path: Path, fields: dict[str, Any]) -> bool:
        for _ in range(2):
            try:
                append_line(path, fields)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.reserve.unlink(missing_ok=True)
                self._next = time.monotonic() + AGAIN_SECONDS
            else:
                return True
        return False

    def _keep_reserve(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + AGAIN_SECONDS
        if self.reserve.exists() and self.reserve.stat().st_size == RESERVE_BYTES:
            return
        with suppress(OSError), open(self.reserve, "wb") as file:  # without room for it we do without
            os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
