"""Why a file is no video that can be opened, in words that tell what to do: FFmpeg says the same of all of them."""

from __future__ import annotations

import codecs
import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

from data.regular import open_regular

HEAD = 4096  # bytes looked at
KINDS = {  # first bytes, which a file has whatever its name says
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x7fELF": "a program",
    b"SQLite format 3": "a database",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not fetched",
}


LISTS = (b"ffconcat", b"#EXTM3U", b"v=0", b"<?xml")  # first bytes of what names other files or a stream


def why_unreadable(source: Path | bytes) -> str | None:
    """What a file is instead of a video, or where it ends too early; None if nothing is known of it."""
    if isinstance(source, bytes):
        return _why(io.BytesIO(source), len(source))
    try:
        with open_regular(source) as file:
            return _why(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        return error.strerror or str(error)


def _why(file: BinaryIO, size: int) -> str | None:
    if size == 0:
        return "the file is empty (0 bytes)"
    head = file.read(HEAD)
    for begin, kind in KINDS.items():
        if head.startswith(begin):
            return f"no video but {kind}"
    if head[257:262] == b"ustar":
        return "no video but a tar archive"
    if head[4:8] == b"ftyp":
        return _mp4(file, size)
    if not any(head):
        return f"its first {len(head):,} bytes are zero: it was never written to the end"
    if _is_text(head):
        return "no video but text"
    return "no video but a list of other files" if head.startswith(LISTS) else None


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)


def _mp4(file: BinaryIO, size: int) -> str | None:
    """ISO/IEC 14496-12, 4.2: boxes follow each other, each begins with its size and its kind."""
    at, kinds = 0, []
    while at < size:
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            return f"cut short at {size:,} bytes, within the header of a box"
        length, kind = struct.unpack(">I4s", header[:8])
        name = kind.decode("latin-1")
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        elif length == 0:
            length = size - at
        if length < 8 or not name.isprintable():
            return f"damaged at byte {at:,}: no box of mp4 begins so"
        if at + length > size:
            return f"cut short or damaged: its box {name!r} goes to byte {at + length:,}, the file to {size:,}"
        kinds.append(name)
        at += length
    if "moov" in kinds:
        return None
    return f"cut short: it has no box 'moov', which many programs write last (it has: {', '.join(kinds)})"
