"""Clips show what their captions say, and `recognise` sees it through noise and blur."""

import json

import cv2
import numpy as np
import pytest

from data.media import video
from data.synthetic.shapes import COLOURS, DIRECTIONS, SHAPES, draw, recognise, synth
from parallel.errors import InputError

EVERY = [(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS]
MIDDLE = (0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(("colour", "shape", "direction"), EVERY)
def test_every_sentence_is_recognised_through_noise_blur_and_dimming(colour, shape, direction):
    clean = draw(colour, shape, direction, MIDDLE)
    assert clean.shape == (8, 32, 32, 3)
    rng = np.random.default_rng(0)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in clean])
    versions = {
        "clean": clean,
        "noisy": clean + rng.normal(0, 40, clean.shape),
        "blurred": blurred,
        "both, and dim": 0.6 * blurred + 30 + rng.normal(0, 15, clean.shape),
    }
    for name, frames in versions.items():
        seen = recognise(np.clip(frames, 0, 255).astype(np.uint8))
        assert (seen.colour, seen.direction) == (colour, direction), name
        assert seen.confidence > 0.3, f"{name}: {seen.confidence}"


def test_no_clip_is_recognised_in_noise_or_in_nothing():
    rng = np.random.default_rng(1)
    noise = [recognise(rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)).confidence for _ in range(20)]
    assert np.mean(noise) < 0.3
    assert recognise(np.full((8, 32, 32, 3), 90, np.uint8)).confidence == 0
    assert recognise(draw("red", "square", "up", MIDDLE)[:1]).confidence == 0
    still = np.repeat(draw("red", "square", "up", MIDDLE)[:1], 8, axis=0)
    assert recognise(still).confidence < 0.05


def test_shapes_differ_stay_in_the_frame_and_are_antialiased():
    square, circle = (draw("green", shape, "left", MIDDLE) for shape in SHAPES)
    assert np.abs(square.astype(int) - circle).mean() > 1
    for chance in [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1)]:
        for direction in DIRECTIONS:
            clip = draw("green", "circle", direction, chance)
            lit = (clip[..., 1].astype(float) - 22).clip(0).sum(axis=(1, 2))
            assert lit.min() > 0.97 * lit.max(), "a part of the shape left the frame"
    assert len(np.unique(circle[..., 1])) > 8


def test_synth_is_reproducible_and_says_what_it_shows(tmp_path):
    seen = []
    synth(tmp_path / "a", 64, seed=3, on_progress=lambda done, total: seen.append((done, total)))
    synth(tmp_path / "b", 64, seed=3)
    synth(tmp_path / "c", 64, seed=4)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "abc")
    assert a == b
    assert a != c
    assert seen[-1] == (64, 64)
    captions = json.loads(a.pop("captions.json"))
    assert sorted(captions) == sorted(a) == [f"clip-{i:05d}.mp4" for i in range(64)]
    assert set(captions.values()) == {f"a {c} {s} moving {d}" for c, s, d in EVERY}
    assert len(set(a.values())) == 64, "two clips are the same"
    for name, data in a.items():
        frames = video.decode(data)
        found = recognise(frames)
        _, colour, _, _, direction = captions[name].split()
        assert (found.colour, found.direction) == (colour, direction)
        assert frames.shape == (8, 32, 32, 3)


def test_synth_again_and_over_other_files(tmp_path):
    synth(tmp_path, 3, seed=0)
    synth(tmp_path, 3, seed=0)
    with pytest.raises(InputError, match=r"clip-00002\.mp4"):
        synth(tmp_path, 2, seed=0)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"mine\.txt"):
        synth(tmp_path, 3, seed=0)
    with pytest.raises(InputError, match="is a file"):
        synth(tmp_path / "mine.txt", 3, seed=0)
    for arguments in [{"clips": 0}, {"clips": 1, "size": 33}, {"clips": 1, "size": 8}, {"clips": 1, "frames": 1}]:
        with pytest.raises(InputError):
            synth(tmp_path / "new", seed=0, **arguments)
