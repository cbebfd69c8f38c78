"""Search by Hamming distance finds what comparing with everything finds."""

from functools import partial

import numpy as np
import pytest

from data.curation.near_duplicates import Seen, distance, phash
from tests.support.counting import calls


def text(values):
    return [f"{int(v):016x}" for v in values]


def flipped(value, bits, rng):
    for bit in rng.choice(64, bits, replace=False):
        value ^= 1 << int(bit)
    return value


@pytest.mark.parametrize("bits", [0, 1, 3, 4, 5, 6, 7, 9])
def test_equals_comparing_with_all(bits):
    rng = np.random.default_rng(bits)
    # few values in each band, so that buckets are long and distances of all sizes occur
    hashes = text(sum(int(rng.integers(0, 40)) << 16 * band for band in range(4)) for _ in range(300))
    hashes += text(rng.integers(0, 2**64, 300, dtype=np.uint64))
    seen = Seen()
    for number, value in enumerate(hashes):
        seen.add(f"u{number}", value)
    asked = [f"{flipped(int(h, 16), int(rng.integers(0, bits + 3)), rng):016x}" for h in hashes]
    found = 0
    for value in asked:
        nearest = min((distance(value, h), h) for h in hashes)
        expected = f"u{hashes.index(nearest[1])}" if nearest[0] <= bits else None
        assert seen.near(value, bits) == expected
        found += expected is not None
    assert 0 < found < len(asked)


def test_empty_same_and_order():
    seen = Seen()
    assert seen.near("0" * 16, 8) is None
    seen.add("first", "f" * 16)
    seen.add("second", "f" * 16)
    assert seen.near("f" * 16, 0) == "first"
    for order in ("03", "30"):  # both are 1 bit away
        other = Seen()
        for digit in order:
            other.add(digit, digit.zfill(16))
        assert other.near("1".zfill(16), 1) == "0"


def test_of_a_hundred_thousand_few_are_compared():
    rng = np.random.default_rng(0)
    seen = Seen()
    for number, value in enumerate(text(rng.integers(0, 2**64, 100_000, dtype=np.uint64))):
        seen.add(str(number), value)
    asked = text(rng.integers(0, 2**64, 2000, dtype=np.uint64))
    assert not any(seen.near(value, 4) for value in asked)
    compared = [sum(len(bucket) for bucket in seen._candidates(int(value, 16), 4)) for value in asked]
    assert np.mean(compared) < 100, "of a hundred thousand"
    assert max(calls(partial(seen.near, value, 4)) for value in asked[:20]) < 200


def test_phash():
    picture = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=(90, 160)), 0), 1)
    assert phash(picture) == phash(2 * picture + 8)
    assert distance(phash(picture), phash(picture[:, ::-1])) > 14
    assert phash(np.full((90, 160), 77.0)) == "0" * 16
    assert int(phash(picture), 16).bit_count() in (31, 32)
    assert distance("0" * 15 + "1", "f" + "0" * 15) == 5
