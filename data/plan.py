"""The plan: which samples make which pack, as arithmetic on lengths, a seed and a cursor. No I/O, no rank.

    epoch     a keyed permutation of all samples
    window    |- 4096 samples -|- 4096 samples -|- the rest -|     packs never cross a window
    packs     [aaaabbbc][ddddddee][fffgggg ] ...                   best fit decreasing, then shuffled by key
    cursor    (epoch, window, pack): the next pack to hand out     three integers are the whole state

Because lengths are known before anything is read, seeking costs one window (about 10 ms), any number of readers agree
without talking, and every epoch holds every sample exactly once. Best fit decreasing (Johnson 1973: at most 11/9 of
the optimum; in practice packs of many samples are over 99 % full) places about a million samples a second.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from parallel.errors import InputError
from parallel.random import key_of

Ints = npt.NDArray[np.int64]

WINDOW = 4096  # samples; larger packs better and shuffles no worse, but costs more to rebuild


@dataclass(frozen=True)
class Cursor:
    """The next pack: its epoch, the window in the epoch, the pack in the window."""

    epoch: int = 0
    window: int = 0
    pack: int = 0

    def to_json(self) -> str:
        """One line, for a checkpoint."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Cursor:
        """The inverse of `to_json`.

        Raises:
            InputError: it is something else.
        """
        try:
            cursor = cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise _no_cursor(text) from error
        if any(type(value) is not int or value < 0 for value in asdict(cursor).values()):
            raise _no_cursor(text)
        return cursor


@dataclass(frozen=True)
class Bin:
    """The samples of one pack, as positions in `lengths`, and the epoch that they are seen in."""

    epoch: int
    samples: tuple[int, ...]


BinsOf = Callable[[int, int], Sequence[Bin]]


def packs(
    lengths: Ints, pack_tokens: int, seed: int, cursor: Cursor, count: int, window: int = WINDOW
) -> tuple[list[Bin], Cursor]:
    """The `count` packs from `cursor` on, over as many epochs as it takes, and the cursor after them.

    Args:
        lengths: [samples] tokens of each sample, 1 to `pack_tokens`.
        pack_tokens: the most tokens of a pack.
        seed: of every order.
        cursor: where to start.
        count: how many packs.
        window: samples that are packed together.

    Raises:
        InputError: a length that no pack can hold, no samples, or a cursor beyond its window.
    """
    check_lengths(lengths, pack_tokens)
    return walk(
        lambda epoch, at: window_bins(lengths, pack_tokens, seed, epoch, at, window),
        len(lengths),
        window,
        cursor,
        count,
    )


def walk(bins_of: BinsOf, samples: int, window: int, cursor: Cursor, count: int) -> tuple[list[Bin], Cursor]:
    """`packs` with the packs of (epoch, window) from `bins_of`, so that a caller may keep what it already has."""
    windows = -(-samples // window)
    epoch, at, pack = cursor.epoch, cursor.window, cursor.pack
    found: list[Bin] = []
    if at >= windows:
        raise _foreign(f"window {at} of {windows}")
    while True:
        bins = bins_of(epoch, at)
        if pack >= len(bins):
            raise _foreign(f"pack {pack} of {len(bins)} in window {at} of epoch {epoch}")
        taken = bins[pack : pack + count - len(found)]
        found += taken
        pack += len(taken)
        if pack == len(bins):  # never rest at the end of a window: a cursor has one form
            at, pack = at + 1, 0
            if at == windows:
                epoch, at = epoch + 1, 0
        if len(found) == count:
            return found, Cursor(epoch, at, pack)


def window_bins(
    lengths: Ints, pack_tokens: int, seed: int, epoch: int, at: int, window: int = WINDOW, order: Ints | None = None
) -> list[Bin]:
    """The packs of window `at`, in the order in which they are seen; `order` spares computing the epoch's."""
    order = epoch_order(len(lengths), seed, epoch) if order is None else order
    samples = order[at * window : (at + 1) * window]
    bins = best_fit_decreasing(lengths[samples], pack_tokens)
    shuffled = permutation(len(bins), key_of(seed, epoch, at, "packs"))  # else the longest samples always come first
    return [Bin(epoch, tuple(int(s) for s in samples[bins[b]])) for b in shuffled]


def epoch_order(samples: int, seed: int, epoch: int) -> Ints:
    """The order in which an epoch sees its samples: about 0.1 s a million."""
    return permutation(samples, key_of(seed, epoch, "order"))


def permutation(n: int, key: int) -> Ints:
    """A shuffle of range(n) by key. Sorted Philox words: numpy promises the words for ever, but not its own shuffle."""
    # as uint64: numpy reads a list with a number above 2^63 as floats, and 2,048 keys become one
    words = np.random.Philox(key=np.array([key, 0], np.uint64)).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def best_fit_decreasing(lengths: Ints, capacity: int) -> list[list[int]]:
    """Positions in `lengths`, in bins of at most `capacity`: longest first, each into the fullest bin with room.

    The free space of all open bins is one sorted list of integers, free x 2^32 + bin, so the best fit is one bisection.
    """
    bins: list[list[int]] = []
    free: list[int] = []
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        at = bisect_left(free, length << 32)
        if at == len(free):
            left, index = capacity - length, len(bins)
            bins.append([item])
        else:
            space = free.pop(at)
            left, index = (space >> 32) - length, space & 0xFFFFFFFF
            bins[index].append(item)
        if left:
            insort(free, left << 32 | index)
    return bins


def check_lengths(lengths: Ints, pack_tokens: int) -> None:
    """Every sample fits a pack.

    Raises:
        InputError: no samples, an empty sample, or one that is longer than a pack.
    """
    if len(lengths) == 0:
        raise InputError("a plan has samples", "none", "prepare a dataset with samples")
    if lengths.min() < 1:
        raise InputError("a sample has tokens", f"sample {int(lengths.argmin())} has {lengths.min()}", "leave it out")
    if lengths.max() > pack_tokens:
        raise InputError(
            f"a sample fits into a pack of {pack_tokens} tokens",
            f"{int((lengths > pack_tokens).sum())} of {len(lengths)} are longer, the longest has {lengths.max()}",
            f"give packs of {lengths.max()} tokens, or shorten the samples",
        )


def _foreign(value: str) -> InputError:
    return InputError(
        "a cursor lies inside its epoch",
        value,
        "resume with the dataset, data.pack_tokens, data.seed and data.window that the checkpoint was written with",
    )


def _no_cursor(text: str) -> InputError:
    return InputError("a cursor is three counts: epoch, window, pack", text[:100], "resume from another checkpoint")
