"""`Scores`: what can be measured of a clip while it is decoded anyway, to filter by and to look at.

    row   0 . . . 4 . . . 8 . . . . . . . 48 . . . . . . . . . 96
          every row: motion, brightness, black
          x       x       x               x        sharpness, of every fourth row
          |------- mean: text ------------|------ mean: text --|--- ...
          |------- mean of all rows: phash --------------------- ...

The mean over a clip makes a hash that survives lost frames and another frame rate, where that of the middle frame
changes by up to 14 of its 64 bits. A frame of 256 x 144 costs 55 us on one core, 2.6 % of what decoding 1280 x 720 and
looking for cuts cost; a strip (see previews.py) 9 us more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data.curation.near_duplicates import phash
from data.curation.text_overlay import text_share
from data.media.reservoir import Reservoir
from data.media.video import Frames

Floats = npt.NDArray[np.float64]

BLOCK = 4  # pixels a side; motion and brightness are of means over such blocks
NOISE = 2  # of 255; smaller changes of a block are not motion
BLACK, BLACK_PART = 20, 0.98  # a frame is almost black if this part of its blocks is at most this bright
SHARP_EVERY = 4  # rows
SHARPEST = 0.9  # quantile: part of a shot may be out of focus
SHARPNESSES = 64  # kept, evenly spaced
TEXT_ROWS = 48  # to a mean: two seconds of film


@dataclass(frozen=True)
class Scores:
    """Figures of one clip, measured at a short side of 144 pixels (of smaller clips, at theirs).

    Attributes:
        motion: mean absolute change of luma from one frame to the next, 0 to 255. It is that of means over 4 x 4
            pixels, changes up to 2 counted as none: noise of the camera (sigma 10) and of the encoder (H.264, crf 32)
            makes less than 0.1 of a still picture, a pan of one pixel a frame 0.2 to 1.4. One frame has 0.
        sharpness: variance of the Laplacian of luma of the sharpest frames (quantile 0.9): 70 to 1300 in nine
            real shots, the first of a plain road, the last of grass; a blur of 3 pixels leaves a fifth of it or less.
        brightness: mean luma, 0 to 255.
        black: share of frames that are almost black, 0 to 1: 98 % of the picture has a luma of at most 20.
        text: share of the picture that looks like overlaid text, 0 to 1, while it is most; see `text_share`.
        phash: perceptual hash of the mean frame, 16 hex digits; near copies differ in few bits, see `phash`.
    """

    motion: float
    sharpness: float
    brightness: float
    black: float
    text: float
    phash: str


class Scorer:
    """The scores of one shot, frame by frame; its memory does not grow with the shot's length."""

    def __init__(self) -> None:
        self._frames = 0
        self._motion = self._brightness = self._text = 0.0
        self._black = 0
        self._before: Frames | None = None
        self._sharpnesses: Reservoir[float] = Reservoir(SHARPNESSES, SHARP_EVERY)
        self._means: _Means | None = None

    def add(self, frame: Frames) -> None:
        """The next frame, uint8 RGB [height, width, 3], of the same size as those before; about 144 pixels high."""
        luma = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        blocks = _blocks(luma)
        self._brightness += cv2.mean(blocks)[0]
        bright = cv2.countNonZero(cv2.threshold(blocks, BLACK, 1, cv2.THRESH_BINARY)[1])
        self._black += bright <= (1 - BLACK_PART) * blocks.size
        if self._before is not None:
            change = cv2.threshold(cv2.absdiff(blocks, self._before), NOISE, 0, cv2.THRESH_TOZERO)[1]
            self._motion += cv2.mean(change)[0]
        self._before = blocks
        self._sharpnesses.add(lambda: _sharpness(luma))
        if self._means is None:
            self._means = _Means(luma.shape)
        window = self._means.add(luma)
        if window is not None:
            self._text = max(self._text, text_share(window))
        self._frames += 1

    def result(self) -> Scores:
        """The figures of all frames so far.

        Raises:
            AssertionError: there was none.
        """
        assert self._means is not None, "scores are of frames"
        rest = self._means.rest()
        return Scores(
            motion=self._motion / max(1, self._frames - 1),
            sharpness=_quantile(self._sharpnesses.items, SHARPEST),
            brightness=self._brightness / self._frames,
            black=self._black / self._frames,
            text=self._text if rest is None else max(self._text, text_share(rest)),
            phash=phash(self._means.mean()),
        )


class _Means:
    """Means of luma [height, width]: over each run of TEXT_ROWS frames, and over all."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._run, self._before = np.zeros(shape, np.float32), np.zeros(shape)  # sums: of this run, of those before
        self._in_run = self._runs = 0

    def add(self, luma: Frames) -> Frames | None:
        """The mean of a run that is complete with this frame."""
        cv2.accumulate(luma, self._run)
        self._in_run += 1
        if self._in_run < TEXT_ROWS:
            return None
        mean = self._mean_of_run()
        self._before += self._run
        self._run[:] = 0
        self._in_run, self._runs = 0, self._runs + 1
        return mean

    def rest(self) -> Frames | None:
        """The mean of the last run if it is half complete, or the only one: fewer frames let what moves look still."""
        enough = self._in_run >= (TEXT_ROWS // 2 if self._runs else 1)
        return self._mean_of_run() if enough else None

    def mean(self) -> Floats:
        """Over all frames, at least one."""
        mean: Floats = (self._before + self._run) / (TEXT_ROWS * self._runs + self._in_run)
        return mean

    def _mean_of_run(self) -> Frames:
        return np.asarray(np.rint(self._run / self._in_run), np.uint8)


def _blocks(luma: Frames) -> Frames:
    """Means over 4 x 4 pixels, what does not fill a block left out; two halvings, which are five times as fast."""
    height, width = (max(1, n // BLOCK) for n in luma.shape)
    whole = luma[: height * BLOCK, : width * BLOCK]
    half = cv2.resize(whole, (width * 2, height * 2), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(half, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _sharpness(luma: Frames) -> float:
    laplacian = cv2.Laplacian(luma, cv2.CV_16S)
    return float(cv2.norm(laplacian, cv2.NORM_L2SQR) / laplacian.size)  # its mean is zero


def _quantile(values: Sequence[float], part: float) -> float:
    """The value that `part` of them do not exceed."""
    return sorted(values)[round(part * (len(values) - 1))]
