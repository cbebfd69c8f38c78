"""The path with no download: a latent cell is a pixel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.codecs.codec import CodecConfig, to_bytes, to_unit
from parallel.sequence.geometry import Geometry, Grid
from parallel.setting_effects import State


class PixelCodecConfig(CodecConfig):
    """The pixel codec has no settings."""

    kind: State[Literal["pixel"]] = "pixel"


class PixelCodec:
    """Colours scaled to -1 .. 1: exact, and each frame its own."""

    identity = ""
    prefixes = True

    def __init__(self, patch: Grid, dtype: torch.dtype = torch.float32) -> None:
        self.geometry, self.dtype = Geometry(channels=3, patch=patch), dtype

    def encode(self, frames: Tensor) -> Tensor:
        """See `Codec`."""
        return to_unit(frames, self.dtype)

    def normal(self, mean: Tensor) -> Tensor:
        """See `Codec`."""
        return mean.to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec`."""
        return to_bytes(latents)
