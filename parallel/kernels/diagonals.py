"""Diagonals that together are a grid: row p of each of some ranges of queries sees row p of each of some of keys.

    keys ->   a b c  a b c
    queries a # . .  # . .     Two frames of three places, each place seeing itself in both: three diagonals, and those
            b . # .  . # .     in the corners meet rows that the long one has met: three launches, and merges of rows.
            c . . #  . . #     As a grid, place after place, it is one launch of three documents of two tokens.
            a # . .  # . .
            b . # .  . # .     Where ranks hold parts of frames, places fall into classes that have their frames in
            c . . #  . . #     common, and each class is a grid.

Diagonals are cut at each other's borders until none is left inside one; then a grid is a complete bipartite graph.
"""

from __future__ import annotations

import numpy as np

from parallel.kernels.launch import Rows
from parallel.masks.rectangles import K0, K1, Q0, Q1, Ints, spread

Grid = tuple[Rows, Rows]
ROUNDS = 4  # of cutting; frames cut by ranks need two or three
MOST = 1 << 21  # pairs of ranges to look at


def grids(pieces: Ints) -> tuple[list[Grid], Ints]:
    """Grids among diagonals of one hop, and the diagonals that are in none.

    Args:
        pieces: (q0, q1, k0, k1, ...), no pair of them twice.
    """
    if len(pieces) < 3:
        return [], pieces
    pieces = pieces[np.argsort(pieces[:, Q0] - pieces[:, K0], kind="stable")]
    found = _cut(pieces)
    if found is None:
        return [], pieces
    query, key, piece, borders, others = found
    first = np.zeros(len(borders), np.int64)
    first[query] = key  # the last to be written is the first key that is seen: it names the grid
    names, label = np.unique(first, return_inverse=True)
    if len(names) * len(others) > MOST:
        return [], pieces
    seen = np.zeros((len(names), len(others)), bool)
    seen[label[query], key] = True
    held = np.zeros(len(borders), bool)
    held[query] = True
    queries, pairs = (np.bincount(label[which], minlength=len(names)) for which in (held, query))
    if (queries * seen.sum(axis=1) != pairs).any():
        return [], pieces  # incomplete: nothing is won by taking some
    large = (queries > 1) & (seen.sum(axis=1) > 1)
    inside = np.bincount(piece, weights=large[label[query]], minlength=len(pieces))
    if ((inside != 0) & (inside != np.bincount(piece, minlength=len(pieces)))).any():
        return [], pieces  # a diagonal of which a part alone is in a grid
    made: list[Grid] = []
    for number in np.flatnonzero(large):
        rows, columns = np.flatnonzero(held & (label == number)), np.flatnonzero(seen[number])
        made.append((Rows(borders[rows], borders[rows + 1]), Rows(others[columns], others[columns + 1])))
    return made, pieces[inside == 0]


def _cut(pieces: Ints) -> tuple[Ints, Ints, Ints, Ints, Ints] | None:
    """Parts between borders: which ranges of queries and keys, of which piece; borders of queries, and of keys."""
    q0, q1, k0, k1 = pieces[:, Q0], pieces[:, Q1], pieces[:, K0], pieces[:, K1]
    borders, others = np.unique(np.concatenate((q0, q1))), np.unique(np.concatenate((k0, k1)))
    for _ in range(ROUNDS):
        first, stop = np.searchsorted(borders, q0), np.searchsorted(borders, q1)
        if (stop - first).sum() > MOST:
            return None
        piece, query = spread(first, stop)
        to = borders[query] - (q0 - k0)[piece]
        key = np.searchsorted(others, to)
        begin, end = np.searchsorted(others, k0), np.searchsorted(others, k1)
        if (stop - first == end - begin).all() and (others[key] == to).all():
            return query, key, piece, borders, others
        others = np.union1d(others, to)
        first, stop = np.searchsorted(others, k0), np.searchsorted(others, k1)
        if (stop - first).sum() > MOST:
            return None
        piece, key = spread(first, stop)
        borders = np.union1d(borders, others[key] + (q0 - k0)[piece])
    return None
