"""What lies where in a tar: ours, written the same every time, and anybody's, whole or damaged.

    | header | data ... 0 | header | data . 0 | 0 0 ... 0 |        in blocks of 512 bytes
    a        b            c                   end blocks
    Member(header=a, offset=b, size)          filled up to 10,240 bytes

Python's tarfile stops at a damaged header as if the archive ended there. `walk` says so, and goes on at the next header
that is one. It reads headers only: about 20 us a member.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from parallel.parsing import ParseError, whole_number

BLOCK = 512
RECORD = 20 * BLOCK  # an archive is filled up to a multiple of it
LONGEST_EXTENSION = 1 << 20  # bytes of a long name or of a pax header; more is an attack, not a name
LONGEST_NAME = 4096  # bytes, with its folders: no file system of Linux takes more
MOST_EXTENSIONS = 16  # of one member; without an end to them a damaged chain would be read again from each of its links
CHUNK = 1 << 20  # bytes read at a time where everything must be read

ReadAt = Callable[[int, int], bytes]  # (bytes at most, offset); fewer at the end only
Kind = Literal["file", "link", "folder", "sparse", "other"]
KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.LNKTYPE: "link",
    tarfile.SYMTYPE: "link",
    tarfile.DIRTYPE: "folder",
    tarfile.GNUTYPE_SPARSE: "sparse",
}


@dataclass(frozen=True)
class Member:
    """One entry: its header, with what belongs to it, begins at `header`; its data are `size` bytes at `offset`."""

    name: str
    kind: Kind
    header: int
    offset: int
    size: int

    @property
    def stop(self) -> int:
        """Where the next header begins."""
        return self.offset + padded(self.size)


@dataclass(frozen=True)
class Damage:
    """Bytes [start, stop) are not what a tar has there.

    Attributes:
        kind: a damaged header; the file ends before the archive does; or what follows its last member is wrong.
        name: of the member, if it is known.
    """

    start: int
    stop: int
    reason: str
    kind: Literal["header", "cut", "end"] = "header"
    name: str = ""


def padded(size: int) -> int:
    """`size` filled up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def header(name: str, size: int) -> bytes:
    """The header of a member of ours: no time, user or host in it, so the same samples give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "longreel", "longreel"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def ending(size: int) -> bytes:
    """What closes an archive of `size` bytes: two empty blocks, and more up to a whole record."""
    return bytes(-(-(size + 2 * BLOCK) // RECORD) * RECORD - size)


def walk(file: int, resync: bool = True) -> Iterator[Member | Damage]:
    """The members of an uncompressed tar in their order, and every stretch that is damaged, cut off or too much.

    ustar, pax and GNU headers, long names and sizes beyond 8 GB are understood. Names that are not UTF-8 keep their
    bytes as surrogates.

    Args:
        file: an open descriptor.
        resync: go on at the next header after a damaged one.
    """
    return entries(partial(os.pread, file), os.fstat(file).st_size, resync)


def entries(file: ReadAt, size: int, resync: bool = True) -> Iterator[Member | Damage]:
    """As `walk`, of `size` bytes that lie anywhere."""
    at = 0
    while True:
        found = _next(file, at, size)
        if found is None:
            rest = _filled(file, at, size)
            if rest is not None:
                yield rest
            return
        if isinstance(found, Member):
            if found.offset + found.size > size:
                yield Damage(found.header, size, f"{found.name} is cut off", "cut", found.name)
                return
            yield found
            at = found.stop
            continue
        start = _next_header(file, at + BLOCK, size) if resync and found.kind == "header" else None
        yield Damage(at, size if start is None else start, found.reason, found.kind)
        if start is None:
            return
        at = start


def _next(file: ReadAt, at: int, size: int) -> Member | Damage | None:
    """The member whose header begins at `at`; None at the end blocks."""
    first = at
    said: dict[str, str] = {}  # by a long name or a pax header before the header itself
    for _ in range(MOST_EXTENSIONS):
        block = file(BLOCK, at)
        if len(block) < BLOCK:
            return Damage(min(first, size), size, "the file ends where a header should be", "cut")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if first == at and not any(block):
                return None
            return Damage(first, at + BLOCK, f"damaged header: {error}")
        at += BLOCK
        if info.type not in EXTENSIONS:
            return _member(file, info, first, at, said)
        if not 0 <= info.size <= LONGEST_EXTENSION:
            return Damage(first, at, f"damaged header: a name of {info.size} bytes")
        data = file(info.size, at)
        if len(data) < info.size:
            return Damage(first, size, "the file ends inside a long name", "cut")
        at += padded(info.size)
        try:
            said.update(EXTENSIONS[info.type](data))
        except ValueError:
            return Damage(first, at, "damaged pax header")
    return Damage(first, at, f"damaged header: more than {MOST_EXTENSIONS} headers of one member")


def _member(file: ReadAt, info: tarfile.TarInfo, first: int, at: int, said: dict[str, str]) -> Member | Damage:
    name, length = said.get("GNU.sparse.name") or said.get("path") or info.name, said.get("size", str(info.size))
    kind = KINDS.get(info.type, "other")
    if any(key.startswith("GNU.sparse.") for key in said):
        kind = "sparse"
    elif kind == "sparse":
        at = _after_the_map(file, at)
    if len(name) > LONGEST_NAME:
        return Damage(first, at, f"damaged header: a name of {len(name):,} bytes")
    try:
        data = whole_number(length)
    except ParseError as error:
        return Damage(first, at, f"damaged header: the size of {name}: {error}")
    has_data = kind in ("file", "sparse") or info.type not in tarfile.SUPPORTED_TYPES
    return Member(name, kind, first, at, data if has_data else 0)


def _after_the_map(file: ReadAt, at: int) -> int:
    """Where the data of an old GNU sparse member begin: more blocks of its map may follow the header."""
    more = file(1, at - BLOCK + 482)
    while more not in (b"", b"\0"):
        more = file(1, at + 504)
        at += BLOCK
    return at


def _pax(data: bytes) -> dict[str, str]:
    """The records of a pax header, `<bytes> <key>=<value>\\n`; only keys that say where data lie.

    Raises:
        ValueError: it is none.
    """
    said: dict[str, str] = {}
    while data.rstrip(b"\0"):
        length, _, _ = data.partition(b" ")
        stop = whole_number(length)
        record, data = data[len(length) + 1 : stop], data[stop:]
        key, equals, value = record.partition(b"=")
        if not (equals and value.endswith(b"\n") and stop == len(length) + 1 + len(record)):
            raise ValueError("not a pax record")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            said[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
    return said


def _long_name(data: bytes) -> dict[str, str]:
    return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}


EXTENSIONS: dict[bytes, Callable[[bytes], dict[str, str]]] = {  # entries that belong to the next one
    tarfile.XHDTYPE: _pax,
    tarfile.SOLARIS_XHDTYPE: _pax,
    tarfile.XGLTYPE: lambda data: {},
    tarfile.GNUTYPE_LONGNAME: _long_name,
    tarfile.GNUTYPE_LONGLINK: lambda data: {},
}


def _next_header(file: ReadAt, at: int, size: int) -> int | None:
    """Where the next whole header begins."""
    while at < size:
        chunk = file(CHUNK, at)
        for start in range(0, len(chunk) - BLOCK + 1, BLOCK):
            block = chunk[start : start + BLOCK]
            if block[257:262] == b"ustar" and _is_header(block):
                return at + start
        at += CHUNK
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _filled(file: ReadAt, at: int, size: int) -> Damage | None:
    """What is wrong behind the first end block, at `at`."""
    if size < at + 2 * BLOCK:
        return Damage(at, size, "the file ends inside its end blocks", "end")
    for start in range(at, size, CHUNK):
        chunk = file(CHUNK, start)
        if chunk.strip(b"\0"):
            first = start + len(chunk) - len(chunk.lstrip(b"\0"))
            return Damage(first, size, "bytes behind the end of the archive", "end")
    return None
