"""Truncation: whether a file ends before the frames that its container holds.

Bytes tell it, not numbers: a declared count of frames or of seconds counts edits that are not shown, frames that repeat
the one before, and a last one that is held, so whole files have less than they declare. What a format says of its own
length in bytes is true of whole files: the list of chunks of AVI, the segment of Matroska, the blocks of a GIF, the
pieces of a chain (`data.containers.container_pieces`). Matroska tells holes too (`data.containers.matroska`), and so do
the numbers of Ogg's pages. Of MP4, FFmpeg knows the place of every frame. A stream that
says nothing of its length, such as MPEG-TS, may end anywhere.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from data.containers import container_pieces, gif, matroska
from data.containers.regular_file import open_source

UNKNOWN = 0xFFFFFFFF  # a size that was to be written at the end


def why_cut(source: Path | bytes) -> str | None:
    """Where a file ends too early or has a hole, in words; None if it does neither, as far as its container tells.

    Raises:
        OSError: it cannot be read.
    """
    with open_source(source) as file:
        head = file.read(12)
        find = next((find for magic, find in _ENDS if re.match(magic, head, re.DOTALL)), None)
        if find is None:
            file.seek(0)
            return _chain_cut(file)
        size, end = file.seek(0, os.SEEK_END), None
        file.seek(0)
        with suppress(struct.error, IndexError):
            end = find(file, size)
        if end is not None and end > size:
            return f"cut short: its frames go to byte {end:,}, the file to {size:,}"
        hole = matroska.damaged_at(file, size) if head.startswith(matroska.MAGIC) else None
    return None if hole is None else f"damaged at byte {hole:,}: no part of Matroska that may stand there"


def _chain_cut(file: BinaryIO) -> str | None:
    """As `why_cut`, of what is pieces end to end."""
    end = 0
    for piece in container_pieces.pieces(file):
        if piece.lost:
            return f"damaged at byte {piece.start:,}: pages of Ogg are missing before it"
        end = piece.stop
    size = file.seek(0, os.SEEK_END)
    return f"cut short: its frames go to byte {end:,}, the file to {size:,}" if end > size else None


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


_ENDS: tuple[tuple[bytes, Callable[[BinaryIO, int], int | None]], ...] = (
    (rb"RIFF....AVI ", _avi_end),
    (re.escape(matroska.MAGIC), matroska.end),
    (gif.MAGIC, gif.end),
)
