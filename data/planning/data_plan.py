"""The plan: which samples make which pack and which packs make which step, as arithmetic on lengths, costs, a seed and
a cursor. No I/O, no rank, no list of an epoch.

    draws     a keyed order of all samples, or of several sources by weight                    permutation.py, mix.py
    window    |- 4096 draws -|- 4096 draws -|- the rest of the epoch -|       packs never cross a window
    packs     [aaaabbbc][ddddddee][fffgggg ] ...                              best fit decreasing, packing.py
    steps     | 4 packs | 4 packs | 4 p                                       of about the same cost, shuffled by key
    cursor    (epoch, window, pack, head): the next pack to hand out          four integers are the whole state

Because lengths are known before anything is read, seeking costs one window (5 to 40 ms), any number of readers agree
without talking, and every epoch of a single source holds every sample exactly once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np

from data.planning.mix import Mix
from data.planning.packing import Floats, arrange, best_fit_decreasing
from data.planning.permutation import Ints
from parallel.errors import InputError
from parallel.parsing import parse_json
from parallel.random import key_of

LEAST_WINDOW = 1 << 12  # draws
PACKS_IN_A_WINDOW, MOST_FOR_PACKS = 256, 1 << 17  # the last pack of a window is half empty: 0.2 % of these
STEPS_IN_A_WINDOW, MOST_FOR_STEPS = 16, 1 << 21  # the more steps to sort, the more alike the packs of each


@dataclass(frozen=True)
class Cursor:
    """The next pack: its epoch, the window in the epoch, the pack in the window; all steps begin with one.

    Attributes:
        head: packs at the beginning of the window that ended a step begun in the window before.
    """

    epoch: int = 0
    window: int = 0
    pack: int = 0
    head: int = 0

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
            cursor = cls(**parse_json(text))
        except (ValueError, TypeError) as error:
            raise _no_cursor(text) from error
        if any(type(value) is not int or value < 0 for value in asdict(cursor).values()):
            raise _no_cursor(text)
        return cursor


@dataclass(frozen=True)
class Bin:
    """The samples of one pack, and the epoch (of its source) in which each is seen."""

    samples: tuple[int, ...]
    epochs: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Window:
    """The packs of one window, in the order in which they are handed out.

    Attributes:
        samples, epochs: [draws], pack after pack.
        starts: [packs + 1] where each pack begins.
        costs: [packs].
    """

    samples: Ints
    epochs: Ints
    starts: Ints
    costs: Floats

    def __len__(self) -> int:
        return len(self.costs)

    def bins(self, first: int, last: int) -> list[Bin]:
        """Packs first .. last - 1."""
        starts = self.starts[first : last + 1].tolist()
        stretches = [slice(a, b) for a, b in pairwise(starts)]
        return [Bin(tuple(self.samples[s].tolist()), tuple(self.epochs[s].tolist())) for s in stretches]


@dataclass(frozen=True, eq=False)
class DataPlan:
    """All that decides who sees what when.

    Attributes:
        lengths: [samples] tokens of each sample, 1 to `pack_tokens`.
        costs: [samples] what computing each costs, in any unit.
        mix: of the sources that the samples belong to.
        pack_tokens: the most tokens of a pack.
        packs_per_step: over all replicas.
        seed: of every order.
        window: draws that are packed together.
    """

    lengths: Ints
    costs: Floats
    mix: Mix
    pack_tokens: int
    packs_per_step: int
    seed: int
    window: int = field(default=LEAST_WINDOW)

    def __post_init__(self) -> None:
        check_lengths(self.lengths, self.pack_tokens)
        assert self.mix.samples == len(self.lengths) == len(self.costs), "one length and one cost per sample"

    @property
    def windows(self) -> int:
        """Of an epoch."""
        return -(-self.mix.samples // self.window)

    def window_at(self, epoch: int, at: int, head: int) -> Window:
        """The packs of window `at` of an epoch, when a step that began earlier takes the first `head` of them."""
        first = epoch * self.mix.samples
        begin, end = at * self.window, min((at + 1) * self.window, self.mix.samples)
        samples, epochs = self.mix.draws(first + begin, first + end, self.seed)
        items, starts = best_fit_decreasing(self.lengths[samples], self.pack_tokens)
        costs = np.add.reduceat(self.costs[samples[items]], starts[:-1])
        order = arrange(costs, head, self.packs_per_step, key_of(self.seed, epoch, at, "packs"))
        sizes = np.diff(starts)[order]
        bounds = np.concatenate(([0], np.cumsum(sizes)))
        items = items[np.repeat(starts[:-1][order] - bounds[:-1], sizes) + np.arange(bounds[-1])]
        return Window(samples[items], epochs[items], bounds, costs[order])

    def packs(self, cursor: Cursor, count: int) -> tuple[list[Bin], Cursor]:
        """The `count` packs from `cursor` on, over as many epochs as it takes, and the cursor after them.

        Raises:
            InputError: the cursor is of another plan.
        """
        return self.walk(self.window_at, cursor, count)

    def walk(
        self, window_at: Callable[[int, int, int], Window], cursor: Cursor, count: int
    ) -> tuple[list[Bin], Cursor]:
        """`packs` with windows from `window_at`, so that a caller may keep those that it already has."""
        epoch, at, pack, head = cursor.epoch, cursor.window, cursor.pack, cursor.head
        found: list[Bin] = []
        if at >= self.windows:
            raise _foreign(f"window {at} of {self.windows}")
        while len(found) < count:
            window = window_at(epoch, at, head)
            if pack >= len(window):
                raise _foreign(f"pack {pack} of {len(window)} in window {at} of epoch {epoch}")
            taken = window.bins(pack, pack + count - len(found))
            found += taken
            pack += len(taken)
            if pack == len(window):  # never rest at the end of a window: a cursor has one form
                at, pack, head = at + 1, 0, (head - len(window)) % self.packs_per_step
                if at == self.windows:
                    epoch, at = epoch + 1, 0
        return found, Cursor(epoch, at, pack, head)


def window_for(lengths: Ints, pack_tokens: int, packs_per_step: int) -> int:
    """Draws of a window that fills packs well and gives steps of even cost: a power of 2.

    Rebuilt in 50 ms up to 2^17 draws; more only for steps of so many packs that each takes many seconds to compute.
    """
    draws_in_a_pack = pack_tokens / float(lengths.mean())
    for_packs = min(MOST_FOR_PACKS, int(PACKS_IN_A_WINDOW * draws_in_a_pack))
    most = min(MOST_FOR_STEPS, max(MOST_FOR_PACKS, packs_per_step << 12))
    for_steps = min(most, int(STEPS_IN_A_WINDOW * packs_per_step * draws_in_a_pack))
    return 1 << (max(LEAST_WINDOW, for_packs, for_steps) - 1).bit_length()


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
    if pack_tokens >= 1 << 31:
        raise InputError("a pack has less than 2^31 tokens", f"{pack_tokens:,}", "give fewer, such as 1048576")


def _foreign(value: str) -> InputError:
    return InputError(
        "a cursor lies inside its epoch",
        value,
        "resume with the dataset and the data settings that the checkpoint was written with",
    )


def _no_cursor(text: str) -> InputError:
    return InputError(
        "a cursor is four counts: epoch, window, pack, head", text[:100], "resume from another checkpoint"
    )
