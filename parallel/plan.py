"""`Plan`: mask x split for one batch on this rank: the kernel calls, and whose keys each of them needs.

Cutting a rectangle of the mask at the borders of what ranks hold leaves only full rectangles and aligned causal
squares, so that any stock flash kernel computes any mask, and no row of a call is ever fully masked:

    causal, queries [a, b) against keys [c, d), a < c < b < d        full block    square
                 c     d                                              (none)       [c, b) x [c, b)
    a  . . . . . . . . .
       . . . . . . . . .
       . . . # . . . . .
    b  . . . # # . . . .

Plans are made once per batch, from integers alone; every layer uses the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.mask import Mask, Rectangle, cross
from parallel.mesh import Groups, Mesh
from parallel.packed import Ranges
from parallel.split import Split


@dataclass(frozen=True)
class Call:
    """One kernel call: `rectangle` in rows of the local queries and rows of the keys of one hop.

    Attributes:
        fresh: no earlier call of the plan touched these query rows, so that there is nothing to merge with.
    """

    rectangle: Rectangle
    fresh: bool


@dataclass(frozen=True)
class Plan:
    """What one rank computes.

    Attributes:
        queries: rows of this rank's queries once its ulysses group has exchanged heads for tokens.
        hops: hops[d] are the calls on the keys that come from d places up the ring; hops[0] are the own keys.
        key_tokens: key_tokens[d] is the number of keys of hop d.
        ulysses_tokens: tokens that each rank of the ulysses group holds, in order; (queries,) without ulysses.
        groups: the process groups to talk through; None for a plan with no communication.
    """

    queries: int
    hops: tuple[tuple[Call, ...], ...]
    key_tokens: tuple[int, ...]
    ulysses_tokens: tuple[int, ...]
    groups: Groups | None = None

    @property
    def area(self) -> int:
        """Pairs of one query and one key that this rank's ulysses group computes, for all heads."""
        return sum(call.rectangle.area for hop in self.hops for call in hop)


def plan_for(mask: Mask, split: Split, groups: Groups) -> Plan:
    """The plan of one rank for self attention: keys are held like queries.

    Args:
        mask: over the whole packed sequence.
        split: over the sequence ranks of the replica.
        groups: of this rank.
    """
    mesh, place = groups.mesh, groups.place
    assert len(split.ranges) == mesh.sequence_ranks, f"a split over {len(split.ranges)} ranks for {mesh}"
    held = [_ring_ranges(split, mesh, ring) for ring in range(mesh.ring)]
    sources = [(place.ring - hop) % mesh.ring for hop in range(mesh.ring)]
    hops = [cut(mask, held[place.ring], held[source]) for source in sources]
    first = place.ring * mesh.ulysses
    return Plan(
        queries=_length(held[place.ring]),
        hops=_mark_fresh(hops),
        key_tokens=tuple(_length(held[source]) for source in sources),
        ulysses_tokens=tuple(split.tokens(first + i) for i in range(mesh.ulysses)),
        groups=groups,
    )


def local_plan(mask: Mask) -> Plan:
    """A plan with no communication: all queries and all keys are here."""
    return _here(mask, ((0, mask.queries),))


def cross_plan(query_lengths: Sequence[int], ranges: Ranges, key_lengths: Sequence[int]) -> Plan:
    """Cross attention to short keys that every rank holds in full: document i sees keys of document i.

    Args:
        query_lengths: tokens of each document of the whole packed sequence.
        ranges: the part of it that this rank holds.
        key_lengths: keys of each document.
    """
    return _here(cross(query_lengths, key_lengths), ranges)


def cut(mask: Mask, query_ranges: Ranges, key_ranges: Ranges) -> list[Rectangle]:
    """The part of `mask` in query_ranges x key_ranges, in rows of the two: full rectangles and causal squares only."""
    found = []
    q_row = 0
    for q0, q1 in query_ranges:
        k_row = 0
        for k0, k1 in key_ranges:
            for r in mask.rectangles:
                a, b, c, d = max(q0, r.q0), min(q1, r.q1), max(k0, r.k0), min(k1, r.k1)
                if a < b and c < d:
                    shift = r.q0 - r.k0  # position of the query that is aligned with key 0 of the sequence
                    pieces = _cut_causal(a, b, c, d, shift) if r.causal else [Rectangle(a, b, c, d)]
                    found += [_moved(p, q_row - q0, k_row - k0) for p in pieces]
            k_row += k1 - k0
        q_row += q1 - q0
    return found


def _cut_causal(a: int, b: int, c: int, d: int, shift: int) -> list[Rectangle]:
    """Queries [a, b) x keys [c, d) under `query - shift >= key`, as full rectangles and aligned squares."""
    a, b = a - shift, b - shift  # now query >= key
    pieces = []
    low, high = max(a, c), min(b, d)
    if low < high:
        if c < low:
            pieces.append(Rectangle(low, high, c, low))  # below the square: keys before the first of its queries
        pieces.append(Rectangle(low, high, low, high, causal=True))
    if max(d, a) < b:
        pieces.append(Rectangle(max(d, a), b, c, d))  # queries after the last key see them all
    return [_moved(p, shift, 0) for p in pieces]


def _moved(r: Rectangle, queries: int, keys: int) -> Rectangle:
    return Rectangle(r.q0 + queries, r.q1 + queries, r.k0 + keys, r.k1 + keys, r.causal)


def _here(mask: Mask, ranges: Ranges) -> Plan:
    calls = cut(mask, ranges, ((0, mask.keys),))
    queries = _length(ranges)
    return Plan(queries, _mark_fresh([calls]), (mask.keys,), (queries,))


def _mark_fresh(hops: list[list[Rectangle]]) -> tuple[tuple[Call, ...], ...]:
    """Mark the calls whose query rows no earlier call touches."""
    touched: list[tuple[int, int]] = []
    marked = []
    for hop in hops:
        calls = []
        for r in hop:
            fresh = all(r.q1 <= start or stop <= r.q0 for start, stop in touched)
            calls.append(Call(r, fresh))
            touched.append((r.q0, r.q1))
        marked.append(tuple(calls))
    return tuple(marked)


def _ring_ranges(split: Split, mesh: Mesh, ring: int) -> Ranges:
    """What a ulysses group holds together, neighbours joined so that a document is not cut at a rank's border."""
    joined: list[tuple[int, int]] = []
    for ulysses in range(mesh.ulysses):
        for start, stop in split.ranges[ring * mesh.ulysses + ulysses]:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
    return tuple(joined)


def _length(ranges: Ranges) -> int:
    return sum(stop - start for start, stop in ranges)
