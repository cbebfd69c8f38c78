"""Images as videos of one frame: the file is stored as it came, and decoded when it is read (Pillow).

Upright (EXIF), in sRGB if the file has a colour profile, 8 bits (16 are cut to their upper half), what is transparent
laid over black; CMYK without a profile is converted by formula. What a camera adds to a picture (a preview, a map of
brightness, a second eye: Multi-Picture Format) is not the picture, and tags or a profile that cannot be read are none.
An animated WebP or PNG is a film (`data.media.image_sequence`).
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data.containers.open_media import MOST_PIXELS
from data.containers.regular_file import open_regular
from data.media.color import Frames
from parallel.errors import InputError

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
ANIMATED = ("PNG", "WEBP")  # formats whose further pictures follow the first in time
SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp"])  # of media parts
MAGIC = 12  # bytes that tell the format
PLAIN = {"P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBX": "RGB", "LA": "L", "1": "L"}  # modes without transparency
PROFILES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # modes that a colour profile of a kind applies to


def suffix_of(head: bytes) -> str | None:
    """By which suffix a file that begins with these bytes is stored; None if it is no image."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def still_suffix(path: Path) -> str | None:
    """As `suffix_of`, of a file; None if it is an animation, too.

    Raises:
        OSError: it cannot be read, or is no file with bytes.
    """
    with open_regular(path) as file:
        suffix = suffix_of(file.read(MAGIC))
    animated = suffix is not None and suffix.upper() in ANIMATED and is_animated(path)
    return None if animated else suffix


def opened_image(source: IO[bytes] | Path, formats: Sequence[str] = tuple(FORMATS)) -> Image.Image:
    """An image whose header was read, of a format that is known.

    Args:
        source: of the bytes.
        formats: of Pillow that are tried; some that it knows start programs.

    Raises:
        DecompressionBombError: it has more pixels than are made for a picture.
    """
    with _hushed():
        opened = Image.open(source, formats=list(formats))
    if opened.width * opened.height > MOST_PIXELS:
        opened.close()
        raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,}")
    return opened


def frames_in(opened: Image.Image) -> int:
    """Pictures to be shown in turn: what a camera adds to a JPEG is none of them, nor a still beside an animation."""
    if opened.format not in ANIMATED:
        return 1
    still = opened.format == "PNG" and opened.info.get("default_image", False)
    return max(1, int(getattr(opened, "n_frames", 1)) - still)


def is_animated(source: IO[bytes] | Path) -> bool:
    """Whether an image is a film; what is wrong with one that cannot be opened, `decode` says."""
    try:
        with opened_image(source) as opened:
            return frames_in(opened) > 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def decode(data: bytes, size: tuple[int, int] | None = None) -> Frames:
    """uint8 RGB [1, height, width, 3], scaled to `size` (height, width) if given.

    Raises:
        InputError: not an image of a known format, damaged, too large, or an animation.
    """
    try:
        with opened_image(io.BytesIO(data)) as opened:
            if (frames := frames_in(opened)) > 1:
                raise _bad(data, f"it is an animation of {frames} frames, which only `longreel prepare` reads")
            opened.load()
            picture = rgb(_upright(opened))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise _bad(data, "not a picture that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _bad(data, str(error)) from error
    if size is not None and picture.size != size[::-1]:
        shrinks = size[0] <= picture.height and size[1] <= picture.width
        picture = picture.resize(size[::-1], Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return np.asarray(picture, np.uint8)[None]


def encode(frame: Frames) -> bytes:
    """A PNG of one frame [height, width, 3]; `decode` gives back the very pixels."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def _upright(picture: Image.Image) -> Image.Image:
    """As its EXIF tags say, if these can be read."""
    try:
        with _hushed():
            return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return picture


def rgb(picture: Image.Image) -> Image.Image:
    """In 8-bit sRGB, what is transparent laid over black."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cap at 255
        return Image.fromarray((np.asarray(picture, np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    colours = picture.convert(PLAIN.get(picture.mode, picture.mode))
    if profile := picture.info.get("icc_profile"):
        colours = _in_srgb(colours, profile)
    colours = colours.convert("RGB")
    return Image.composite(colours, Image.new("RGB", colours.size), alpha) if alpha else colours


def _in_srgb(colours: Image.Image, profile: bytes) -> Image.Image:
    """Converted out of the colours of a profile, if that can be read and is of this kind of colours."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if PROFILES.get(source.profile.xcolor_space.strip()) != colours.mode:
            return colours
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(colours, source, target, outputMode="RGB") or colours
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return colours


@contextmanager
def _hushed() -> Iterator[None]:
    """Without warnings of tags and of further pictures that are damaged: the picture is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a bound of our own is checked
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        yield


def _bad(data: bytes, reason: str) -> InputError:
    value = f"{len(data)} bytes in memory: {reason}"
    return InputError("an image is a whole JPEG, PNG or WebP", value, "save it again as one of these, or leave it out")
