"""Matroska and WebM: whether the elements of a file join without a hole.

    EBML header | Segment: SeekHead | Info | Tracks | Cluster: time | block | block | Cluster: ... | Cues

FFmpeg goes on at the next cluster where bytes are damaged, and says nothing of the frames between. So the heads of
clusters and blocks are walked: each is one that may stand there, ends where its parent allows it, and is of a track
that the file has. What is in a block its decoder judges. A live recording does not know the sizes of its segment and
clusters, and may end anywhere, but not go on with something else. It takes 5 us a block. (RFC 8794, 4 to 6; RFC 9559,
5.1.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

MAGIC = b"\x1a\x45\xdf\xa3"
EBML, SEGMENT, CLUSTER, TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B
TRACK, TRACK_NUMBER = 0xAE, 0xD7
SIMPLE_BLOCK, GROUP, BLOCK = 0xA3, 0xA0, 0xA1
VOID, CRC = 0xEC, 0xBF
ANYWHERE = {VOID, CRC}
# SeekHead, Info, Cues, Attachments, Chapters, Tags
IN_SEGMENT = {CLUSTER, TRACKS, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367} | ANYWHERE
# Timestamp, SilentTracks, Position, PrevSize, EncryptedBlock
IN_CLUSTER = {SIMPLE_BLOCK, GROUP, 0xE7, 0x5854, 0xA7, 0xAB, 0xAF} | ANYWHERE
# BlockVirtual, BlockAdditions, BlockDuration, ReferencePriority, ReferenceBlock, ReferenceVirtual, CodecState,
# DiscardPadding, Slices, ReferenceFrame
IN_GROUP = {BLOCK, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8} | ANYWHERE
LONGEST_HEAD = 12  # bytes of an id and a size
SLAB = 1 << 20


class _DamagedError(Exception):
    """At a byte, its argument."""


def end(file: BinaryIO, size: int) -> int | None:
    """Byte after the first segment; None if it does not say."""
    at = 0
    while at < size:
        kind, at, stop = _head(file, at)
        if stop is None:
            return None
        at = stop
        if kind == SEGMENT:
            break
    return at


def damaged_at(file: BinaryIO, size: int) -> int | None:
    """The first byte that is no element which may stand there; None if all join. Anything may follow a segment.

    Args:
        file: of which the segments are not cut short.
        size: of it, in bytes.
    """
    at = 0
    try:
        while at < size:
            try:
                kind, begin, stop = _head(file, at)
            except IndexError:
                break
            if kind == SEGMENT:
                if stop is not None and stop > size:
                    raise _DamagedError(at)
                at = _segment(file, begin, size if stop is None else stop, live=stop is None)
            elif kind == EBML or kind in ANYWHERE:
                at = size if stop is None else stop
            else:
                break
    except _DamagedError as error:
        return int(error.args[0])
    return None


def _segment(file: BinaryIO, at: int, stop: int, live: bool) -> int:
    """The byte after it."""
    tracks: set[int] = set()
    while at < stop:
        kind, begin, after = _element(file, at, stop, live)
        if live and kind in (EBML, SEGMENT):
            return at
        if kind not in IN_SEGMENT or (after is None and kind != CLUSTER):
            raise _DamagedError(at)
        if kind == TRACKS and after is not None:
            tracks |= _tracks(file, begin, after)
        if kind == CLUSTER:
            at = _cluster(file, begin, stop if after is None else after, tracks, after is None, live)
        else:
            at = stop if after is None else after
    return at


def _cluster(file: BinaryIO, at: int, stop: int, tracks: set[int], open_ended: bool, live: bool) -> int:
    """The byte after it, which if it does not say its size is where something begins that is in no cluster."""
    while at < stop:
        kind, begin, after = _element(file, at, stop, live)
        if open_ended and (kind in IN_SEGMENT - ANYWHERE or kind in (EBML, SEGMENT)):
            return at
        if kind not in IN_CLUSTER or after is None:
            raise _DamagedError(at)
        if kind == SIMPLE_BLOCK:
            _check_block(file, at, begin, tracks)
        elif kind == GROUP:
            for first, inner, data, _ in _children(file, begin, after):
                if inner not in IN_GROUP:
                    raise _DamagedError(first)
                if inner == BLOCK:
                    _check_block(file, first, data, tracks)
        at = after
    return at


def _check_block(file: BinaryIO, at: int, begin: int, tracks: set[int]) -> None:
    file.seek(begin)
    try:
        number, _ = _number(file.read(8), 0)
    except IndexError as error:
        raise _DamagedError(at) from error
    if tracks and number not in tracks:
        raise _DamagedError(at)


def _tracks(file: BinaryIO, at: int, stop: int) -> set[int]:
    """The numbers of the tracks."""
    found = set()
    for _, kind, begin, after in _children(file, at, stop):
        if kind == TRACK:
            for _, inner, first, last in _children(file, begin, after):
                if inner == TRACK_NUMBER:
                    file.seek(first)
                    found.add(int.from_bytes(file.read(min(8, last - first))))
    return found


def _children(file: BinaryIO, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(first byte, id, first byte of its data, byte after it) of all elements of a parent."""
    while at < stop:
        kind, begin, after = _element(file, at, stop)
        if after is None:
            raise _DamagedError(at)
        yield at, kind, begin, after
        at = after


def _element(file: BinaryIO, at: int, stop: int, live: bool = False) -> tuple[int, int, int | None]:
    """As `_head`; what a live recording breaks off in is taken for void, and so are zeros from there to its end.

    Raises:
        _DamagedError: it is none, or goes beyond its parent.
    """
    try:
        kind, begin, after = _head(file, at)
    except IndexError as error:
        if live and (stop - at < LONGEST_HEAD or _is_zero(file, at, stop)):
            return VOID, stop, stop
        raise _DamagedError(at) from error
    if begin > stop or (after is not None and after > stop):
        if not live or kind not in IN_SEGMENT | IN_CLUSTER or _has_cluster(file, begin, stop):
            raise _DamagedError(at)
        return CLUSTER if kind == CLUSTER else VOID, min(begin, stop), stop
    return kind, begin, after


def _is_zero(file: BinaryIO, at: int, stop: int) -> bool:
    file.seek(at)
    return all(not file.read(min(SLAB, stop - begin)).strip(b"\0") for begin in range(at, stop, SLAB))


def _has_cluster(file: BinaryIO, at: int, stop: int) -> bool:
    """Whether a cluster seems to begin in these bytes."""
    file.seek(at)
    mark, before = CLUSTER.to_bytes(4), b""
    while at < stop:
        slab = file.read(min(SLAB, stop - at))
        if mark in before + slab:
            return True
        at, before = at + max(1, len(slab)), slab[-3:]
    return False


def _head(file: BinaryIO, at: int) -> tuple[int, int, int | None]:
    """(id, first byte of its data, byte after it, None if it does not say) of an element.

    Raises:
        IndexError: there is none.
    """
    file.seek(at)
    head = file.read(LONGEST_HEAD)
    id_length = _length(head[0])
    value, begin = _number(head, id_length)
    unknown = value == (1 << 7 * (begin - id_length)) - 1
    return int.from_bytes(head[:id_length]), at + begin, None if unknown else at + begin + value


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and the byte after it."""
    length = _length(data[at])
    if at + length > len(data):
        raise IndexError("the number is cut")
    return int.from_bytes(data[at : at + length]) & ((1 << 7 * length) - 1), at + length


def _length(byte: int) -> int:
    """Bytes of a number of variable length that begins with this one."""
    if not byte:
        raise IndexError("no number of EBML begins with a zero byte")
    return 9 - byte.bit_length()
