"""Hard cuts: where one shot of a film ends and the next begins.

A clip that runs over a cut teaches a model to teleport. PySceneDetect's ContentDetector compares the mean change of
hue, saturation and brightness from one frame to the next with a threshold (27 of 255); we decode, at a short side of
144 pixels, which finds the same cuts at a small part of the price: decoding is most of it, about 1.5 ms a frame of
1280 x 720. Dissolves and fades change too slowly for it and stay inside a shot.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
from scenedetect import ContentDetector, FrameTimecode

from data import video
from data.video import Frames, Video

Shots = list[tuple[int, int]]

THRESHOLD = 27.0
SHORT_SIDE = 144


def shots(source: Path | bytes, found: Video) -> Shots:
    """The (first, stop) rows of each shot of a file, end to end from row 0 to its last.

    Raises:
        InputError: the file does not decode to its end.
    """
    scale = min(1.0, SHORT_SIDE / min(found.height, found.width))
    size = (max(1, round(found.height * scale)), max(1, round(found.width * scale)))
    return between(cuts(video.stream_frames(source, size=size, video=found), found.fps), found.frames)


def cuts(frames: Iterable[Frames], fps: Fraction, threshold: float = THRESHOLD) -> list[int]:
    """Rows at which a new shot begins, of RGB frames [height, width, 3]; row 0 is not among them."""
    # min_scene_len would swallow a cut near the start or near another one, and leave a clip with a cut inside
    detector = ContentDetector(threshold=threshold, min_scene_len=0)
    found: list[int] = []
    for row, frame in enumerate(frames):
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        found += [cut.frame_num for cut in detector.process_frame(FrameTimecode(row, fps=fps), bgr)]
    return sorted(set(found) - {0})


def between(cut_rows: Iterable[int], frames: int) -> Shots:
    """The stretches between cuts: between([3, 5], 9) is [(0, 3), (3, 5), (5, 9)]."""
    rows = [0, *cut_rows, frames]
    return list(pairwise(rows))
