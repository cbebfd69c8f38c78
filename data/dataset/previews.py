"""Previews for people: a strip of eight frames for each clip, and sheets of 64 strips.

    previews/<shard id>-0000.jpg      strip of sample 0    8 cells of 96 x 54, first frame to last
                                      strip of sample 1
                                      ...
    previews/<shard id>-0001.jpg      strip of sample 64

Where a strip lies is arithmetic (`place`), so a page shows ten thousand clips without a table. About 4.5 KB
a clip that is rich in detail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from data.media.reservoir import Reservoir
from data.media.video import Frames

CELLS = 8  # of a strip
CELL_WIDTH, CELL_HEIGHT = 96, 54  # pixels
STRIP_WIDTH = CELLS * CELL_WIDTH
STRIPS = 64  # of a sheet
PAPER = 24  # grey of what no frame covers
KEPT = 3 * CELLS  # while the length is unknown; of so many, eight can be chosen nearly evenly
STRIP_QUALITY = 85  # of JPEG
SHEET_QUALITY = 35


class Strip:
    """Evenly spaced frames of a clip that comes frame by frame; holds at most 24 frames."""

    def __init__(self) -> None:
        self._frames: Reservoir[Frames] = Reservoir(KEPT)

    def add(self, frame: Frames) -> None:
        """The next frame, uint8 RGB [height, width, 3]; copied if it is kept."""
        self._frames.add(frame.copy)

    def jpeg(self) -> bytes:
        """The strip, [54, 768]: up to eight frames from left to right, each fitted into its cell.

        The same frames give the same bytes with the same libraries. A clip of fewer frames leaves cells empty.
        """
        frames = self._frames.items
        assert frames, "a strip has frames"
        strip = np.full((CELL_HEIGHT, STRIP_WIDTH, 3), PAPER, np.uint8)
        chosen = np.linspace(0, len(frames) - 1, min(CELLS, len(frames))).round().astype(int)
        for cell, at in enumerate(chosen.tolist()):
            _fit(frames[at], strip[:, cell * CELL_WIDTH : (cell + 1) * CELL_WIDTH])
        return _encode(strip, STRIP_QUALITY)


def sheets(strips: Iterable[bytes | None]) -> Iterator[bytes]:
    """JPEG sheets of the strips in their order, 64 each, the last one shorter; None (text alone) leaves its row empty.

    Args:
        strips: of `Strip.jpeg`, taken one at a time.
    """
    rows: list[Frames] = []
    for strip in strips:
        rows.append(_decode(strip))
        if len(rows) == STRIPS:
            yield _encode(np.concatenate(rows), SHEET_QUALITY)
            rows = []
    if rows:
        yield _encode(np.concatenate(rows), SHEET_QUALITY)


def sheet_name(shard_id: str, sheet: int) -> str:
    """The file of a sheet, relative to the folder of previews."""
    return f"{shard_id}-{sheet:04d}.jpg"


def place(ordinal: int) -> tuple[int, int]:
    """(sheet, row in it) of the strip of a shard's sample `ordinal`, counted from 0."""
    return divmod(ordinal, STRIPS)


def _fit(frame: Frames, cell: Frames) -> None:
    """Scales a frame to the cell, aspect kept, and lays it into its middle."""
    height, width = frame.shape[:2]
    scale = min(CELL_HEIGHT / height, CELL_WIDTH / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (CELL_HEIGHT - size[0]) // 2, (CELL_WIDTH - size[1]) // 2
    while min(frame.shape[:2]) > 1 and frame.shape[0] >= 2 * size[0] and frame.shape[1] >= 2 * size[1]:
        half = frame.shape[1] // 2, frame.shape[0] // 2  # halving is ten times as fast as an area mean of any factor
        frame = cv2.resize(frame[: 2 * half[1], : 2 * half[0]], half, interpolation=cv2.INTER_AREA)
    scaled = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    cell[top : top + size[0], left : left + size[1]] = scaled


def _encode(rgb: Frames, quality: int) -> bytes:
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), settings)
    assert done, "JPEG encodes any picture of this size"
    return bytes(data)


def _decode(strip: bytes | None) -> Frames:
    if strip is None:
        return np.full((CELL_HEIGHT, STRIP_WIDTH, 3), PAPER, np.uint8)
    bgr = cv2.imdecode(np.frombuffer(strip, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None, "not a JPEG"
    assert bgr.shape == (CELL_HEIGHT, STRIP_WIDTH, 3), "not a strip"
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
