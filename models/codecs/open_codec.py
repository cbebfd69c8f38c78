"""The codecs that a run may choose by name: `codec: pixel`, or a kind with its settings. A new one: a line here."""

from __future__ import annotations

from typing import Annotated

import torch

from models.codecs.codec import CODECS, Codec, CodecConfig, CodecSpec
from models.codecs.diffusers_vae import DiffusersCodecConfig, open_folder
from models.codecs.pixel import PixelCodec, PixelCodecConfig
from parallel.registries import OneOf
from parallel.sequence.geometry import Grid

CODECS.register("pixel", CodecSpec(PixelCodecConfig, lambda config, patch, dtype, device: PixelCodec(patch, dtype)))
CODECS.register("diffusers", CodecSpec(DiffusersCodecConfig, open_folder))
AnyCodecConfig = Annotated[CodecConfig, OneOf(CODECS, lambda spec: spec.config)]


def open_codec(
    config: CodecConfig, patch: Grid, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Codec:
    """The codec that `config` names, ready to use.

    Args:
        config: which one.
        patch: of the model, for the geometry.
        dtype: of latents, and of an autoencoder's weights.
        device: of an autoencoder's weights.

    Raises:
        InputError: it cannot be opened: see the kind.
    """
    return CODECS[config.kind].open(config, patch, dtype, device)
