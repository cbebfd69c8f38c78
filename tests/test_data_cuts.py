"""Hard cuts are found where they are, and nowhere else."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data import cuts, video

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("bigbuckbunny.mp4", [0]),
        ("bikes.mp4", [0, 30, 76, 137, 187, 242]),  # looked at: every one is a cut, and there is no other
        ("nasa_13013.mp4", [0, 240]),  # and a dissolve at 145 to 175, which is not a hard cut
    ],
)
def test_real_clips(name, starts):
    if not VIDEOS.is_dir():
        pytest.skip(f"the real clips are not at {VIDEOS}")
    found = video.probe(VIDEOS / name)
    shots = cuts.shots(VIDEOS / name, found)
    assert [start for start, _ in shots] == starts
    assert [stop for _, stop in shots] == [*starts[1:], found.frames]


def scene(seed: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    still = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1)))
    return np.clip(still + rng.normal(0, 2, (frames, *still.shape)), 0, 255).astype(np.uint8)


def test_cuts_close_to_the_start_and_to_each_other_are_found():
    frames = np.concatenate([scene(0, 3), scene(1, 2), scene(2, 20), scene(3, 1), scene(4, 10)])
    assert cuts.cuts(frames, Fraction(25)) == [3, 5, 25, 26]
    assert cuts.cuts(frames[:1], Fraction(25)) == cuts.cuts(frames[:0], Fraction(25)) == []


def test_a_dissolve_is_not_a_hard_cut():
    a, b = scene(0, 40).astype(float), scene(1, 40).astype(float)
    blend = np.clip((np.arange(40) - 8) / 24, 0, 1)[:, None, None, None]
    assert cuts.cuts(((1 - blend) * a + blend * b).astype(np.uint8), Fraction(25)) == []


def test_between():
    assert cuts.between([3, 5], 9) == [(0, 3), (3, 5), (5, 9)]
    assert cuts.between([], 4) == [(0, 4)]
