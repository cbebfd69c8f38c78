"""A keyed shuffle of range(n) that is never written down: position i of it costs the same as all others, 0.3 us.

A Feistel network is a bijection of the pairs of two h-bit numbers, whatever its round function; of the 4^h >= n pairs
those outside range(n) are encrypted again until they fall inside ("cycle walking": Black and Rogaway, "Ciphers with
arbitrary finite domains", CT-RSA 2002, sec. 3), at most four times on average. The round function is the finaliser of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). Not for secrets; for order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


def permute(positions: Ints, n: int, keys: int | Words) -> Ints:
    """Where the shuffle of range(n) by key has what stands at `positions`.

    Args:
        positions: [k], each in range(n).
        n: how many there are.
        keys: of the shuffle, 64 bits: one for all, or one for each position [k].
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = np.broadcast_to(np.asarray(keys, np.uint64), positions.shape)
    values = _encrypt(positions.astype(np.uint64), keys, half)
    outside = np.flatnonzero(values >= n)
    while len(outside):
        values[outside] = _encrypt(values[outside], keys[outside], half)
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def _encrypt(values: Words, keys: Words, half: int) -> Words:
    # Four rounds make a strong permutation of a good round function (Luby and Rackoff 1988), if halves are not tiny.
    rounds = 4 if half >= 8 else 10
    mask, bits = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> bits, values & mask
    for number in range(rounds):
        left, right = right, left ^ (_mix(right + keys + np.uint64((number + 1) << 56)) & mask)
    return (left << bits) | right


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
