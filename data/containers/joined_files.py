"""Joined files: where another file stands behind the first, and whether it is read.

    cat a.mp4 b.mp4 > c.mp4      players and FFmpeg read a.mp4 alone, and nobody says so

MPEG-TS, MPEG-PS, Matroska, AVI, GIF and raw streams are read to their end (`data.containers.packet_index`). Not read
are:

    MP4          a second list of frames (moov); of fragments behind one, FFmpeg leaves out the first
    chains       a second header (`data.containers.container_pieces`): FLV, ASF, Ogg, IVF, MXF, Y4M
    PNG, WebP    of an animation: a second one behind its end

In MPEG-TS a new file looks like packets that are lost, since the counters jump at either. It is one if they begin anew
as in the beginning of the first file; or if the picture before is whole, to the stuffing behind it, tables of programs
and a picture from its beginning follow, and either the counters of the tables jump too or time goes back.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from data.containers import container_pieces
from data.containers.regular_file import open_source

Ints = npt.NDArray[np.int64]

TS_PACKET, TS_SYNC, FIRST_OWN = 188, 0x47, 0x20  # bytes, first byte, first kind that a stream may have
TS_FORMS = ((188, 0), (192, 4), (204, 0))  # bytes from a packet to the next, and of them before it: M2TS has its time
TS_SEEN = 5  # packets that tell the form
PNG, WEBP = b"\x89PNG\r\n\x1a\n", (b"RIFF", b"WEBP")
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


def why_joined(at: int) -> tuple[str, str]:
    """What is wrong with a file that has another behind it, from a byte on, and what to do."""
    split = f"split it: head -c {at} FILE, tail -c +{at + 1} FILE"
    return f"another file is joined to it at byte {at:,}, which no player reads; {split}", f"{split}, and give both"


def later_streams(source: Path | bytes) -> list[int]:
    """Bytes of the packets with which further files begin in an MPEG-TS, ascending. ISO/IEC 13818-1, 2.4.3."""
    data = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.memmap(source, np.uint8, "r")
    form = next(((size, at) for size, at in TS_FORMS if (data[at : TS_SEEN * size : size] == TS_SYNC).all()), None)
    count = 0 if form is None else (len(data) - form[1]) // form[0]
    if form is None or not count:
        return []
    size, before = form
    packets = np.lib.stride_tricks.as_strided(data[before:], (count, TS_PACKET), (size, 1), writeable=False)
    heads = packets[:, :4]
    if (heads[:, 0] != TS_SYNC).any():
        return []
    kinds = (heads[:, 1] & 0x1F).astype(np.int64) << 8 | heads[:, 2]
    begins, counters = heads[:, 1] & 0x40 > 0, heads[:, 3] & 0xF
    tables = np.flatnonzero((kinds == 0) & begins)
    programs = _tables_of(packets, tables[:1])
    frames = np.flatnonzero(begins & (kinds >= FIRST_OWN) & ~np.isin(kinds, programs))
    if not len(tables) or not len(frames):
        return []

    def seen(start: int) -> dict[int, int]:
        """The counter of each kind from a packet on, up to the next frame."""
        stop = next((int(frame) + 1 for frame in frames[np.searchsorted(frames, start) :][:1]), start)
        return dict(zip(kinds[start:stop][::-1].tolist(), counters[start:stop][::-1].tolist(), strict=True))

    first = seen(int(tables[0]))
    found = {int(at) for at in tables[1:] if seen(int(at)) == first}
    found |= set(_begun_otherwise(packets, kinds, begins, tables, frames, programs))
    return [at * size for at in sorted(found)]


def _begun_otherwise(
    packets: npt.NDArray[np.uint8],
    kinds: Ints,
    begins: npt.NDArray[np.bool_],
    tables: Ints,
    frames: Ints,
    programs: Sequence[int],
) -> Iterator[int]:
    """Tables with which a file begins whose counters do not go on from those before it, nor begin as the first did."""
    counters, has_payload = (packets[:, 3] & 0xF).astype(np.int64), packets[:, 3] & 0x10 > 0

    def jumps(kind: int, at: int) -> bool:
        """Whether the counter of a kind does not go on at its next packet from `at` on."""
        there = np.flatnonzero((kinds == kind) & has_payload)
        place = int(np.searchsorted(there, at))
        return 0 < place < len(there) and int(counters[there[place]] - counters[there[place - 1]]) % 16 != 1

    for video in {int(kinds[at]) for at in frames if _is_video(packets[at])}:
        own = np.flatnonzero((kinds == video) & has_payload)
        gaps = np.flatnonzero(np.diff(counters[own]) % 16 != 1)
        for last, following in zip(own[gaps].tolist(), own[gaps + 1].tolist(), strict=True):
            inside = tables[(tables > last) & (tables < following)]
            if not len(inside) or not begins[following] or not np.isin(programs, kinds[inside[0] : following]).any():
                continue
            before = own[: np.searchsorted(own, following)]
            first = before[begins[before]][-1:]
            if not _is_stuffed(packets[last]) or not len(first):
                continue
            back = _time(packets[following]) < _time(packets[int(first[0])])
            if back or any(jumps(kind, int(inside[0])) for kind in (0, *programs)):
                yield int(inside[0])


def _is_stuffed(packet: npt.NDArray[np.uint8]) -> bool:
    """Whether a packet is the last of a picture: what is left of it is filled up, in its adaptation field."""
    if not packet[3] & 0x20:
        return False
    length, flags = int(packet[4]), int(packet[5]) if packet[4] else 0
    clocks = 6 * (flags >> 4 & 1) + 6 * (flags >> 3 & 1) + (flags >> 2 & 1)  # PCR, OPCR, countdown
    return length == 0 or (not flags & 3 and length > 1 + clocks)


def _is_video(packet: npt.NDArray[np.uint8]) -> bool:
    start = _payload(packet)
    head = bytes(packet[start : start + 4])
    return head[:3] == b"\0\0\1" and len(head) == 4 and (0xE0 <= head[3] <= 0xEF or head[3] == 0xFD)


def _time(packet: npt.NDArray[np.uint8]) -> int:
    """When the picture that begins with a packet is shown, in 1/90,000 s; 0 if it does not say. 2.4.3.6."""
    start = _payload(packet)
    head = bytes(packet[start : start + 14])
    if len(head) < 14 or not head[7] & 0x80:
        return 0
    high, middle, low = head[9] >> 1 & 7, *struct.unpack(">HH", head[10:14])
    return int(high << 30 | middle >> 1 << 15 | low >> 1)


def _payload(packet: npt.NDArray[np.uint8]) -> int:
    """Where it begins."""
    return 4 + (1 + int(packet[4]) if packet[3] & 0x20 else 0)


def _tables_of(packets: npt.NDArray[np.uint8], at: Ints) -> list[int]:
    """The kinds of packets that have the tables of programs; ISO/IEC 13818-1, 2.4.4.3."""
    if not len(at):
        return []
    packet = bytes(packets[int(at[0])])
    start = _payload(packets[int(at[0])])
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
        if length < 8:  # 0: to the end of the file
            return None
        begins = at if kind == b"ftyp" else begins
        if kind == b"moov":
            if seen:
                return begins
            seen += 1
        at += length
    return None


def _second_of_chain(file: BinaryIO, size: int) -> int | None:
    file.seek(0)
    return next((piece.start for piece in container_pieces.pieces(file) if piece.first and piece.start), None)


def _second_png(file: BinaryIO, size: int) -> int | None:
    """PNG 3, 5: of an animation; behind a still anything may stand."""
    at, animated = len(PNG), False
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        at, animated = at + 12 + length, animated or kind == b"acTL"
        if kind == b"IEND":
            file.seek(at)
            return at if animated and file.read(len(PNG)) == PNG else None
    return None


def _second_webp(file: BinaryIO, size: int) -> int | None:
    """RFC 9649, 2.3 and 2.7: of an animation, see `_second_png`."""
    file.seek(0)
    head = file.read(21)
    at = 8 + struct.unpack_from("<I", head, 4)[0]
    file.seek(at + at % 2)
    behind = file.read(12)
    animated = head[12:16] == b"VP8X" and head[20] & 2
    return at + at % 2 if animated and (behind[:4], behind[8:]) == WEBP else None


_SECOND: tuple[tuple[bytes, Callable[[BinaryIO, int], int | None]], ...] = (
    (rb"....(ftyp|moov|mdat|free|skip|wide)", _second_mp4),
    (re.escape(PNG), _second_png),
    (rb"RIFF....WEBP", _second_webp),
    (rb"", _second_of_chain),
)
