"""`Rgb`: decoded pictures as 8-bit RGB, upright, with square pixels, in the colours they were filmed in.

A picture says how its colours are coded, or it does not: then BT.709 is assumed from 720 lines up and BT.601 below, and
limited range unless the pixel format means full range. BT.2020 is decoded by its own matrix; primaries are kept as they
are. HDR (PQ, HLG) is refused: without tone mapping it is grey. What is transparent is laid over black.

Two ways, chosen by the kind of picture alone, so that every part of a clip is converted as in the whole:

    8-bit 4:2:0, limited range, at its own size     swscale's quick arithmetic: 0.5 ms for 1280 x 720
    anything else                                   swscale's exact arithmetic: 2 ms, or 0.4 ms to 256 x 144

The quick one cuts off where it should round, three times. One step of 255 makes that good: then it is within 2 of the
exact value and at most half a step off on average, and black is 1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, ColorTrc, Interpolation, VideoReformatter

from parallel.errors import InputError

Frames = npt.NDArray[np.uint8]

# Exact arithmetic: without it colours drift at each conversion, and differ between CPUs.
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
CUT_OFF = (1.0, 1.0, 1.0, 0.0)  # of 255, see above
HD_LINES = 720
HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
# Matrices as ITU-T H.273, table 4, numbers them
BT709, BT601 = 1, 6
CONVERT = "convert it to upright BT.709 (HDR with ffmpeg's zscale and tonemap), or leave it out"
SPLIT = "longreel prepare divides it there; or scale it to one size (ffmpeg -i IN -vf scale=W:H OUT.mp4)"
KNOWN = {BT709, 4, 5, BT601, 7, 9}  # and FCC, BT.601 of 625 lines, SMPTE 240M, BT.2020
OPEN = {0, 2, 3}  # RGB where the format is not, unspecified, reserved


@dataclass(frozen=True)
class Turn:
    """How a stored picture becomes an upright one: transposed, then mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def __call__(self, frame: Frames) -> Frames:
        """A view of [height, width, 3]."""
        turned = frame.transpose(1, 0, 2) if self.transpose else frame
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


UPRIGHT = Turn()


@dataclass(frozen=True)
class _Way:
    """How frames of one kind are converted: to which size as stored, by what arithmetic."""

    height: int
    width: int
    form: str  # rgb24: quickly; gbrp: exactly (the same as exactly to rgb24, and faster); rgba: with alpha
    how: Interpolation


class Rgb:
    """Converts frames of one size and turn; keeps swscale's tables, which cost more than a small conversion."""

    def __init__(self, name: str, aspect: Fraction | None = None, size: tuple[int, int] | None = None) -> None:
        """Prepares for one stream.

        Args:
            name: of the source, for messages.
            aspect: width of a stored pixel, if its height is 1; None for square ones.
            size: (height, width) as displayed, to scale to; None for all pixels there are.
        """
        self.name, self.aspect, self.size = name, aspect or Fraction(1), size
        self.turn, self.stored = UPRIGHT, (0, 0)
        self._ways: dict[tuple[Any, ...], _Way] = {}
        self._reformatter = VideoReformatter()

    def start(self, frame: Any) -> tuple[int, int]:
        """(height, width) of what comes out; `frame` is the first of the stream."""
        self.turn = turn_of(frame, self.name)
        self.stored = frame.height, frame.width
        if self.size is None:
            self.size = displayed(*self.stored, self.aspect, self.turn)
        return self.size

    def __call__(self, frame: Any, out: Frames | None = None) -> Frames:
        """A decoded frame as RGB [height, width, 3], written into `out` if given.

        Raises:
            InputError: HDR, colours of an unknown kind, tilted, or of another size than the first.
        """
        if out is None:
            out = np.empty((*(self.size if self._ways and self.size else self.start(frame)), 3), np.uint8)
        if (frame.height, frame.width) != self.stored:
            old, new = (f"{height} x {width}" for height, width in (self.stored, (frame.height, frame.width)))
            raise _unusable(self.name, f"its picture changes from {old} to {new} within the film", SPLIT)
        if frame.key_frame and turn_of(frame, self.name) != self.turn:
            raise _unusable(self.name, "its picture is turned within the film", SPLIT)
        key = (frame.format.name, frame.height, frame.width, frame.colorspace, frame.color_range, frame.color_trc)
        if key not in self._ways:
            self._ways[key] = self._way(frame)
        way = self._ways[key]
        if frame.colorspace in OPEN and not frame.format.is_rgb:  # swscale would take BT.601 for any size
            frame.colorspace = BT709 if frame.height >= HD_LINES else BT601
        # swscale's own default of one thread per core costs six times the conversion of a small clip
        image = self._reformatter.reformat(frame, way.width, way.height, way.form, interpolation=way.how, threads=1)
        target = out if self.turn == UPRIGHT else np.empty((way.height, way.width, 3), np.uint8)
        if way.form == "rgb24":
            cv2.add(image.to_ndarray(), CUT_OFF, dst=target)
        elif way.form == "gbrp":
            green, blue, red = (_plane(plane) for plane in image.planes)
            cv2.merge((red, green, blue), dst=target)
        else:
            rgba = image.to_ndarray()
            target[:] = (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255
        if target is not out:
            out[:] = self.turn(target)
        return out

    def _way(self, frame: Any) -> _Way:
        check_colours(frame, self.name)
        assert self.size is not None
        height, width = self.size[::-1] if self.turn.transpose else self.size
        name, own_size = frame.format.name, (frame.height, frame.width) == (height, width)
        if name == "yuv420p" and frame.color_range != ColorRange.JPEG and own_size and not (height | width) % 2:
            return _Way(height, width, "rgb24", Interpolation.BILINEAR)
        alpha = has_alpha(frame)
        # area averages when it shrinks but blocks when it grows
        grows = height > frame.height or width > frame.width
        scaling = Interpolation.BICUBIC if grows else Interpolation.AREA
        return _Way(height, width, "rgba" if alpha else "gbrp", scaling | EXACT)


def turn_of(frame: Any, name: str) -> Turn:
    """From the display matrix of a decoded frame (ISO/IEC 14496-12, 8.3.2): x' = a x + c y, y' = b x + d y.

    Raises:
        InputError: it tilts by something else than a multiple of 90 degrees.
    """
    for data in frame.side_data:
        if data.type != SideData.DISPLAYMATRIX:
            continue
        a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
        if b == c == 0 != a * d:
            return Turn(False, d < 0, a < 0)
        if a == d == 0 != b * c:
            return Turn(True, b < 0, c < 0)
        raise _unusable(name, "it is displayed tilted, by no multiple of 90 degrees")
    return UPRIGHT


def has_alpha(frame: Any) -> bool:
    """Whether a decoded frame tells what of it is transparent."""
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)


def check_colours(frame: Any, name: str) -> None:
    """Raises an InputError if the colours of a frame cannot be decoded."""
    if frame.color_trc in HDR:
        raise _unusable(name, f"it is HDR ({HDR[frame.color_trc]}), which is not tone-mapped here")
    if frame.colorspace not in KNOWN | OPEN and not frame.format.is_rgb:
        raise _unusable(name, f"its colour matrix, number {frame.colorspace} of ITU-T H.273, is not supported")


def _plane(plane: Any) -> Frames:
    """[height, width] of 8 bits, without the padding of its lines."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def displayed(height: int, width: int, aspect: Fraction, turn: Turn) -> tuple[int, int]:
    """(height, width) of a stored picture that is upright and has square pixels; `aspect` as of `Rgb`."""
    square = height, max(1, round(width * aspect))
    return square[::-1] if turn.transpose else square


def _unusable(name: str, reason: str, remedy: str = CONVERT) -> InputError:
    return InputError("a video is shown as it was meant", f"{name}: {reason}", remedy)
