"""`Slices`: which bytes of a stored clip hold which of its frames, so that a rank reads only what it needs.

    part     | header | frames 0..11 | frames 12..23 | frames 24..30 |
    offsets           h              a               b               end
    rows              0              12              24

The header and any run of slices, put end to end, are again a whole file: a fragmented mp4 with one fragment per group
of pictures, or the header and some frames of a frame-major array. Each has a hash of its own, because the hash of a
whole part says nothing of a stretch of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from blake3 import blake3


@dataclass(frozen=True)
class Slices:
    """The slice table of one part.

    Attributes:
        rows: [n] the first frame of each slice, ascending from 0.
        offsets: [n + 1] where each slice begins, in bytes from the start of the part, and the part's size; what lies
            before offsets[0] is the header.
        hashes: [n + 1] of the header, then of each slice.
    """

    rows: tuple[int, ...]
    offsets: tuple[int, ...]
    hashes: tuple[str, ...]

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """The slices [first, last) that hold frames [start, stop)."""
        return max(0, bisect_right(self.rows, start) - 1), max(1, bisect_left(self.rows, stop))


def slices_of(data: bytes, rows: tuple[int, ...], offsets: tuple[int, ...]) -> Slices:
    """The table of a part whose slices begin with frames `rows` at bytes `offsets`; `offsets` ends with its size."""
    view = memoryview(data)
    ends = (0, *offsets)
    hashes = tuple(digest_bytes(view[a:b]) for a, b in zip(ends, offsets, strict=False))
    return Slices(rows, offsets, hashes)


def digest_bytes(data: bytes | memoryview) -> str:
    """32 hex digits of BLAKE3: 128 bits are enough against chance and short enough to read."""
    return str(blake3(data).hexdigest(length=16))
