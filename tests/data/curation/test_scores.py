"""Scores tell still from moving, sharp from blurred, text from texture, and copies from other clips."""

import itertools
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data.curation.near_duplicates import distance
from data.curation.scores import SHARPNESSES, Scorer
from data.curation.text_overlay import text_share
from data.media import video

H, W = 144, 256


def texture(seed: int, height: int = H, width: int = W) -> np.ndarray:
    """A picture with as much at each scale as photographs have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(height, width, 3)), axes=(0, 1)) / frequency[..., None] ** 1.2
    found = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return ((found - found.min()) / np.ptp(found) * 255).astype(np.uint8)


def pan(picture, frames, step):
    return [np.roll(picture, step * i, 1) for i in range(frames)]


def scores(frames):
    scorer = Scorer()
    for frame in frames:
        scorer.add(frame)
    return scorer.result()


def written(frames, text, size, place, fill=(245, 245, 245)):
    """Frames with text drawn at five times their size and scaled down, as a player of 720 lines would show it."""
    out = []
    for frame in frames:
        image = Image.fromarray(frame).resize((W * 5, H * 5), Image.Resampling.BICUBIC)
        font = ImageFont.load_default(size)
        style = {"anchor": "ms", "align": "center", "stroke_width": 2, "stroke_fill": (0, 0, 0)}
        ImageDraw.Draw(image).multiline_text((place[0] * 5, place[1] * 5), text, fill, font, **style)
        out.append(cv2.resize(np.asarray(image), (W, H), interpolation=cv2.INTER_AREA))
    return out


def test_motion_ignores_noise_and_grows_with_speed():
    picture = texture(0)
    rng = np.random.default_rng(0)
    still = scores([picture] * 5)
    noisy = scores([np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8) for _ in range(20)])
    slow, fast = scores(pan(picture, 10, 1)), scores(pan(picture, 10, 4))
    assert still.motion == 0
    assert noisy.motion < 0.05 < 0.5 < slow.motion < 0.5 * fast.motion
    assert scores([picture]).motion == 0  # one frame does not move
    # the change of a block is that of its mean: 10 everywhere, once in four changes
    steps = [np.full((H, W, 3), v, np.uint8) for v in (50, 50, 50, 50, 60)]
    assert scores(steps).motion == pytest.approx(2.5)


def test_sharpness_brightness_black():
    picture = texture(1)
    blurred = cv2.GaussianBlur(picture, (0, 0), 3)
    black, grey = np.full((H, W, 3), 16, np.uint8), np.full((H, W, 3), 90, np.uint8)
    assert scores([blurred] * 8).sharpness < 0.2 * scores([picture] * 8).sharpness
    # part of the shot may be out of focus
    assert scores([blurred] * 20 + [picture] * 12).sharpness == pytest.approx(scores([picture]).sharpness)
    found = scores([black] * 3 + [grey])
    assert found.black == 0.75
    assert found.brightness == pytest.approx((3 * 16 + 90) / 4)
    assert scores([black]).phash == scores([grey]).phash == "0" * 16


def test_text_is_told_from_texture():
    frames = pan(texture(2), 24, 1)
    assert scores(frames).text == 0
    subtitle = scores(written(frames, "I never thought that you\nwould come back here again", 38, (W / 2, 124)))
    title = scores(written(frames, "THE BEGINNING", 100, (W / 2, 70)))
    small = scores(written(frames[:1], "NEWS FROM TOWN", 38, (190, 20)))
    assert 0.03 < subtitle.text < 0.15
    assert 0.03 < title.text < 0.2
    assert 0.01 < small.text < 0.08
    # a subtitle that comes late in a long shot counts
    late = [texture(3)] * 60 + written([texture(3)] * 30, "Where are you going?", 44, (W / 2, 130))
    assert scores(late).text > 0.02
    # nor are bars, a chessboard or a circle text
    grid = (np.indices((H, W)).sum(0) // 6 % 2 * 255).astype(np.uint8)
    bars = np.repeat((np.arange(W) // 3 % 2 * 255)[None], H, 0).astype(np.uint8)
    circle = cv2.circle(np.zeros((H, W), np.uint8), (128, 72), 50, 255, 2)
    assert [text_share(p) for p in (grid, bars, circle)] == [0, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (16, 16), (32, 32), (300, 9)])
def test_pictures_of_any_size(size):
    frames = np.random.default_rng(0).integers(0, 255, (3, *size, 3)).astype(np.uint8)
    found = scores(frames)
    assert len(found.phash) == 16
    assert 0 <= found.text <= 1
    assert found.brightness == pytest.approx(frames.mean(), abs=40)


def test_memory_does_not_grow():
    scorer = Scorer()
    picture = texture(4, 36, 64)
    for _ in range(3000):
        scorer.add(picture)
    assert SHARPNESSES / 2 < len(scorer._sharpnesses.items) <= SHARPNESSES
    assert scorer.result().phash == scores([picture]).phash
    with pytest.raises(AssertionError, match="of frames"):
        Scorer().result()


def test_copies_are_near_and_others_far():
    clips = {seed: pan(texture(seed, 180, 320), 12, 2) for seed in range(8)}
    hashes = {seed: scores(frames).phash for seed, frames in clips.items()}
    for one, other in itertools.combinations(hashes, 2):
        assert distance(hashes[one], hashes[other]) > 14
    for seed, frames in clips.items():
        small = [cv2.resize(f, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA) for f in frames]
        bright = [cv2.convertScaleAbs(f, alpha=1.1, beta=8) for f in frames]
        for copy in (video.decode(video.encode(small, Fraction(25), crf=30)), bright, frames[1:], frames[::2]):
            assert distance(scores(copy).phash, hashes[seed]) <= 8


def test_real_clips(real_clips):
    shots = {}
    for name, starts in (("bikes.mp4", [0, 30, 76, 137, 187, 242]), ("bigbuckbunny.mp4", [0, 40])):
        found = video.probe(real_clips / name)
        size = (H, round(found.width * H / found.height))
        frames = list(video.stream_frames(real_clips / name, 0, starts[-1], size=size))
        shots |= {(name, a): frames[a:b] for a, b in itertools.pairwise(starts)}
    found = {key: scores(frames) for key, frames in shots.items()}
    for one, other in itertools.combinations(found.values(), 2):
        assert distance(one.phash, other.phash) > 14
    for key, frames in shots.items():
        assert found[key].text < 0.02
        assert found[key].black == 0
        assert found[key].motion > 0.5
        copy = video.decode(video.encode((cv2.resize(f, (f.shape[1] // 2, H // 2)) for f in frames), Fraction(25), 28))
        assert distance(scores(copy).phash, found[key].phash) <= 8
    assert found["bikes.mp4", 137].sharpness > 4 * found["bikes.mp4", 30].sharpness  # in focus, and not
    bunny = [f[:, :W] for f in shots["bigbuckbunny.mp4", 0]]
    assert scores(written(bunny[:8], "He came out of his hole\nand yawned at the sun", 38, (W / 2, 124))).text > 0.03
