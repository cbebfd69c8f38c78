"""Why a file is no video that can be opened, in words that tell what to do: FFmpeg says the same of all of them."""

from __future__ import annotations

import codecs
import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

from data.containers.regular_file import open_regular

AGAIN = "copy or download it again, or leave it out"
LEAVE = "leave it out"
UNPACK = "unpack it, and give what is in it"
HEAD = 4096  # bytes looked at
KINDS = {  # first bytes, which a file has whatever its name says
    b"%PDF": ("a PDF", LEAVE),
    b"PK\x03\x04": ("a zip archive", UNPACK),
    b"\x1f\x8b": ("gzip data", UNPACK),
    b"\x28\xb5\x2f\xfd": ("zstd data", UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", UNPACK),
    b"Rar!": ("a rar archive", UNPACK),
    b"\x7fELF": ("a program", LEAVE),
    b"SQLite format 3": ("a database", LEAVE),
    b"version https://git-lfs": ("a Git LFS pointer: the file itself was not fetched", "git lfs pull"),
}


PICTURE = "save it as JPEG, PNG or WebP"
PICTURES = {  # of kinds that are not read, first bytes
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "icon",
}
PICTURE_BRANDS = {b"avif": "AVIF", **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1"), "HEIF")}
LISTS = (b"ffconcat", b"#EXTM3U", b"v=0", b"<?xml")  # first bytes of what names other files or a stream


Why = tuple[str, str]  # what a file is, and what to do


def why_unreadable(source: Path | bytes) -> Why | None:
    """What a file is instead of a video, or where it ends too early, and what to do; None if nothing is known of it."""
    if isinstance(source, bytes):
        return _why(io.BytesIO(source), len(source))
    try:
        with open_regular(source) as file:
            return _why(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        return error.strerror or str(error), "check that it is a file, and that you may read it"


def _why(file: BinaryIO, size: int) -> Why | None:
    if size == 0:
        return "the file is empty (0 bytes)", AGAIN
    head = file.read(HEAD)
    for begin, (kind, remedy) in KINDS.items():
        if head.startswith(begin):
            return f"no video but {kind}", remedy
    if head[257:262] == b"ustar":
        return "no video but a tar archive", "name it .tar"
    if (picture := picture_kind(head)) is not None:
        return f"no video but a picture ({picture})", PICTURE
    if head[4:8] == b"ftyp":
        reason = _mp4(file, size)
        return None if reason is None else (reason, AGAIN)
    if not any(head):
        return f"its first {len(head):,} bytes are zero: it was never written to the end", AGAIN
    if _is_text(head):
        return "no video but text", LEAVE
    return ("no video but a list of other files", "give these files") if head.startswith(LISTS) else None


def picture_kind(head: bytes) -> str | None:
    """What picture begins with these bytes, of the kinds that are not read; None: it is none of them."""
    if head[4:8] == b"ftyp":
        return PICTURE_BRANDS.get(head[8:12])  # of one picture; those of several have others
    if head[:2] == b"BM" and len(head) > 18 and head[14:18] in (b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"):
        return "BMP"
    return next((kind for begin, kind in PICTURES.items() if head.startswith(begin)), None)


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
