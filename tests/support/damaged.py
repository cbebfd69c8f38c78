"""Damaged variants of films, seeded: bytes flipped, cut, zeroed, boxes of other sizes, atoms twice."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

HUGE = (0, 1, 7, 8, 0x7FFFFFFF, 0xFFFFFFFF)
CONTAINERS = frozenset(
    [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf"]
)


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """(first byte, byte after the last) of each box of an mp4, to any depth (ISO/IEC 14496-12, 4.2)."""
    found, at, stop = [], start, len(data) if stop is None else stop
    while at + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8 or at + size > stop:
            break
        found.append((at, at + size))
        if kind in CONTAINERS:
            found += boxes(data, at + 8, at + size)
        at += size
    return found


def flipped(data: bytes, dice: random.Random) -> bytes:
    out = bytearray(data)
    within = dice.choice([len(data), min(len(data), 4096), len(data)])  # often in the first headers
    for _ in range(dice.choice([1, 3, 30, 300])):
        out[dice.randrange(within)] ^= 1 << dice.randrange(8)
    return bytes(out)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


def zeroed(data: bytes, dice: random.Random) -> bytes:
    size = dice.choice([1, 64, 512, 4096, 65536])
    at = dice.randrange(max(1, len(data) - size))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def resized(data: bytes, dice: random.Random) -> bytes:
    """A box, or a number in the tables of one, says something else."""
    out = bytearray(data)
    start, stop = dice.choice(boxes(data))
    if dice.random() < 0.5:
        struct.pack_into(">I", out, start, dice.choice([*HUGE, stop - start + dice.randrange(-64, 64)]) & 0xFFFFFFFF)
    else:
        at = dice.randrange(start + 8, max(start + 9, min(stop, start + 96)))
        struct.pack_into(">I", out, min(at, len(out) - 4), dice.choice(HUGE))
    return bytes(out)


def twice(data: bytes, dice: random.Random) -> bytes:
    """A box again behind itself; those around it grow, or do not."""
    start, stop = dice.choice(boxes(data))
    out = bytearray(data[:stop] + data[start:stop] + data[stop:])
    if dice.random() < 0.7:
        for first, last in boxes(data):
            if first < start and stop <= last:
                (size,) = struct.unpack_from(">I", out, first)
                struct.pack_into(">I", out, first, size + stop - start)
    return bytes(out)


def swapped(data: bytes, dice: random.Random) -> bytes:
    """Two pieces in each other's place."""
    size = dice.choice([16, 512, 8192])
    first, second = sorted(dice.randrange(max(1, len(data) - size)) for _ in range(2))
    second = max(second, first + size)
    one, two = data[first : first + size], data[second : second + size]
    return data[:first] + two + data[first + size : second] + one + data[second + size :]


KINDS: Sequence[Callable[[bytes, random.Random], bytes]] = (flipped, cut, zeroed, resized, twice, swapped)


def variants(films: Sequence[bytes], count: int, seed: int) -> list[tuple[str, bytes]]:
    """(what was done, bytes) of so many films that are damaged in turn, each otherwise."""
    found = []
    for number in range(count):
        dice = random.Random(f"{seed} {number}")
        kind = KINDS[number % len(KINDS)]
        found.append((kind.__name__, kind(films[number // len(KINDS) % len(films)], dice)))
    return found
