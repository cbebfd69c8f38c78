"""Images as videos of one frame."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from data.video import Frames

SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp"])  # of media parts


def decode(data: bytes, size: tuple[int, int] | None = None) -> Frames:
    """uint8 RGB [1, height, width, 3], scaled to `size` (height, width) if given. The reader calls it with a size."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if size is not None and picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(picture, np.uint8)[None]
