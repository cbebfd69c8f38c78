"""`Mix`: several sources, drawn by weight, exact at every prefix.

    weights 3 : 1      a a b a | a a b a | ...     after n draws each source had n x its share, give or take less than 1

Which source draw n takes repeats with the sum of the whole-number weights, and inside a period it follows Tijdeman's
schedule ("The chairman assignment problem", Discrete Mathematics 32, 1980): never off by 1 or more, for any weights. So
any draw is found in no time, and no random number decides how much of a source is seen. Each source is seen in a
keyed order of its own, all of it once before any of it twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import gcd, lcm

import numpy as np

from data.planning.permutation import Ints, permute
from parallel.errors import InputError
from parallel.random import key_of

LONGEST_PERIOD = 100_000


@dataclass(frozen=True)
class Mix:
    """Samples 0 .. n - 1, of which source s has `sizes[s]`, one source after the other.

    Attributes:
        sizes: samples of each source, at least 1.
        weights: of each source, whole numbers with no common divisor. One source: (1,).
    """

    sizes: tuple[int, ...]
    weights: tuple[int, ...] = (1,)

    @property
    def samples(self) -> int:
        """Of all sources; also the draws of one epoch."""
        return sum(self.sizes)

    def draws(self, start: int, stop: int, seed: int) -> tuple[Ints, Ints]:
        """(sample, epoch of its source) of draws start .. stop - 1, each [stop - start]."""
        source, ordinal = self.turns(start, stop)
        sizes = np.array(self.sizes, np.int64)
        epoch, position = ordinal // sizes[source], ordinal % sizes[source]
        samples = np.empty(stop - start, np.int64)
        first = (0, *accumulate(self.sizes))
        for s in range(len(self.sizes)):
            mine = np.flatnonzero(source == s)
            epochs, which = np.unique(epoch[mine], return_inverse=True)
            keys = np.array([key_of(seed, int(e), "order", s) for e in epochs], np.uint64)
            samples[mine] = first[s] + permute(position[mine], self.sizes[s], keys[which])
        return samples, epoch

    def turns(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """(source, how often it was drawn before) of draws start .. stop - 1, each [stop - start]."""
        draws = np.arange(start, stop, dtype=np.int64)
        if len(self.sizes) == 1:
            return np.zeros_like(draws), draws
        pattern, rank = self._pattern
        period, at = np.divmod(draws, len(pattern))
        source = pattern[at]
        return source, period * np.array(self.weights, np.int64)[source] + rank[at]

    @cached_property
    def _pattern(self) -> tuple[Ints, Ints]:
        """Source of each draw of a period, and how often that source came before in it."""
        total, many = sum(self.weights), len(self.weights)
        unit = 2 * (many - 1)  # whole numbers throughout: everything is multiplied by total x unit
        drawn = [0] * many
        pattern, rank = np.empty(total, np.int64), np.empty(total, np.int64)
        for n in range(total):
            behind = [unit * (w * (n + 1) - total * x) for w, x in zip(self.weights, drawn, strict=True)]
            ready = [s for s in range(many) if behind[s] >= total]
            s = min(ready, key=lambda s: (Fraction(total * (unit - 1) - behind[s], self.weights[s]), s))
            pattern[n], rank[n] = s, drawn[s]
            drawn[s] += 1
        return pattern, rank


def mix_of(sizes: Sequence[int], weights: Mapping[str, float] | None = None) -> Mix:
    """A mix of sources of these sizes, drawn by `weights` (name: weight, in the same order), or of one source.

    Raises:
        InputError: a source is empty, or a weight is not a positive number of few digits.
    """
    names = list(weights) if weights else ["the dataset"]
    for name, size in zip(names, sizes, strict=True):
        if size < 1:
            raise InputError("a source has samples", f"{name}: none that can be trained on", "leave it out of the mix")
    if not weights:
        return Mix(tuple(sizes))
    wrong = next((f"{name}: {w}" for name, w in weights.items() if not 0 < w < float("inf")), None)
    if wrong is not None:
        raise InputError(
            "a weight is a positive number", wrong, "leave the source out, or give it a weight such as 0.3"
        )
    if len(weights) == 1:
        return Mix(tuple(sizes))
    shares = [Fraction(str(w)) for w in weights.values()]
    whole = [int(share * lcm(*(s.denominator for s in shares))) for share in shares]
    whole = [w // gcd(*whole) for w in whole]
    if sum(whole) > LONGEST_PERIOD:
        raise InputError(
            f"weights repeat within {LONGEST_PERIOD:,} draws",
            f"{', '.join(f'{name}: {w}' for name, w in weights.items())} need {sum(whole):,}",
            "round them to three digits",
        )
    return Mix(tuple(sizes), tuple(whole))
