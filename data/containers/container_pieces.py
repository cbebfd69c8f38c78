"""Chains: containers that are pieces end to end, each of which says its length.

    FLV    header | tag | tag | tag ...                 Ogg    page | page | page ...
    ASF    header object | data object | index ...      MXF    key, length, value | key, length, value ...
    IVF    header | frame | frame ...                   Y4M    header line | FRAME, pixels | FRAME, pixels ...
    MP4    ... box | box, of those that come in fragments

So their pieces tell what FFmpeg passes over in silence: a last piece that is longer than what is left of the file
(`data.containers.truncation`), and a piece that begins another file (`data.containers.joined_files`). A chain ends
where no piece can begin, since anything may stand behind a file. It takes 2 us a piece.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
ASF_LIVE = 50  # bytes of a data object, or fewer, whose length was never filled in
FLV_TAGS = (8, 9, 18)  # sound, picture, words
MP4_BOXES = (b"moof", b"mdat", b"styp", b"sidx", b"emsg", b"prft", b"mfra", b"free", b"moov", b"ftyp", b"skip", b"wide")
OGG_BEGINS = 2  # flag of a page that is the first of its stream
MXF_KEY, MXF_HEADER = b"\x06\x0e\x2b\x34", b"\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02"
Y4M_LONGEST = 512  # bytes of a line


@dataclass(frozen=True)
class Piece:
    """Bytes [start, stop) by what they say of themselves; `first` if they begin a file; `lost` pieces before them."""

    start: int
    stop: int
    first: bool = False
    lost: bool = False


def pieces(file: BinaryIO) -> Iterator[Piece]:
    """The pieces of a file, the last of which may go beyond its end; none if it is no chain that is known."""
    head = file.read(16)
    walk = next((walk for magic, walk in _WALKS if re.match(magic, head, re.DOTALL)), None)
    if walk is not None:
        size = file.seek(0, os.SEEK_END)
        with suppress(struct.error, IndexError, ValueError):
            yield from walk(file, size)


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _flv(file: BinaryIO, size: int) -> Iterator[Piece]:
    """Adobe Flash Video File Format 10.1, annex E; behind each tag stands its length again."""
    at = 0
    while at < size:
        tag = _read(file, at, 11)
        if tag.startswith(b"FLV"):
            stop = at + struct.unpack_from(">I", tag, 5)[0]
            yield Piece(at, stop, first=True)
        elif tag[0] & 0x1F in FLV_TAGS and not any(tag[8:11]):
            stop = at + 11 + int.from_bytes(tag[1:4]) if len(tag) == 11 else at + 11
            yield Piece(at, stop)
        else:
            return
        at = stop + 4


def _asf(file: BinaryIO, size: int) -> Iterator[Piece]:
    """Advanced Systems Format 1.20, 2.1."""
    at = 0
    while at + 24 <= size:
        head = _read(file, at, 24)
        length, first = struct.unpack_from("<Q", head, 16)[0], head.startswith(ASF_HEADER)
        if length < 24 or (length <= ASF_LIVE and not first):
            return
        if first or head.startswith(ASF_DATA):
            yield Piece(at, at + length, first)
        at += length


def _ogg(file: BinaryIO, size: int) -> Iterator[Piece]:
    """RFC 3533, 6. A stream that begins behind pages of others, which begin all together, begins another file."""
    at, beginning, counts = 0, False, dict[int, int]()
    while at < size:
        head = _read(file, at, 27 + 255)
        if not head.startswith(b"OggS"):
            return
        flags, stream, count = head[5], *struct.unpack_from("<II", head, 14)
        begins = bool(flags & OGG_BEGINS)
        lost = not begins and stream in counts and count != (counts[stream] + 1) & 0xFFFFFFFF
        counts[stream] = count
        stop = at + 27 + head[26] + sum(head[27 : 27 + head[26]])
        yield Piece(at, stop, begins and not beginning, lost)
        at, beginning = stop, begins


def _ivf(file: BinaryIO, size: int) -> Iterator[Piece]:
    """Of each frame 4 bytes of length and 8 of time; https://wiki.multimedia.cx/index.php/IVF."""
    at = 0
    while at < size:
        head = _read(file, at, 12)
        first = head.startswith(b"DKIF")
        length = int.from_bytes(head[6:8], "little") if first else 12 + int.from_bytes(head[:4], "little")
        if len(head) < 12 or length <= 12 or (not first and head[10:].strip(b"\0")):  # no time is so late
            return
        yield Piece(at, at + length, first)
        at += length


def _mxf(file: BinaryIO, size: int) -> Iterator[Piece]:
    """SMPTE ST 377-1, 6.3 and 7.1: keys of 16 bytes, lengths of one byte or of as many as that says."""
    at = 0
    while at + 17 <= size:
        head = _read(file, at, 25)
        if not head.startswith(MXF_KEY):
            return
        more = head[16] - 0x80 if head[16] > 0x80 else 0
        length = int.from_bytes(head[17 : 17 + more]) if more else head[16]
        yield Piece(at, at + 17 + more + length, first=head[4:14] == MXF_HEADER)
        at += 17 + more + length


def _mp4(file: BinaryIO, size: int) -> Iterator[Piece]:
    """ISO/IEC 14496-12, 4.2 and 8.8: from the first fragment on; of other frames the index tells where they are."""
    at, fragments = 0, False
    while at + 8 <= size:
        head = _read(file, at, 16)
        length, kind = struct.unpack_from(">I4s", head)
        if length == 1:
            length = struct.unpack_from(">Q", head, 8)[0]
        if kind not in MP4_BOXES or length < 8:  # 0: to the end of the file
            return
        fragments |= kind == b"moof"
        if fragments and kind in (b"moof", b"mdat"):
            yield Piece(at, at + length)
        at += length


def _y4m(file: BinaryIO, size: int) -> Iterator[Piece]:
    """https://wiki.multimedia.cx/index.php/YUV4MPEG2."""
    at, pixels = 0, 0
    while at < size:
        line, end, _ = _read(file, at, Y4M_LONGEST).partition(b"\n")
        first = line.startswith(b"YUV4MPEG2")
        if not end or not (first or line.startswith(b"FRAME")):
            return
        if first:
            pixels = _y4m_picture(line.decode("ascii", "replace"))
            if not pixels:
                return
        stop = at + len(line) + 1 + (0 if first else pixels)
        yield Piece(at, stop, first)
        at = stop


def _y4m_picture(line: str) -> int:
    """Bytes of a picture, by the header; 0 if it is of no known kind."""
    words = {word[0]: word[1:] for word in line.split()[1:]}
    width, height, kind = int(words["W"]), int(words["H"]), words.get("C", "420")
    found = re.fullmatch(r"(420|411|422|444alpha|444|mono)(jpeg|mpeg2|paldv|p?\d+)?", kind)
    if found is None:
        return 0
    wide = 2 if (found[2] or "").lstrip("p").isdigit() else 1  # bytes of a sample
    columns = {"420": (width + 1) // 2, "422": (width + 1) // 2, "411": (width + 3) // 4}.get(found[1], width)
    rows = (height + 1) // 2 if found[1] == "420" else height
    planes = {"mono": 0, "444alpha": 3}.get(found[1], 2)
    return wide * (width * height + planes * columns * rows)


_WALKS: tuple[tuple[bytes, Callable[[BinaryIO, int], Iterator[Piece]]], ...] = (
    (rb"FLV", _flv),
    (re.escape(ASF_HEADER), _asf),
    (rb"OggS", _ogg),
    (rb"DKIF", _ivf),
    (re.escape(MXF_KEY), _mxf),
    (rb"YUV4MPEG2 ", _y4m),
    (rb"....(ftyp|styp|moov|moof)", _mp4),
)
