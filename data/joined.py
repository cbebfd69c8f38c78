"""Joined files: where another file stands behind the first, and whether it is read.

    cat a.mp4 b.mp4 > c.mp4      players and FFmpeg read a.mp4 alone, and nobody says so

MPEG-TS, MPEG-PS, Matroska, AVI, GIF and raw streams are read to their end (`data.scan`). In MPEG-TS the counters of all
kinds of packets begin anew then, as nothing else makes them: a packet that is lost leaves a gap in one. Not read are:

    MP4    a second list of frames (moov), unless frames come in fragments, which go on under the first
    FLV    a second header where a tag should be
    ASF    a second header object
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from data.regular import open_source

Ints = npt.NDArray[np.int64]

ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
TS_PACKET, TS_SYNC, FIRST_OWN = 188, 0x47, 0x20  # bytes, first byte, first kind that a stream may have
MOST_BOXES = 1 << 20  # that are looked at


def second_file(source: Path | bytes) -> int | None:
    """The byte at which another file begins behind the one that is read; None if none does, as far as is known.

    Raises:
        OSError: it cannot be read.
    """
    with open_source(source) as file:
        head = file.read(16)
        find = next((find for magic, find in _SECOND if re.match(magic, head, re.DOTALL)), None)
        if find is None:
            return None
        size = file.seek(0, os.SEEK_END)
        with suppress(struct.error, IndexError):
            return find(file, size)
    return None


def later_streams(source: Path | bytes) -> list[int]:
    """Bytes at which further files begin in an MPEG-TS, ascending.

    That is a program table after which each kind of packet that stands before the first frame, and that frame, have the
    counters that they had in the beginning. ISO/IEC 13818-1, 2.4.3.
    """
    data = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.memmap(source, np.uint8, "r")
    count = len(data) // TS_PACKET
    heads = data[: count * TS_PACKET].reshape(count, TS_PACKET)[:, :4]
    if not count or (heads[:, 0] != TS_SYNC).any():
        return []
    kinds = (heads[:, 1] & 0x1F).astype(np.int64) << 8 | heads[:, 2]
    begins, counters = heads[:, 1] & 0x40 > 0, heads[:, 3] & 0xF
    tables = np.flatnonzero((kinds == 0) & begins)
    frames = np.flatnonzero(begins & (kinds >= FIRST_OWN) & ~np.isin(kinds, _tables_of(data, tables[:1])))
    if not len(tables) or not len(frames):
        return []

    def seen(start: int) -> dict[int, int]:
        """The counter of each kind from a packet on, up to the next frame."""
        stop = next((int(frame) + 1 for frame in frames[np.searchsorted(frames, start) :][:1]), start)
        return dict(zip(kinds[start:stop][::-1].tolist(), counters[start:stop][::-1].tolist(), strict=True))

    first = seen(int(tables[0]))
    return [int(at) * TS_PACKET for at in tables[1:] if seen(int(at)) == first]


def _tables_of(data: npt.NDArray[np.uint8], at: Ints) -> list[int]:
    """The kinds of packets that have the tables of programs; ISO/IEC 13818-1, 2.4.4.3."""
    if not len(at):
        return []
    packet = bytes(data[int(at[0]) * TS_PACKET : (int(at[0]) + 1) * TS_PACKET])
    start = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
    start += 1 + packet[start]
    stop = start + 3 + (int.from_bytes(packet[start + 1 : start + 3]) & 0xFFF) - 4
    return [int.from_bytes(packet[n + 2 : n + 4]) & 0x1FFF for n in range(start + 8, min(stop, TS_PACKET - 3), 4)]


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
