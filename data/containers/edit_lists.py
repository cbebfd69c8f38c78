"""Edits: an mp4 may play a part of its frames at another speed, or hold one of them (ISO/IEC 14496-12, 8.6.6).

FFmpeg reads which part is shown, and takes every part at its usual speed: a picture that is held for a second would be
a second of what comes after it. Where nothing is shown for a while, other than in the beginning, it shows the film from
its first frame.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data.containers.regular_file import open_source

USUAL = (1, 0)  # speed, whole and fraction
LARGEST = 64 << 20  # bytes of all tables
INSIDE = (b"moov", b"trak", b"edts")
VIDEO = rb"hdlr.{8}vide"  # what a track is of, 8.4.3


def why_edited(source: Path | bytes) -> str | None:
    """What an edit list asks for that is not read here, in words; None if it asks for nothing of that kind.

    Raises:
        OSError: it cannot be read.
    """
    with open_source(source) as file:
        tables = _tables(file)
    for edits in _lists(tables):
        shown = [start >= 0 for start, _ in edits]
        if not all(shown[shown.index(True) :] if any(shown) else ()):
            return "its edit list shows nothing for a while behind its first part, which is not read here"
        if any(speed == (0, 0) for _, speed in edits):
            return "its edit list holds a picture, which is not read here"
        if any(start >= 0 and speed != USUAL for start, speed in edits):
            return "its edit list plays a part at another speed, which is not read here"
    return None


def _tables(file: BinaryIO) -> bytes:
    """The payload of the box `moov`; b"" if there is none."""
    at = 0
    while len(head := file.read(16)) >= 8:
        size, kind = struct.unpack_from(">I4s", head)
        begin = 16 if size == 1 else 8
        size = int.from_bytes(head[8:16]) if size == 1 else size
        if kind == b"moov":
            file.seek(at + begin)
            return file.read(min(size - begin, LARGEST) if size else LARGEST)
        if size < begin:
            return b""
        at += size
        file.seek(at)
    return b""


def _lists(data: bytes) -> Iterator[list[tuple[int, tuple[int, int]]]]:
    """(where it begins or -1 for nothing, speed) of each edit, of the list of each video track in these boxes."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            return
        inside = data[at + 8 : at + size]
        if kind == b"trak" and not re.search(VIDEO, inside, re.DOTALL):
            pass
        elif kind in INSIDE:
            yield from _lists(inside)
        elif kind == b"elst" and len(inside) >= 8:
            form = ">Qqhh" if inside[0] else ">Iihh"
            length = struct.calcsize(form)
            count = min(int.from_bytes(inside[4:8]), (len(inside) - 8) // length)
            edits = (struct.unpack_from(form, inside, 8 + n * length) for n in range(count))
            yield [(start, (whole, part)) for duration, start, whole, part in edits if duration or start >= 0]
        at += size
