"""`Scores`: what can be measured of a clip while it is decoded anyway, to filter by and to look at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Figures of one clip.

    Attributes:
        motion: mean change from one frame to the next, 0 to 255.
        sharpness: how sharp the sharpest frames are; low is blurred.
        brightness: mean, 0 to 255.
        black: share of frames that are almost black, 0 to 1.
        text: share of the picture that looks like overlaid text, 0 to 1.
        phash: perceptual hash, 16 hex digits; near copies differ in few bits.
    """

    motion: float
    sharpness: float
    brightness: float
    black: float
    text: float
    phash: str
