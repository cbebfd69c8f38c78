"""From a file to clips: watch it once, cut it into shots, store each as a clip in fragments.

    film      |---------- shot ----------|-- shot --|---- shot ----|
    restarts  |        |        |        |      |             |
    pauses                     |
    clips     [    copied      ][ copied ] too short  [  encoded   ]

A shot ends where the picture changes, or its size, and where the time stamps pause or go over to another rate
(`data.media.frame_rate`). What needs no change is copied packet by packet (`data.media.remux`): no generation loss, at
no cost beside watching. A clip that does not begin at a restart, or that is turned, scaled, interlaced, of another
codec or pixel format, or of an uneven rate, is decoded and encoded, a frame at a time, so memory does not grow with
length. An image is a clip of one frame and stays as it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import log
from pathlib import Path

import cv2
import numpy as np

from data.containers import fragmented_mp4
from data.containers.byte_ranges import Slices
from data.containers.regular_file import read_regular
from data.curation.scores import Scorer, Scores
from data.curation.shot_detection import small_size
from data.curation.shot_scan import Film, Shot, part, thumbnail, watch
from data.dataset.previews import Strip
from data.media import image, video
from data.media.color import UPRIGHT, Frames
from data.media.frame_rate import Stretch
from data.media.h264 import encode
from data.media.remux import remux
from data.media.timeline import STILL, Timeline, timeline_of
from data.media.video import Video
from data.sources import frame_folders
from parallel.errors import InputError

SMALLEST_SIDE = 16  # pixels
FASTEST_FOLDER = 1000  # frames a second
MOST_TOLD = 8  # pauses
BARE_JPEGS = (".mjpeg", ".mjpg")  # films that begin as a JPEG does
SEGMENTS = 8  # that a part of a long shot is watched in
COPIED = ("yuv420p", "yuvj420p")  # pixel formats

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class CutOptions:
    """How to cut.

    Attributes:
        min_frames: shorter shots are rejected.
        max_frames: longer shots are cut into equal parts, at restarts if they can be copied.
        short_side: shrink so that the shorter side has this many pixels; smaller videos stay as they are.
        sizes: (height, width) of buckets, in place of `short_side`: each clip is scaled and cropped, around its centre,
            to the one of nearest aspect ratio; of several, to the largest that it fills.
        max_gop: clips with a longer stretch between restarts are encoded; a rank that needs one frame decodes as many.
        frames_per_second: of folders of numbered frames; None: they are no films.
    """

    min_frames: int = 8
    max_frames: int | None = None
    short_side: int | None = None
    sizes: tuple[Size, ...] | None = None
    max_gop: int = 256
    frames_per_second: float | None = None

    def __post_init__(self) -> None:
        sides = [self.short_side, *(side for size in self.sizes or () for side in size)]
        limits = [("min_frames", self.min_frames, 1), ("max_gop", self.max_gop, 1)]
        limits += [("max_frames", self.max_frames or self.min_frames, self.min_frames)]
        limits += [("a side of a clip", side, SMALLEST_SIDE) for side in sides if side is not None]
        for name, value, least in limits:
            if value < least:
                raise InputError(f"{name} is at least {least}", str(value), f"give {least} or more")
        if self.frames_per_second is not None and not 0 < self.frames_per_second <= FASTEST_FOLDER:
            rule = f"frames_per_second is more than 0, and at most {FASTEST_FOLDER}"
            raise InputError(rule, str(self.frames_per_second), "give the rate that the frames were taken at")
        for side in sides:
            if side is not None and side % 2:
                raise InputError("sides of clips are even, as video needs", str(side), f"give {side + 1}")
        if self.sizes is not None and (self.short_side is not None or not self.sizes):
            raise InputError("sizes are buckets, or there is a short side", str(self), "give one of them")


@dataclass(frozen=True)
class Clip:
    """Rows [start, stop) of a source file, stored as `data` of `frames` frames.

    Attributes:
        media: suffix of `data`.
        slices: of `data`; None if it can only be read whole.
        scores: measured while cutting.
        preview: a JPEG strip of a few frames for a person to look at.
        timeline: when its frames are shown in the source.
    """

    start: int
    stop: int
    data: bytes
    frames: int
    fps: Fraction
    height: int
    width: int
    media: str = "mp4"
    slices: Slices | None = None
    scores: Scores | None = None
    preview: bytes | None = None
    timeline: Timeline = STILL


@dataclass(frozen=True)
class Clips:
    """What came of one file.

    Attributes:
        shots: how many it has, parts of shots counted.
        kept: those kept.
        rejected: why others are not.
        streams: video streams in the file, of which one is taken.
        headless: frames before the first key frame, which are lost.
    """

    shots: int
    kept: tuple[Clip, ...]
    rejected: tuple[str, ...]
    streams: int = 1
    headless: int = 0


def cut_into_clips(path: Path, options: CutOptions = CutOptions()) -> Clips:
    """The clips of a file: one per shot, or per part of a long shot; or its image.

    Args:
        path: a video in any format that FFmpeg reads, an animation or a folder of numbered frames,
            or a JPEG, PNG or WebP.
        options: how to cut.

    Raises:
        InputError: the file is neither, or damaged, or cannot be shown as it was meant.
    """
    if (suffix := _image_suffix(path)) is not None:
        return _clip_of_image(path, suffix, options)
    fps = options.frames_per_second
    if fps is None and path.is_dir():
        value = f"{path}: no file but a folder; if it holds the numbered frames of a film, give {frame_folders.OPTION}"
        raise InputError("a folder of numbered frames has a rate", value, "or name its files one by one")
    found = video.probe(path, fps=None if fps is None else Fraction(fps).limit_denominator(1001))
    if min(found.height, found.width) < SMALLEST_SIDE:
        return Clips(0, (), (f"{found.height} x {found.width} pixels, smaller than {SMALLEST_SIDE}",))
    segment = None if options.max_frames is None else max(1, options.max_frames // SEGMENTS)
    film = watch(path, found, segment)
    kept: list[Clip] = []
    short: list[str] = []
    for shot in film.shots:
        for piece in _parts(film, shot, options):
            if len(piece.rows) < options.min_frames:
                short.append(f"{piece.rows[0]}:{piece.rows[-1] + 1}")
            else:
                kept.append(_clip(path, film, shot, piece, options))
    pieces = len(kept) + len(short)
    reason = f"{len(short)} of {pieces} shots have fewer than {options.min_frames} frames: {', '.join(short)}"
    pauses = [f"{one.pause:.1f} s before frame {one.rows[0]}" for one in film.stretches if one.pause]
    if pauses:
        reason += f"; the time stamps pause, which ends a shot: {_some(pauses)}"
    streams, headless = found.video_streams, found.scan.headless
    return Clips(pieces, tuple(kept), (reason,) if short else (), streams, headless)


def target_size(height: int, width: int, options: CutOptions) -> tuple[Size, Size]:
    """(height, width) to scale to and then to crop to, both even, as 4:2:0 needs: 33 x 17 is scaled to 32 x 16."""
    if options.sizes is None:
        least = min(height, width)
        scale = min(1.0, options.short_side / least) if options.short_side else 1.0
        scaled = round(height * scale) // 2 * 2, round(width * scale) // 2 * 2
        return scaled, scaled

    def fit(size: Size) -> tuple[float, bool, int]:
        fills = size[0] <= height and size[1] <= width
        pixels = size[0] * size[1]
        return round(abs(log(size[0] * width / (size[1] * height))), 6), not fills, -pixels if fills else pixels

    bucket = min(options.sizes, key=fit)
    scale = max(bucket[0] / height, bucket[1] / width)
    return (max(bucket[0], round(height * scale)), max(bucket[1], round(width * scale))), bucket


def _some(told: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
    return ", ".join(told[:MOST_TOLD]) + more


def _parts(film: Film, shot: Shot, options: CutOptions) -> list[Stretch]:
    """What becomes a clip each, of a shot."""
    whole = film.stretches[bisect_right(film.stretches, shot[0].start, key=lambda one: one.rows[0]) - 1]
    stretch, most = whole.of_rows(shot[0].start, shot[-1].stop), options.max_frames
    frames = len(stretch.rows)
    if most is None or frames <= most:
        return [stretch]
    bounds = None
    if _needs_no_change(film, shot, stretch, options):
        start, stop = stretch.rows[0], stretch.rows[-1] + 1
        restarts = [row - start for row, _ in film.found.scan.restarts if start < row < stop]
        bounds = at_restarts(restarts, frames, options.min_frames, most)
    return [stretch.part(a, b) for a, b in pairwise(bounds or equal_parts(frames, -(-frames // most)))]


def equal_parts(frames: int, parts: int) -> list[int]:
    """Where parts of about equal length begin, and the end: equal_parts(10, 3) is [0, 3, 6, 10]."""
    return [frames * n // parts for n in range(parts + 1)]


def at_restarts(restarts: Sequence[int], frames: int, least: int, most: int) -> list[int] | None:
    """As `equal_parts`, but at restarts, each part of `least` to `most` frames; None if that cannot be."""
    fewest = -(-frames // most)
    for parts in range(fewest, 2 * fewest + 1):
        inner = [min(restarts, key=lambda row: abs(row - at), default=0) for at in equal_parts(frames, parts)[1:-1]]
        bounds = [0, *inner, frames]
        if all(least <= b - a <= most for a, b in pairwise(bounds)):
            return bounds
    return None


def _clip(path: Path, film: Film, shot: Shot, stretch: Stretch, options: CutOptions) -> Clip:
    found, rows = film.found, stretch.rows
    start, stop = rows[0], rows[-1] + 1
    scaled, size = target_size(*shot[0].look.size, options)
    data = None
    if _needs_no_change(film, shot, stretch, options) and _longest_gop(found, start, stop) <= options.max_gop:
        data = _copied(path, found, shot, stretch)
    if data is None:
        data = encode(_frames(path, found, rows, scaled, size), stretch.fps)
    timeline = timeline_of(stretch.seconds, float(stretch.fps))
    figures = part(shot, start, stop)
    return Clip(
        start, stop, data, len(rows), stretch.fps, *size, "mp4", fragmented_mp4.slices(data), *figures, timeline
    )


def _copied(path: Path, found: Video, shot: Shot, stretch: Stretch) -> bytes | None:
    """Rows, if they can be remuxed and then show what was seen: one frame is compared, bit for bit."""
    start, stop = stretch.rows[0], stretch.rows[-1] + 1
    data = remux(path, found, start, stop, stretch.fps)
    seen_first = next((segment.picture for segment in shot if segment.start == start), None)
    if data is None or seen_first is None:
        return data
    (first,) = video.decode(data, 0, 1, size=small_size(found.height, found.width))
    return data if np.array_equal(thumbnail(first), seen_first) else None


def _needs_no_change(film: Film, shot: Shot, stretch: Stretch, options: CutOptions) -> bool:
    """Whether packets may be stored as they are, as far as the whole file tells."""
    found, size = film.found, shot[0].look.size
    return (
        film.steady
        and stretch.even
        and not found.interlaced
        and (found.codec, found.turn) == ("h264", UPRIGHT)
        and found.pixel_format in COPIED
        and found.stored == size
        and target_size(*size, options) == (size, size)
    )


def _longest_gop(found: Video, start: int, stop: int) -> int:
    rows = [row for row, _ in found.scan.restarts if start < row < stop]
    return max(b - a for a, b in pairwise([start, *rows, stop]))


def _frames(path: Path, found: Video, rows: Sequence[int], scaled: Size, size: Size) -> Iterator[Frames]:
    """The frames of these rows, RGB [height, width, 3], scaled and cropped."""
    times = Counter(rows)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    start, stop = rows[0], rows[-1] + 1
    for row, frame in enumerate(video.stream_frames(path, start, stop, size=scaled, video=found), start):
        for _ in range(times[row]):
            yield frame[top : top + size[0], left : left + size[1]]


def _image_suffix(path: Path) -> str | None:
    if path.suffix.lower() in BARE_JPEGS:
        return None
    try:
        return image.still_suffix(path)
    except OSError:
        return None  # the probe says why


def _clip_of_image(path: Path, suffix: str, options: CutOptions) -> Clips:
    """Stored as it came, unless buckets ask for another size."""
    data = read_regular(path)
    (frame,) = image.decode(data)
    height, width = frame.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        return Clips(0, (), (f"{height} x {width} pixels, smaller than {SMALLEST_SIDE}",))
    if options.sizes is not None or options.short_side is not None:
        scaled, size = target_size(height, width, options)
        if size != (height, width):
            top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
            (frame,) = image.decode(data, scaled)[:, top : top + size[0], left : left + size[1]]
            data, suffix, (height, width) = image.encode(frame), "png", size
    small = cv2.resize(frame, small_size(height, width)[::-1], interpolation=cv2.INTER_AREA)
    scorer, strip = Scorer(), Strip()
    scorer.add(np.asarray(small, np.uint8))
    strip.add(np.asarray(small, np.uint8))
    clip = Clip(0, 1, data, 1, Fraction(1), height, width, suffix, None, scorer.result(), strip.jpeg())
    return Clips(1, (clip,), ())
