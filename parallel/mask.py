"""`Mask`: who sees whom, as a list of rectangles in sequence positions.

    keys ->   a a a b b          packed([3, 2])            packed([3, 2], causal=True)
    queries a # # # . .          (0, 3, 0, 3, full)        # . . . .   (0, 3, 0, 3, causal)
            a # # # . .          (3, 5, 3, 5, full)        # # . . .   (3, 5, 3, 5, causal)
            a # # # . .                                    # # # . .
            b . . . # #                                    . . . # .
            b . . . # #                                    . . . # #

Rectangles never overlap: a query meets a key once. A causal rectangle is a square, aligned at its top-left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from parallel.errors import InputError


@dataclass(frozen=True)
class Rectangle:
    """Queries [q0, q1) see keys [k0, k1): all of them, or, if causal, key k0 + j only from query q0 + j on."""

    q0: int
    q1: int
    k0: int
    k1: int
    causal: bool = False

    @property
    def area(self) -> int:
        """Pairs of one query and one key."""
        rows, columns = self.q1 - self.q0, self.k1 - self.k0
        return rows * (rows + 1) // 2 if self.causal else rows * columns


@dataclass(frozen=True)
class Mask:
    """Rectangles over `queries` x `keys` positions."""

    rectangles: tuple[Rectangle, ...]
    queries: int
    keys: int

    @property
    def area(self) -> int:
        """Pairs of one query and one key over the whole sequence."""
        return sum(r.area for r in self.rectangles)


def packed(lengths: Sequence[int], causal: bool = False) -> Mask:
    """Each document sees itself alone: whole (video), or each token its past (language).

    Raises:
        InputError: a document has no tokens.
    """
    _refuse_empty(lengths)
    stops = list(accumulate(lengths))
    blocks = [Rectangle(stop - n, stop, stop - n, stop, causal) for n, stop in zip(lengths, stops, strict=True)]
    return Mask(tuple(blocks), stops[-1], stops[-1])


def full(length: int) -> Mask:
    """Everyone sees everyone."""
    return packed([length])


def cross(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> Mask:
    """The queries of document i see all the keys of document i of another sequence (video to its caption).

    Raises:
        InputError: a document has no queries or no keys.
    """
    _refuse_empty(query_lengths)
    _refuse_empty(key_lengths)
    rows, columns = list(accumulate(query_lengths)), list(accumulate(key_lengths))
    pairs = zip(query_lengths, rows, key_lengths, columns, strict=True)
    blocks = [Rectangle(row - n, row, column - m, column) for n, row, m, column in pairs]
    return Mask(tuple(blocks), rows[-1], columns[-1])


def _refuse_empty(lengths: Sequence[int]) -> None:
    if not lengths or min(lengths) < 1:
        raise InputError(
            "every document of a mask holds at least one token",
            f"lengths {list(lengths)[:8]}{'...' if len(lengths) > 8 else ''}",
            "leave empty documents out of the pack",
        )
