"""Truncation: whether a file ends before the frames that its container holds.

Bytes tell it, not numbers: a declared count of frames or of seconds counts edits that are not shown, frames that repeat
the one before, and a last one that is held, so whole files have less than they declare. What a format says of its own
length in bytes is true of whole files: the list of chunks of AVI, the segment of Matroska, the blocks of a GIF.
Of MP4, FFmpeg knows the place of every frame (`data.demux`). A stream that says nothing of its length, such as
MPEG-TS, may end anywhere.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from data import gif
from data.regular import open_regular

UNKNOWN = 0xFFFFFFFF  # a size that was to be written at the end
SEGMENT = 0x18538067  # RFC 9559, 5.1


def why_cut(source: Path | bytes) -> str | None:
    """Where a file ends too early, in words; None if it does not, as far as its container tells.

    Raises:
        OSError: it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        head = file.read(12)
        find = next((find for magic, find in _ENDS if re.match(magic, head, re.DOTALL)), None)
        if find is None:
            return None
        size, end = file.seek(0, os.SEEK_END), None
        file.seek(0)
        with suppress(struct.error, IndexError):
            end = find(file, size)
    return f"cut short: its frames go to byte {end:,}, the file to {size:,}" if end is not None and end > size else None


def _avi_end(file: BinaryIO, size: int) -> int | None:
    """Byte after the last list of frames; several RIFF chunks follow each other in large files (OpenDML)."""
    end: int | None = None
    at, first = 0, 8 + int.from_bytes(file.read(8)[4:], "little")
    while at + 12 <= size:
        file.seek(at)
        kind, length, form = struct.unpack("<4sI4s", file.read(12))
        if kind == b"RIFF" and (form == b"AVI " or (form == b"AVIX" and at)):
            at += 12
            continue
        if kind == b"LIST" and form == b"movi":
            if length in (0, UNKNOWN):
                return None  # never closed: the frames go as far as they go
            end = int(at + 8 + length)
        elif kind == b"RIFF":
            return end
        at += 8 + length + length % 2
    return first if end is None else end


def _matroska_end(file: BinaryIO, size: int) -> int | None:
    """Byte after the first segment; RFC 8794, 4 and 5."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(16)
        id_length = _leading(head[0])
        length_of_size = _leading(head[id_length])
        kind = int.from_bytes(head[:id_length])
        value = int.from_bytes(head[id_length : id_length + length_of_size]) & ((1 << 7 * length_of_size) - 1)
        if value == (1 << 7 * length_of_size) - 1:
            return None  # unknown: live
        at += id_length + length_of_size + value
        if kind == SEGMENT:
            return at
    return at


def _leading(byte: int) -> int:
    """Bytes of a number of variable length that begins with this one."""
    if not byte:
        raise IndexError("no number of EBML begins with a zero byte")
    return 9 - byte.bit_length()


_ENDS: tuple[tuple[bytes, Callable[[BinaryIO, int], int | None]], ...] = (
    (rb"RIFF....AVI ", _avi_end),
    (rb"\x1a\x45\xdf\xa3", _matroska_end),
    (gif.MAGIC, gif.end),
)
