"""Which pieces of a launch make one call of a kernel of variable lengths, and in what calls large ones are cut.

A call for each frame of a causal video leaves a GPU half empty: a frame of 1,560 tokens is 13 blocks of rows a head.
Pieces that share no keys make one call. Pieces that do, a stair, are cut into levels of blocks that share none:

    frame 0  a . . . . . . .      a: the keys that all eight see; b: that the last four see beside them; c: that two of
    frame 1  a d . . . . . .         four see; d: that one of two sees
    frame 2  a c c . . . . .      Each level is one call, 4 for 8 frames and 11 for 672, instead of one a frame. A row
    frame 3  a c c d . . . .      is then in several calls, whose outputs are merged; the pairs are the same.
    frame 4  a b b b b . . .
    frame 5  a b b b b d . .
    frame 6  a b b b b c c .
    frame 7  a b b b b c c d

Kernels of CUDA count elements in 32 bits: where rows x heads x head_dim of a call would reach 2^31, it is cut into
rows, and the keys of these into stretches. A causal square becomes full rectangles and smaller squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from parallel.kernels.launch import Call, Calls, Launch, Piece
from parallel.masks.rectangles import ANTICAUSAL, CAUSAL, DIAGONAL, FULL, GRID

LARGE = 1 << 22  # pairs, from which on a piece is a call of its own: it then is a view, and the call is worth it
WIDE = 1 << 14  # rows of a piece that fill a GPU by themselves
FEW = 8  # calls that are not worth any change
COLOURS = 16  # calls without merging that are better than fewer with it
PADDING = 128  # rows that the workspace of a flash kernel's backward has for each piece beside its own
MOST_PIECES = 65535  # of a call: blocks of CUDA on the second axis of a grid
WASTE = 8  # rows that a padded log-sum-exp may have for each that counts


def calls_of(launch: Launch, keys: int, most: int | None = None, padded: bool = False) -> Calls:
    """The calls of a launch, in groups: what the calls of a group give is about the same rows, and is merged.

    Made once for a launch and kept with it, for all layers.

    Args:
        launch: its pieces.
        keys: rows of the block of keys; more are not copied for one call.
        most: rows of queries or of keys of one call, each piece padded by 128, as the workspace of a flash kernel's
            backward is; none: any number.
        padded: the kernel has as many rows for each piece as for the longest one.
    """
    if launch.kind == GRID:
        launch, keys = launch.packed, launch.keys.count
    plain = keys, padded
    if plain not in launch.made:
        launch.made[plain] = _grouped(launch, keys, padded)
    if most is None or max((_size(call.pieces) for g in launch.made[plain] for call in g), default=0) <= most:
        return launch.made[plain]
    if (*plain, most) not in launch.made:
        launch.made[*plain, most] = _within(launch, keys, most, padded)
    return launch.made[*plain, most]


def _size(pieces: list[Piece]) -> int:
    """Rows of queries or of keys that a call of these pieces counts."""
    most: int = max(sum(p[side].stop - p[side].start for p in pieces) for side in (0, 1))
    return most + PADDING * len(pieces)


def _grouped(launch: Launch, keys: int, padded: bool) -> Calls:
    alone = _together(launch.pieces, keys, padded)
    if launch.kind != FULL or len(alone) <= FEW:
        return tuple((Call(launch.kind, pieces),) for pieces in alone)
    wide = [p for p in launch.pieces if p[0].stop - p[0].start >= WIDE]
    found = [(Call(FULL, pieces),) for pieces in _together(wide, keys, padded)]
    return *found, *_stair([p for p in launch.pieces if p[0].stop - p[0].start < WIDE], keys, padded)


def _stair(pieces: list[Piece], keys: int, padded: bool) -> Calls:
    """Pieces that fill no GPU alone: each a call, or in sets that share no keys, or in levels, whichever is best."""

    def joined(sets: list[list[Piece]]) -> list[list[Piece]]:
        return [call for part in sets for apart in _apart(part) for call in _together(apart, keys, padded, LARGE**2)]

    alone, coloured = _together(pieces, keys, padded), joined([pieces])
    levels = joined(_levels(pieces)) if len(alone) > FEW else alone
    if len(coloured) <= min(len(alone) // 2, max(COLOURS, len(levels))):
        alone = coloured
    elif len(levels) <= len(alone) // 2:
        return (tuple(Call(FULL, part) for part in levels),)
    return tuple((Call(FULL, part),) for part in alone)


def _together(pieces: list[Piece], keys: int, padded: bool, large: int = LARGE) -> list[list[Piece]]:
    """Pieces that are worth one call: small ones, as long as their keys are not copied more than once in all."""
    found: list[list[Piece]] = []
    columns = rows = longest = 0
    for r, c in pieces:
        size, more = c.stop - c.start, r.stop - r.start
        touch = bool(found) and found[-1][-1][0].stop == r.start and found[-1][-1][1].stop == c.start
        apart = not touch and (more * size >= large or columns + size > keys)
        apart = apart or bool(found and len(found[-1]) == MOST_PIECES)
        if padded and found:
            apart = apart or (len(found[-1]) + 1) * max(longest, more) > WASTE * (rows + more)
        if not found or apart:
            found.append([])
            columns = rows = longest = 0
        found[-1].append((r, c))
        columns, rows, longest = columns + size, rows + more, max(longest, more)
    return found


def _apart(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces in as few sets as can be, so that those of one share neither rows nor keys; rows are known not to."""
    found: list[list[Piece]] = []
    reach: list[tuple[int, int]] = []  # the last key of each set, and which it is
    for piece in sorted(pieces, key=lambda p: (p[1].start, p[0].start)):
        if reach and reach[0][0] <= piece[1].start:
            _, free = heappop(reach)
        else:
            free = len(found)
            found.append([])
        found[free].append(piece)
        heappush(reach, (piece[1].stop, free))
    return [sorted(part, key=lambda p: p[0].start) for part in found]


def _levels(pieces: list[Piece]) -> list[list[Piece]]:
    """Blocks of 1, 2, 4 ... pieces against the keys that all of a block see and those of the next larger do not.

    From the largest blocks down, and of each level the keys before those of the larger block, and after them.
    """
    blocks: list[list[Piece | None]] = [list(pieces)]
    while len(blocks[-1]) > 1:
        below = blocks[-1]
        pairs = zip(below[::2], [*below[1::2], *below[len(below) & ~1 :]], strict=True)  # the last may be alone
        blocks.append([_both(a, b) if a is not b else a for a, b in pairs])
    found: list[list[Piece]] = []
    for number in reversed(range(len(blocks))):
        before: list[Piece] = []
        after: list[Piece] = []
        for i, block in enumerate(blocks[number]):
            larger = blocks[number + 1][i // 2] if number + 1 < len(blocks) else None
            if block is None:
                continue
            rows, keys = block
            if larger is None:
                after.append(block)
                continue
            if keys.start < larger[1].start:
                before.append((rows, slice(keys.start, larger[1].start)))
            if larger[1].stop < keys.stop:
                after.append((rows, slice(larger[1].stop, keys.stop)))
        found += [part for part in (before, after) if part]
    return found


def _both(a: Piece | None, b: Piece | None) -> Piece | None:
    """Rows of both, if they touch, against the keys that both see, if there are any."""
    if a is None or b is None or a[0].stop != b[0].start:
        return None
    start, stop = max(a[1].start, b[1].start), min(a[1].stop, b[1].stop)
    return (slice(a[0].start, b[0].stop), slice(start, stop)) if start < stop else None


def _within(launch: Launch, keys: int, most: int, padded: bool) -> Calls:
    """The calls of a launch, each within `most`."""
    found: list[tuple[Call, ...]] = []
    for group in launch.made[keys, padded]:
        cut = [list(_cut_call(call, most)) for call in group]
        if len(group) == 1:
            found += cut[0]
        else:  # merged anyway
            found.append(tuple(call for calls in cut for part in calls for call in part))
    return tuple(found)


def _cut_call(call: Call, most: int) -> Iterator[tuple[Call, ...]]:
    if call.kind == DIAGONAL:  # no kernel of CUDA
        yield (call,)
        return
    together: list[Piece] = []
    for piece in call.pieces:
        if together and _size([*together, piece]) > most:  # before a large one too: in order
            yield (Call(call.kind, together),)
            together = []
        if _size([piece]) > most:
            yield from _cut_piece(call.kind, *piece, most)
        else:
            together.append(piece)
    if together:
        yield (Call(call.kind, together),)


def _cut_piece(kind: int, rows: slice, keys: slice, most: int) -> Iterator[tuple[Call, ...]]:
    """A piece cut into stretches of rows: of each the calls that see its keys. The corner of a triangle is a square."""
    size = max(PADDING, (most - PADDING) // PADDING * PADDING)
    for part in _chunks(rows, size):
        own = slice(part.start - rows.start + keys.start, part.stop - rows.start + keys.start)
        if kind == FULL:
            yield tuple(Call(FULL, [(part, chunk)]) for chunk in _chunks(keys, size))
            continue
        seen = slice(keys.start, own.start) if kind == CAUSAL else slice(own.stop, keys.stop)
        assert kind in (CAUSAL, ANTICAUSAL), "other squares are not cut"
        yield Call(kind, [(part, own)]), *(Call(FULL, [(part, chunk)]) for chunk in _chunks(seen, size))


def _chunks(whole: slice, size: int) -> list[slice]:
    return [slice(at, min(at + size, whole.stop)) for at in range(whole.start, whole.stop, size)]
