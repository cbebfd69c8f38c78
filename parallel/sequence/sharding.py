"""`Split`: who of a replica's ranks holds which token ranges. Any sizes, any order; a rank may hold nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parallel.errors import InputError
from parallel.masks import rectangles
from parallel.masks.mask import Mask
from parallel.masks.rectangles import K0, K1, Q0, Q1, Ints
from parallel.mesh import Mesh
from parallel.sequence.ownership import Holding, held_by, needed
from parallel.sequence.packed import Ranges

CHUNKS = (8, 16)  # of a place, in a balanced split: few keep documents together, many are more even
ALIGNED = 128  # tokens that a chunk is a multiple of, where chunks are large
EVEN = 1.05  # the most area of a place, as a multiple of the mean, that counts as balanced
SLACK = 0.03  # of the mean area, that dealing leaves alone
ROOM = 1.08  # of the mean tokens, that a place takes at most if it can be helped
SWAPS = 8  # of each place, at most, to even out what was dealt


@dataclass(frozen=True)
class Split:
    """`ranges[i]` are the global positions of sequence rank i, in the order of its rows."""

    ranges: tuple[Ranges, ...]

    def tokens(self, rank: int) -> int:
        """How many tokens sequence rank `rank` holds."""
        return sum(stop - start for start, stop in self.ranges[rank])


def contiguous(length: int, ranks: int) -> Split:
    """`length` tokens in `ranks` stretches whose sizes differ by at most one: 10 over 4 are 3, 3, 2, 2."""
    if ranks < 1 or length < 0:
        raise InputError("a sequence is split over ranks", f"{length} tokens, {ranks} ranks", "1 rank or more")
    base, extra = divmod(length, ranks)
    stops = [base * (i + 1) + min(i + 1, extra) for i in range(ranks)]
    starts = [0, *stops[:-1]]
    return Split(tuple(((a, b),) if b > a else () for a, b in zip(starts, stops, strict=True)))


def zigzag(length: int, ring: int, ulysses: int = 1) -> Split:
    """Stretch i and stretch 2 x ring - 1 - i of 2 x ring: an equal share of a causal triangle for each place.

    The ranks of a place share its two stretches in order, so that together they hold two stretches, not two each:
    a kernel then has fewer pieces.
    """
    stretches = contiguous(length, 2 * ring).ranges
    places = [[*stretches[i], *stretches[2 * ring - 1 - i]] for i in range(ring)]
    return Split(tuple(part for ranges in places for part in _shared(ranges, ulysses)))


def balanced(mask: Mask, mesh: Mesh, chunk: int | None = None) -> Split:
    """Equal area of the mask for each place of the ring, nearly equal tokens, and few keys to fetch.

    Contiguous stretches if they are even, that is if the busiest place has at most 5 % more than the mean. Else of a
    zigzag and of documents dealt out whole the one that fetches less, if it is even. Else chunks dealt out by area.

    Args:
        mask: over the whole packed sequence.
        mesh: of the replica's ranks.
        chunk: most tokens of a chunk that is dealt out; if not given, an eighth or a sixteenth of what a place holds.

    Raises:
        InputError: a query sees no key, or a chunk holds nothing.
    """
    if chunk is not None and chunk < 1:
        raise InputError("a chunk holds tokens", f"chunk={chunk}", "1 or more, or None to have it chosen")
    mask.refuse_blind()
    split = contiguous(mask.queries, mesh.sequence_ranks)
    if mesh.ring == 1 or _uneven(mask, mesh, split) <= EVEN:
        return split
    sizes = [chunk] if chunk else [_chunk(mask.queries, mesh.ring * count) for count in CHUNKS]
    chunks = [_Chunks.of(mask, size) for size in sizes]
    candidates = [zigzag(mask.queries, mesh.ring, mesh.ulysses), *(c.dealt(mesh, whole=True) for c in chunks)]
    even = [candidate for candidate in candidates if _uneven(mask, mesh, candidate) <= EVEN]
    if even:
        return min(even, key=lambda split: fetched(mask, held_by(split.ranges, mesh.ulysses), mesh.ring))
    for finer in (1, 2, 4, 8):  # a few heavy rows are shared out only in small chunks
        chunks.append(_Chunks.of(mask, max(1, sizes[-1] // finer)))
        candidates.append(chunks[-1].dealt(mesh, whole=False))
        if _uneven(mask, mesh, candidates[-1]) <= EVEN:
            return candidates[-1]
    return min(candidates, key=lambda split: _uneven(mask, mesh, split))


def areas_of(mask: Mask, held: Holding, ring: int) -> Ints:
    """[ring]: pairs that each place computes."""
    pieces, which = rectangles.cut_by(mask.table, held.starts, held.stops, Q0)
    areas = np.zeros(ring, np.int64)
    np.add.at(areas, held.places[which], rectangles.area(pieces))
    return areas


def fetched(mask: Mask, held: Holding, ring: int) -> int:
    """Key columns that places need and do not hold, over all of them."""
    columns = needed(mask, held).columns(ring)
    return int(columns.sum() - columns.trace())


def _uneven(mask: Mask, mesh: Mesh, split: Split) -> float:
    """Area of the busiest place as a multiple of the mean; or tokens of the fullest, if they are too many."""
    held = held_by(split.ranges, mesh.ulysses)
    areas, tokens = areas_of(mask, held, mesh.ring), [held.of(place).count for place in range(mesh.ring)]
    fullest = max(tokens) * mesh.ring / sum(tokens)
    return max(float(areas.max() / areas.mean()), fullest if fullest > ROOM + EVEN - 1 else 0.0)


def _chunk(length: int, chunks: int) -> int:
    """A size that kernels like, where there is enough of it."""
    size = -(-length // chunks)
    return -(-size // ALIGNED) * ALIGNED if size >= 4 * ALIGNED else size


@dataclass(frozen=True, eq=False)
class _Chunks:
    """Parts of a sequence, none of which lies in two documents: what neither sees the other nor is seen by it.

    Attributes:
        starts, stops: of each chunk.
        areas: pairs of its queries.
        documents: number of the document that it lies in.
    """

    starts: Ints
    stops: Ints
    areas: Ints
    documents: Ints

    @classmethod
    def of(cls, mask: Mask, size: int) -> _Chunks:
        """The documents of a mask in chunks of at most `size` tokens."""
        low = np.minimum(mask.table[:, Q0], mask.table[:, K0])
        high = np.maximum(mask.table[:, Q1], mask.table[:, K1])
        first, last = rectangles.merge_ranges(2 * low, 2 * high - 1)  # ranges that only touch stay apart
        first, last = first // 2, (last + 1) // 2
        parts = -(-(last - first) // size)
        document = np.repeat(np.arange(len(first)), parts)
        number = np.arange(len(document)) - np.repeat(parts.cumsum() - parts, parts)
        length, count = (last - first)[document], parts[document]
        starts, stops = (first[document] + length * (number + i) // count for i in (0, 1))
        pieces, which = rectangles.cut_by(mask.table, starts, stops, Q0)
        areas = np.zeros(len(starts), np.int64)
        np.add.at(areas, which, rectangles.area(pieces))
        return cls(starts, stops, areas, document)

    def dealt(self, mesh: Mesh, whole: bool) -> Split:
        """To each place chunks of equal area, the heaviest document first, its heaviest chunk first.

        Args:
            mesh: of the replica's ranks.
            whole: keep the chunks of a document on as few places as their area allows; else each chunk goes to the
                place with the least area.
        """
        tokens, areas, documents = (self.stops - self.starts).tolist(), self.areas.tolist(), self.documents.tolist()
        room = np.full(mesh.ring, int(ROOM * sum(tokens) / mesh.ring) + 1)
        mean, load = sum(areas) / mesh.ring, np.zeros(mesh.ring)
        held: list[list[int]] = [[] for _ in range(mesh.ring)]
        place, before, no_room = 0, -1, 2.0 * sum(areas)
        for c in (self._document_by_document() if whole else np.argsort(-self.areas, kind="stable")).tolist():
            stay = whole and documents[c] == before and tokens[c] <= room[place]
            if not (stay and load[place] + areas[c] <= mean):
                place = int((load + no_room * (room < tokens[c])).argmin())
            held[place].append(c)
            load[place] += areas[c]
            room[place] -= tokens[c]
            before = documents[c]
        self._even_out(held, mean, room)
        ranges = [[(int(self.starts[c]), int(self.stops[c])) for c in sorted(chunks)] for chunks in held]
        return Split(tuple(part for chunks in ranges for part in _shared(chunks, mesh.ulysses)))

    def _document_by_document(self) -> Ints:
        """The heaviest document first; within one the first chunk, the last, the second ...: as heavy as its mean."""
        first = np.searchsorted(self.documents, self.documents)
        last = np.searchsorted(self.documents, self.documents, side="right") - 1
        number = np.arange(len(self.documents))
        turn = np.minimum(2 * (number - first), 2 * (last - number) + 1)
        areas = np.bincount(self.documents, weights=self.areas)
        order: Ints = np.lexsort((turn, self.documents, -areas[self.documents]))
        return order

    def _even_out(self, held: list[list[int]], mean: float, room: Ints) -> None:
        """Swap chunks of the busiest and the idlest place until they are even, or nothing that has room helps."""
        tokens = self.stops - self.starts
        load = [float(self.areas[chunks].sum()) for chunks in held]
        for _ in range(SWAPS * len(held)):
            most, least = int(np.argmax(load)), int(np.argmin(load))
            if load[most] <= (1 + SLACK) * mean or not held[least]:
                return
            gain = self.areas[held[most]][:, None] - self.areas[held[least]]
            more = tokens[held[most]][:, None] - tokens[held[least]]
            fits = (more <= max(0, int(room[least]))) & (-more <= max(0, int(room[most])))
            miss = np.where(fits, np.abs(gain - (load[most] - load[least]) / 2), np.inf)
            i, j = np.unravel_index(np.argmin(miss), gain.shape)
            moved, size = float(gain[i, j]), int(more[i, j])
            if not (fits[i, j] and 0 < moved < load[most] - load[least]):
                return
            room[most] += size
            room[least] -= size
            held[most][i], held[least][j] = held[least][j], held[most][i]
            load[most], load[least] = load[most] - moved, load[least] + moved


def _shared(ranges: list[tuple[int, int]], ranks: int) -> list[Ranges]:
    """Ranges as they come, cut into parts of as equal tokens as can be."""
    length = sum(stop - start for start, stop in ranges)
    parts: list[Ranges] = []
    for part in contiguous(length, ranks).ranges:
        found, at = [], 0
        for start, stop in ranges:
            for low, high in part:
                a, b = max(low, at), min(high, at + stop - start)
                if a < b:
                    found.append((start + a - at, start + b - at))
            at += stop - start
        parts.append(tuple(found))
    return parts
