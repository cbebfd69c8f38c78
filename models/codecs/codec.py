"""`Codec`: frames to latents and back, frozen; and the colours of frames as numbers, which every codec begins with.

frames --posterior--> mean, log-variance        computed once and stored (`longreel data encode`)
frames ---------encode--------> latents         computed while training
mean ---normal----> latents                     the same bits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from parallel.errors import InputError
from parallel.registries import Registry
from parallel.sequence.geometry import Geometry, Grid
from parallel.setting_effects import State

CHUNK_FRAMES = 16  # that are floats of four bytes at a time


class CodecConfig(BaseModel):
    """What the settings of every kind of codec have; one with weights has their folder as `path`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[str]

    @property
    def folder(self) -> Path | None:
        """Of the weights; None for a codec without any."""
        path: Path | None = getattr(self, "path", None)
        return path


class Codec(Protocol):
    """Frames to latents and back.

    Attributes:
        geometry: its strides and the model's patch: how many tokens a clip has.
        prefixes: whether the first latents of a clip are those of its first frames alone.
        identity: of what stored latents were made by; "" for the pixel codec, which makes none.
    """

    geometry: Geometry
    prefixes: bool

    @property
    def identity(self) -> str:
        """See above; may take a second, the first time."""

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [channels, t, h, w] of uint8 `frames` [frames, height, width, 3], near mean 0 and deviation 1."""

    def normal(self, mean: Tensor) -> Tensor:
        """Latents as of `encode`, of the mean of a posterior: [channels, t, h, w], float32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Frames uint8 [frames, height, width, 3] of `latents` [channels, t, h, w]."""


@dataclass(frozen=True)
class CodecSpec:
    """An entry of `CODECS`.

    Attributes:
        config: its settings.
        open: (settings, patch of the model, dtype of latents, device of weights) to a codec that is ready; InputError
            where it cannot be opened.
    """

    config: type[CodecConfig]
    open: Callable[[Any, Grid, torch.dtype, torch.device | str], Codec]


CODECS: Registry[CodecSpec] = Registry("codec")


def to_unit(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [frames, height, width, 3] -> [3, frames, height, width] in -1 .. 1, in float32, some at a time."""
    refuse_frames(frames)
    out = torch.empty(frames.shape, dtype=dtype, device=frames.device).permute(3, 0, 1, 2)  # colours stay together
    for part, into in zip(frames.split(CHUNK_FRAMES), out.split(CHUNK_FRAMES, dim=1), strict=True):
        into.copy_(part.permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0))
    return out


def refuse_frames(frames: Tensor) -> None:
    """Raises InputError if these are no decoded frames."""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {list(frames.shape)}"
        raise InputError("frames are uint8 [frames, height, width, 3]", found, "decode to RGB bytes first")


def to_bytes(clip: Tensor) -> Tensor:
    """[3, frames, height, width] in -1 .. 1 -> uint8 [frames, height, width, 3]."""
    return ((clip.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()
