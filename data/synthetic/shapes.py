"""Captioned clips of moving shapes, and an eye that tells what it sees: a dataset whose samples can be judged.

"a red square moving right": four colours x two shapes x four directions. A model trained on it either draws what the
words say or does not, and `recognise` measures it, on noisy and blurred frames too. About 400 clips a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from data.dataset.shards import write_json
from data.media import video
from data.media.video import Frames
from data.sources.caption_files import FILE_NAME
from parallel.errors import InputError
from parallel.random import key_of, uniform

Floats = npt.NDArray[np.float64]

COLOURS = {"red": (225, 45, 45), "green": (45, 200, 70), "blue": (60, 95, 240), "yellow": (235, 215, 50)}
SHAPES = ("square", "circle")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y downwards as rows are
BACKGROUND = (18, 18, 22)
SHAPE_PART = 1 / 3  # of the frame's side
TRAVEL_PART = 0.5  # of the frame's side, from the first frame to the last
SUPERSAMPLING = 4
FPS = Fraction(8)
CRF = 10


@dataclass(frozen=True)
class Recognised:
    """What `recognise` saw; `confidence` from 0 (nothing, or anything) to 1."""

    colour: str
    direction: str
    confidence: float


def synth(
    out: Path,
    clips: int,
    seed: int,
    frames: int = 8,
    size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes `clip-00000.mp4` ... and `captions.json`; the same arguments write the same bytes.

    Args:
        out: a new or empty folder, or one that an equal call wrote.
        clips: how many.
        seed: of everything random.
        frames: of each clip.
        size: height and width in pixels, even.
        on_progress: called with (done, total) after each clip.

    Raises:
        InputError: an argument that cannot work, or `out` holds other files.
    """
    for name, value, least in (("clips", clips, 1), ("frames", frames, 2), ("size", size, 16)):
        if value < least:
            raise InputError(f"{name} is at least {least}", str(value), f"give {least} or more")
    if size % 2:
        raise InputError("size is even, as video needs", str(size), f"give {size + 1}")
    names = [f"clip-{number:05d}.mp4" for number in range(clips)]
    refuse_others(out, {*names, FILE_NAME})
    out.mkdir(parents=True, exist_ok=True)
    captions = {}
    for number, name in enumerate(names):
        chance = [uniform(key_of(seed, number, what)) for what in ("side", "travel", "along", "across")]
        # each of the 32 sentences comes equally often, whatever the number of clips
        kind = (number + key_of(seed, "first")) % (len(COLOURS) * len(SHAPES) * len(DIRECTIONS))
        colour = list(COLOURS)[kind % 4]
        direction = list(DIRECTIONS)[kind // 4 % 4]
        shape = SHAPES[kind // 16]
        captions[name] = f"a {colour} {shape} moving {direction}"
        (out / name).write_bytes(video.encode(draw(colour, shape, direction, chance, frames, size), FPS, crf=CRF))
        if on_progress:
            on_progress(number + 1, clips)
    write_json(out / FILE_NAME, captions)


def refuse_others(out: Path, names: set[str]) -> None:
    """A folder that is new, or holds nothing but files of these names.

    Raises:
        InputError: it holds others, or is a file.
    """
    others = sorted({path.name for path in out.iterdir()} - names) if out.is_dir() else []
    if others or (out.exists() and not out.is_dir()):
        found = f"{out} has: {', '.join(others[:5])}" if others else f"{out} is a file"
        raise InputError("the output is an empty or a new folder", found, "give another folder")


def draw(colour: str, shape: str, direction: str, chance: Sequence[float], frames: int = 8, size: int = 32) -> Frames:
    """One clip, uint8 RGB [frames, size, size, 3]; `chance`: side, travel, start along and across, each 0 to 1."""
    side, travel = size * SHAPE_PART * (0.9 + 0.2 * chance[0]), size * TRAVEL_PART * (0.9 + 0.2 * chance[1])
    along = np.linspace(0, travel, frames) + chance[2] * (size - side - travel)  # of the near edge, in pixels
    across = np.full(frames, chance[3] * (size - side))
    dx, dy = DIRECTIONS[direction]
    moving = along if dx + dy > 0 else size - side - along
    left, top = (moving, across) if dx else (across, moving)
    return paint(cover(shape, left, top, side, size), colour)


def cover(shape: str, left: Floats, top: Floats, side: float, size: int) -> Floats:
    """The part of each pixel that a shape fills, [frames, size, size]; `left` and `top` of it in pixels, [frames]."""
    grid = (np.arange(size * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    x = (grid[None, :] - left[:, None] - side / 2) / (side / 2)  # [frames, fine pixels], -1 to 1 inside the shape
    y = (grid[None, :] - top[:, None] - side / 2) / (side / 2)
    if shape == "square":
        inside = (np.abs(y) <= 1)[:, :, None] & (np.abs(x) <= 1)[:, None, :]
    else:
        inside = (y * y)[:, :, None] + (x * x)[:, None, :] <= 1
    cells = inside.reshape(len(left), size, SUPERSAMPLING, size, SUPERSAMPLING)
    filled: Floats = cells.mean(axis=(2, 4))
    return filled


def paint(filled: Floats, colour: str, ground: tuple[int, int, int] = BACKGROUND) -> Frames:
    """What is filled [frames, size, size] in a colour, the rest in that of the ground; uint8 RGB."""
    part = filled[..., None]
    pixels: Floats = part * np.array(COLOURS[colour]) + (1 - part) * np.array(ground)
    return np.rint(pixels).astype(np.uint8)


def recognise(frames: Frames) -> Recognised:
    """The colour of what stands out in a clip, and where it moves.

    What differs from the clip's median colour, by more than most pixels do, is foreground; its mean difference names
    the colour by angle (so that pale and dark ones count), the line through its centres names the direction.

    Args:
        frames: uint8 RGB [n, height, width, 3]; noise and blur are tolerated.
    """
    smooth = np.stack([cv2.blur(frame, (3, 3)) for frame in frames]).astype(np.float64)
    difference = smooth - np.median(smooth, axis=(0, 1, 2))
    strength = np.linalg.norm(difference, axis=-1)  # [n, height, width]
    weight = np.maximum(0.0, strength - 3 * np.median(strength)) ** 2
    if len(frames) < 2 or weight.sum() == 0:
        return Recognised(next(iter(COLOURS)), next(iter(DIRECTIONS)), 0.0)
    colour, colour_margin = _colour((weight[..., None] * difference).sum(axis=(0, 1, 2)))
    direction, straightness = _direction(weight)
    return Recognised(colour, direction, float(min(colour_margin, straightness)))


def _colour(mean: Floats) -> tuple[str, float]:
    """The nearest colour by angle from the background, and how much nearer than the next: 0 to 1."""
    known = np.array(list(COLOURS.values()), np.float64) - np.array(BACKGROUND)
    cosine = known @ mean / (np.linalg.norm(known, axis=1) * np.linalg.norm(mean) + 1e-12)
    angle = np.arccos(np.clip(cosine, -1, 1))
    nearest, next_one = np.argsort(angle)[:2]
    return list(COLOURS)[nearest], float(1 - angle[nearest] / (angle[next_one] + 1e-12))


def _direction(weight: Floats) -> tuple[str, float]:
    """The main direction of the centre over time, and how well a straight line along one axis tells it: 0 to 1."""
    n, height, width = weight.shape
    total = weight.sum(axis=(1, 2))
    seen = total > 0.05 * total.max()  # frames where the thing is there
    if seen.sum() < 2:
        return next(iter(DIRECTIONS)), 0.0
    time = np.flatnonzero(seen).astype(np.float64)
    x = (weight.sum(axis=1)[seen] @ np.arange(width)) / total[seen] / width
    y = (weight.sum(axis=2)[seen] @ np.arange(height)) / total[seen] / height
    slopes = np.array([np.polynomial.polynomial.polyfit(time, c, 1)[1] for c in (x, y)])
    main = int(np.argmax(np.abs(slopes)))
    name = ("right" if slopes[0] > 0 else "left") if main == 0 else ("down" if slopes[1] > 0 else "up")
    path = np.abs(slopes[main]) * n  # of the frame's side
    spread = np.hypot(*(np.ptp(c) for c in (x, y)))
    straight = np.abs(slopes[main]) * np.ptp(time) / (spread + 1e-12)
    return name, float(np.clip(straight, 0, 1) * np.clip(path / (TRAVEL_PART / 2), 0, 1))
