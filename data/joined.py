"""Joined files: whether another file stands behind the one that is read, of which nothing would be seen.

    cat a.mp4 b.mp4 > c.mp4      players and FFmpeg read a.mp4 alone, and nobody says so

MPEG-TS, MPEG-PS, Matroska, AVI, GIF and raw streams are read to their end (`data.scan`); these here are not:

    MP4    a second list of frames (moov), unless frames come in fragments, which go on under the first
    FLV    a second header where a tag should be
    ASF    a second header object
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

ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
MOST_BOXES = 1 << 20  # that are looked at


def second_file(source: Path | bytes) -> int | None:
    """The byte at which another file begins behind the one that is read; None if none does, as far as is known.

    Raises:
        OSError: it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(16)
        find = next((find for magic, find in _SECOND if re.match(magic, head, re.DOTALL)), None)
        if find is None:
            return None
        size = file.seek(0, os.SEEK_END)
        with suppress(struct.error, IndexError):
            return find(file, size)
    return None


def _second_mp4(file: BinaryIO, size: int) -> int | None:
    """ISO/IEC 14496-12, 4.2 and 8.2.1."""
    at, seen, begins = 0, 0, 0
    for _ in range(MOST_BOXES):
        if at + 8 > size:
            return None
        file.seek(at)
        head = file.read(16)
        length, kind = struct.unpack_from(">I4s", head)
        if length == 1:
            length = struct.unpack_from(">Q", head, 8)[0]
        if kind == b"moof" or length < 8:  # 0: to the end of the file
            return None
        begins = at if kind == b"ftyp" else begins
        if kind == b"moov":
            if seen:
                return begins
            seen += 1
        at += length
    return None


def _second_flv(file: BinaryIO, size: int) -> int | None:
    """Adobe Flash Video File Format 10.1, annex E."""
    file.seek(5)
    at = struct.unpack(">I", file.read(4))[0] + 4
    while at + 11 <= size:
        file.seek(at)
        tag = file.read(11)
        if tag[:3] == b"FLV":
            return int(at)
        at += 11 + int.from_bytes(tag[1:4]) + 4
    return None


def _second_asf(file: BinaryIO, size: int) -> int | None:
    """Advanced Systems Format 1.20, 2.1."""
    at = 0
    while at + 24 <= size:
        file.seek(at)
        head = file.read(24)
        length = struct.unpack_from("<Q", head, 16)[0]
        if at and head[:16] == ASF_HEADER:
            return at
        if length < 24:
            return None
        at += length
    return None


_SECOND: tuple[tuple[bytes, Callable[[BinaryIO, int], int | None]], ...] = (
    (rb"....(ftyp|moov|mdat|free|skip|wide)", _second_mp4),
    (rb"FLV", _second_flv),
    (re.escape(ASF_HEADER), _second_asf),
)
