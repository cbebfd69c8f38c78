"""Sequences: films that are pictures one after the other: an animated WebP or PNG, or a folder of numbered frames.

    clip0/ 000000.jpg 000001.jpg 000002.jpg ...      in the order of their numbers, at a rate that somebody has to say

FFmpeg does not read all of these, and reads colours otherwise than `data.media.image` does. A folder is one film if its
pictures have one numbering, with one step, and one size: what is missing between two frames nobody can know.
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, islice, pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image, PngImagePlugin

from data.containers.joined_files import second_file, why_joined
from data.containers.open_media import open_container
from data.containers.regular_file import open_regular, read_regular
from data.media import image
from data.media.color import Frames
from parallel.errors import InputError

MICROSECONDS = Fraction(1, 1_000_000)
LONGEST_HASTE, USUAL_DELAY = 10, 100  # ms; browsers show what is to be shown for no longer than the one for the other
PICTURES = frozenset(f".{suffix}" for suffix in image.SUFFIXES)
ANIMATED = ("png", "webp")
NUMBERED = re.compile(r"(.*?)([0-9]{1,18})(\.[^.]*)", re.DOTALL)  # prefix, number, suffix


@dataclass(frozen=True)
class PictureSequence:
    """A film of pictures.

    Attributes:
        kind: suffix of the pictures.
        shown_at: when each is shown, in units of `time_base` seconds.
        read: RGB [height, width, 3] of pictures [start, stop).
    """

    name: str
    kind: str
    shown_at: tuple[int, ...]
    time_base: Fraction
    read: Callable[[int, int], Iterator[Frames]]


def sequence_of(source: Path | bytes, fps: Fraction | None = None) -> PictureSequence | None:
    """The pictures of a folder or an animation; None if a file is something else.

    Args:
        source: a folder, or a file or its bytes.
        fps: frames a second of a folder; None: they are not asked for, and taken as one.

    Raises:
        InputError: the pictures of a folder are no film, or an animation is damaged.
    """
    if isinstance(source, Path) and source.is_dir():
        names = [entry.name for entry in os.scandir(source) if not entry.name.startswith(".")]
        return _folder(source, numbered(str(source), names), fps or Fraction(1))
    return _animation(source) if _is_animation(source) else None


def _is_animation(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        return image.suffix_of(source[: image.MAGIC]) in ANIMATED and image.is_animated(io.BytesIO(source))
    try:
        with open_regular(source) as file:
            return image.suffix_of(file.read(image.MAGIC)) in ANIMATED and image.is_animated(source)
    except OSError:
        return False  # whoever opens it says why


def numbered(folder: str, names: Sequence[str]) -> list[str]:
    """The names of the pictures of a folder, in the order of their numbers; `folder` is for messages.

    Raises:
        InputError: they have no single numbering, or numbers are missing.
    """
    found, pictures = _numbers(names)
    kinds = {(prefix, suffix) for _, prefix, suffix, _ in found}
    if not is_numbered(names):
        how = ", ".join(f"{prefix}N{suffix}" for prefix, suffix in sorted(kinds)[:3]) or "no numbers"
        value = f"{folder}: {pictures} pictures in {len(kinds)} numberings ({how})"
        raise _no_film(value, "put the frames of each film into a folder of their own")
    numbers = [number for number, *_ in found]
    steps = Counter(b - a for a, b in pairwise(numbers))
    step = min(steps, default=1)
    if not step:
        twice = next(a for a, b in pairwise(numbers) if a == b)
        raise _no_film(f"{folder}: two pictures have the number {twice}", "leave one of them")
    if len(steps) > 1:
        gaps = [a + step for a, b in pairwise(numbers) if b - a != step]
        more = f" and {len(gaps) - 1} more gaps" if len(gaps) > 1 else ""
        value = f"{folder}: between {numbers[0]} and {numbers[-1]}, number {gaps[0]} is missing{more}"
        raise _no_film(value, "add it, number the frames without a gap, or put what comes after it into another folder")
    return [name for *_, name in found]


def is_numbered(names: Sequence[str]) -> bool:
    """Whether pictures may well be the frames of a film: several, all of one numbering."""
    found, pictures = _numbers(names)
    return 1 < pictures == len(found) and len({(prefix, suffix) for _, prefix, suffix, _ in found}) == 1


def _numbers(names: Sequence[str]) -> tuple[list[tuple[int, str, str, str]], int]:
    """(number, prefix, suffix, name) of pictures that have a number, ascending, and how many pictures there are."""
    pictures = [name for name in names if _suffix(name) in PICTURES]
    matches = [(match, name) for name in pictures if (match := NUMBERED.fullmatch(name))]
    return sorted((int(m[2]), m[1], m[3].lower(), name) for m, name in matches), len(pictures)


def _folder(folder: Path, names: Sequence[str], fps: Fraction) -> PictureSequence:
    def read(start: int, stop: int) -> Iterator[Frames]:
        first: tuple[int, ...] | None = None
        for name in names[start:stop]:
            try:
                (frame,) = image.decode(read_regular(folder / name))
            except InputError as error:
                reason = error.value.rpartition(" bytes in memory: ")[2]
                raise _no_film(f"{folder}: {name}: {reason}", "save it again, or leave the folder out") from error
            first = first or frame.shape
            if frame.shape != first:
                what = f"{name} is {frame.shape[0]} x {frame.shape[1]}, the first is {first[0]} x {first[1]}"
                raise _no_film(f"{folder}: {what}", "scale the frames to one size, or leave the folder out")
            yield frame

    return PictureSequence(str(folder), _suffix(names[0])[1:], tuple(range(len(names))), 1 / fps, read)


def _animation(source: Path | bytes) -> PictureSequence:
    name = f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)
    if (joined_at := second_file(source)) is not None:
        what, remedy = why_joined(joined_at)
        raise InputError("an animation is one file", f"{name}: {what}", remedy)

    def pictures() -> Iterator[Image.Image]:
        """Each with what is before it laid under it."""
        try:
            with image.opened_image(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                total = int(getattr(opened, "n_frames", 1))
                for number in range(total - image.frames_in(opened), total):  # a still may stand before
                    opened.seek(number)
                    opened.load()
                    yield opened
        except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = f"its pictures cannot be read ({error})"
            raise InputError("an animation is whole", f"{name}: {reason}", "save it again, or leave it out") from error

    def blended() -> Iterator[Image.Image]:
        try:
            with open_container(source) as container:
                for frame in container.decode(video=0):
                    picture = Image.fromarray(frame.to_ndarray(format="rgba"))
                    picture.info["icc_profile"] = profile
                    yield picture
        except (av.error.FFmpegError, OSError) as error:
            reason = f"its pictures cannot be laid over each other ({error.strerror or error})"
            raise InputError("an animation is whole", f"{name}: {reason}", "save it again with 8 bits") from error

    def read(start: int, stop: int) -> Iterator[Frames]:
        found = start
        for picture in islice(blended() if is_blended else pictures(), start, stop):
            yield np.asarray(image.rgb(picture), np.uint8)
            found += 1
        if found < min(stop, len(delays)):
            reason = f"picture {found} of {len(delays)} cannot be read"
            raise InputError("an animation is whole", f"{name}: {reason}", "save it again, or leave it out")

    kind, profile, is_blended, delays = "", None, False, list[float]()
    for picture in pictures():
        kind, delay = str(picture.format).lower(), float(picture.info.get("duration") or 0)
        profile = profile or picture.info.get("icc_profile")
        # Pillow blends wrongly what is partly transparent, and what is taken away again; FFmpeg does not
        is_blended |= kind == "png" and picture.info.get("blend") == PngImagePlugin.Blend.OP_OVER
        delays.append(delay if delay > LONGEST_HASTE else USUAL_DELAY)
    shown_at = tuple(round(1000 * at) for at in accumulate(delays[:-1], initial=0.0))
    return PictureSequence(name, kind, shown_at, MICROSECONDS, read)


def _no_film(value: str, remedy: str) -> InputError:
    return InputError("a folder of numbered frames is one film, each frame of one size", value, remedy)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
