"""Images as videos of one frame: the file is stored as it came, and decoded when it is read (Pillow).

Upright (EXIF), in sRGB if the file has a colour profile, 8 bits (16 are cut to their upper half), what is transparent
laid over black; CMYK without a profile is converted by formula.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from data.rgb import Frames
from parallel.errors import InputError

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
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


def decode(data: bytes, size: tuple[int, int] | None = None) -> Frames:
    """uint8 RGB [1, height, width, 3], scaled to `size` (height, width) if given.

    Raises:
        InputError: not an image of a known format, damaged, too large, or an animation.
    """
    try:
        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as opened:
            if (frames := getattr(opened, "n_frames", 1)) > 1:
                raise _bad(data, f"it is an animation of {frames} frames")
            opened.load()
            picture = _rgb(ImageOps.exif_transpose(opened))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise _bad(data, "not a picture that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, ImageCms.PyCMSError) as error:
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


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cap at 255
        return Image.fromarray((np.asarray(picture, np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    colours = picture.convert(PLAIN.get(picture.mode, picture.mode))
    if profile := picture.info.get("icc_profile"):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if PROFILES.get(source.profile.xcolor_space.strip()) == colours.mode:
            target = ImageCms.createProfile("sRGB")
            colours = ImageCms.profileToProfile(colours, source, target, outputMode="RGB") or colours
    colours = colours.convert("RGB")
    return Image.composite(colours, Image.new("RGB", colours.size), alpha) if alpha else colours


def _bad(data: bytes, reason: str) -> InputError:
    value = f"{len(data)} bytes in memory: {reason}"
    return InputError("an image is a whole JPEG, PNG or WebP", value, "save it again as one of these, or leave it out")
