"""Hard cuts are found where they are, and nowhere else."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from scenedetect import ContentDetector, FrameTimecode

from data.curation import shot_detection
from data.curation.shot_scan import watch
from data.media import video


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("bigbuckbunny.mp4", [0]),
        ("bikes.mp4", [0, 30, 76, 137, 187, 242]),  # looked at: every one is a cut, and there is no other
        ("nasa_13013.mp4", [0, 240]),  # and a dissolve at 145 to 175, which is not a hard cut
    ],
)
def test_real_clips(real_clips, name, starts):
    found = video.probe(real_clips / name)
    shots = watch(real_clips / name, found).shots
    assert [shot[0].start for shot in shots] == starts
    assert [shot[-1].stop for shot in shots] == [*starts[1:], found.frames]


def scene(seed: int, frames: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    still = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1)))
    return np.clip(still + rng.normal(0, 2, (frames, *still.shape)), 0, 255).astype(np.uint8)


def test_cuts_close_to_the_start_and_to_each_other_are_found():
    frames = np.concatenate([scene(0, 3), scene(1, 2), scene(2, 20), scene(3, 1), scene(4, 10)])
    assert shot_detection.cuts(frames) == [3, 5, 25, 26]
    assert shot_detection.cuts(frames[:1]) == shot_detection.cuts(frames[:0]) == []


def test_they_are_those_of_pyscenedetect():
    rng = np.random.default_rng(0)
    wide = cv2.resize(rng.integers(0, 255, (8, 60, 3), dtype=np.uint8), (600, 48), interpolation=cv2.INTER_CUBIC)
    steps = rng.choice([0, 1, 3, 9, 14, 18, 27], 200).cumsum() % 530  # changes on both sides of the threshold
    frames = [wide[:, step : step + 64] for step in steps]
    peer = ContentDetector(threshold=shot_detection.THRESHOLD, min_scene_len=0)
    found = [
        row
        for row, frame in enumerate(frames)
        if peer.process_frame(FrameTimecode(row, fps=Fraction(25)), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    ]
    assert 20 < len(found) < 180
    assert shot_detection.cuts(frames) == found


def test_a_dissolve_is_not_a_hard_cut():
    a, b = scene(0, 40).astype(float), scene(1, 40).astype(float)
    blend = np.clip((np.arange(40) - 8) / 24, 0, 1)[:, None, None, None]
    assert shot_detection.cuts(((1 - blend) * a + blend * b).astype(np.uint8)) == []


def test_between():
    assert shot_detection.between([3, 5], 9) == [(0, 3), (3, 5), (5, 9)]
    assert shot_detection.between([], 4) == [(0, 4)]
