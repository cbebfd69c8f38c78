"""Language models that see: a vision tower of transformers, a projector, and the words' model with its place for both.

    frames, dealt to ranks            [frames, 3, height, width]      each rank some of them, whichever words it holds
        tower, projector              [frames, side x side, dim]      nothing crosses a frame
        averages                      [rows, dim]                     of neighbours, of the frames of a view
        exchange                      the rows whose positions are here
    words of this rank --embed------> [tokens, dim], rows of visuals replaced --> `Backbone.hidden`

The cut of the words may go through the middle of a frame, and the frames of a long document may all lie in the part of
one rank: so views (`parallel.sequence.visual_tokens`) are dealt out evenly, and their rows travel to where the mask
wants them. A rank without frames sees a blank one and uses nothing of it, because ZeRO-3 gathers the same parameters on
every rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.language.causal_lm import NAME, Backbone, drawn, refuse_unknown, register
from models.language.towers import has_class_token, tell_transformers
from models.layers.fused import Compile
from parallel.device_stream import Send, here
from parallel.errors import InputError
from parallel.masks.rectangles import Ints
from parallel.memory.tiled import tiled

TOWER_FRAMES = 256  # that the tower sees at once


@dataclass(frozen=True, eq=False)
class Averages:
    """How the features of frames become the rows of views, in numbers that are on the device before they are needed.

    Attributes:
        tokens: of a frame, after neighbours were averaged.
        view: [frames] int64, which view each frame is of; none if each is one of its own.
        frames: [views], how many frames each has.
        taken: rows that are wanted, of each view `tokens` rows and then their mean; none if all views are whole.
    """

    tokens: int
    view: Tensor | None
    frames: Tensor
    taken: Tensor | None

    @classmethod
    def of(cls, frames: Ints, rows: Ints, tokens: int, send: Send = here) -> Averages:
        """Of views, on the host.

        Args:
            frames: [views], of each.
            rows: [views], of each: `tokens`, or 1.
            tokens: of a frame.
            send: puts a tensor of the host on the device.

        Raises:
            InputError: a view has other rows than that.
        """
        wrong = rows[(rows != tokens) & (rows != 1)]
        if len(wrong):
            rule = "an image has as many places among the words as it has tokens"
            found = f"{wrong[0]} places for {tokens} tokens"
            raise InputError(rule, found, "repeat the image's placeholder as often in the text")
        view = None if (frames == 1).all() else send(torch.from_numpy(np.arange(len(frames)).repeat(frames)))
        whole = rows == tokens
        taken = None
        if not whole.all():
            every = (np.arange(tokens + 1) < tokens) == whole[:, None]  # [views, tokens + 1]
            taken = send(torch.from_numpy(np.flatnonzero(every)))
        return cls(tokens, view, send(torch.from_numpy(frames)), taken)


class Exchange(Protocol):
    """Brings rows that are made here to the ranks that hold their positions (`parallel.sequence.row_exchange`)."""

    @property
    def rows(self) -> Tensor:
        """int64 [rows], which of this rank's tokens are rows of visuals, in order."""

    def __call__(self, rows: Tensor) -> Tensor:
        """[made, dim] of the views that are encoded here -> [rows, dim]. Collective over the ranks of the replica."""


@dataclass(frozen=True, eq=False)
class VisualInputs:
    """The frames that this rank's tower encodes.

    Attributes:
        pixels: [frames, 3, height, width]; views are in order, and their frames too.
        averages: of their features.
        most: frames that the tower of any rank encodes.
        exchange: of their rows.
    """

    pixels: Tensor
    averages: Averages
    most: int
    exchange: Exchange


class VisionLM(Backbone):
    """A model in the shape of LLaVA (Liu et al., arXiv:2304.08485): `LlavaForConditionalGeneration`, made by `make`."""

    @property
    def decoder(self) -> Any:
        """See `Backbone`."""
        return self.model.model.language_model

    @property
    def image_tokens(self) -> int:
        """Places of one image among the words."""
        return tokens_of(self.model.config)

    def encode_visuals(self, tokens: Tensor, visuals: VisualInputs, pool: int = 1) -> Tensor:
        """Embeddings [tokens, dim] of text tokens and visuals. Collective over the ranks of the replica.

        Args:
            tokens: [tokens] int64; what stands at positions of visuals does not matter.
            visuals: the frames that are encoded here.
            pool: rows of a frame are averaged over pool x pool neighbours.
        """
        features = tiled(self._features, visuals.pixels, -(-visuals.most // TOWER_FRAMES) or 1)
        embedded = self.embed(tokens)
        arrived = visuals.exchange(rows_of(pooled(features, pool), visuals.averages))
        return embedded.index_copy(0, visuals.exchange.rows, arrived.to(embedded.dtype))

    def _features(self, pixels: Tensor) -> Tensor:
        """What the tower and the projector make of frames: [frames, tokens, dim]."""
        config, count = self.model.config, len(pixels)
        features = self.model.model.get_image_features(
            pixels if count else pixels.new_zeros(1, *pixels.shape[1:]),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        return torch.stack(list(features))[:count]


def make(
    config: Any,
    dtype: torch.dtype,
    seed: int,
    recompute: bool = False,
    mlp_tiles: int = 1,
    compile_blocks: Compile = "none",
) -> VisionLM:
    """A model of a transformers config, its first numbers a function of `seed` alone.

    Raises:
        InputError: it has not the shape of LLaVA, or its language model is not known.
    """
    from transformers import LlavaForConditionalGeneration

    if config.model_type != "llava":
        raise InputError("a model that sees has the shape of LLaVA", f"model_type: {config.model_type}", "llava")
    refuse_unknown(config.text_config)
    register()
    tell_transformers()  # whoever unpickled the config has not read it
    attention = {"": "sdpa", "text_config": NAME, "vision_config": "sdpa"}  # an image is whole on its rank
    made: Any = LlavaForConditionalGeneration
    model = drawn(lambda own: made._from_config(own, attn_implementation=attention), config, dtype, seed)
    return VisionLM(model, recompute, mlp_tiles, compile_blocks)


def pooled(features: Tensor, pool: int) -> Tensor:
    """Averages over pool x pool neighbours of each frame: [frames, side x side, dim] -> [frames, (side / pool)^2, dim].

    Raises:
        InputError: the frame is no square, or does not divide.
    """
    if pool == 1:
        return features
    tokens = features.shape[1]
    side = math.isqrt(tokens)
    if side * side != tokens or side % pool:
        rule = "neighbours are averaged where they make up a square that divides"
        raise InputError(
            rule, f"{tokens} tokens a frame, pool {pool}", "model.spatial_pool=1, or a divisor of the side"
        )
    square = features.unflatten(1, (side // pool, pool, side // pool, pool))
    mean: Tensor = square.mean(dim=(2, 4)).flatten(1, 2)
    return mean


def tokens_of(config: Any) -> int:
    """Tokens of an image, as a transformers config of a model that sees has them."""
    vision = config.vision_config
    patches = int(vision.image_size // vision.patch_size) ** 2
    drops_first: bool = config.vision_feature_select_strategy == "default"
    return patches + has_class_token(vision) - drops_first


def rows_of(features: Tensor, averages: Averages) -> Tensor:
    """Rows of views, one after the other: the mean over the frames of each, of all its tokens or of each.

    Args:
        features: [frames, tokens, dim].
        averages: of these frames.

    Raises:
        InputError: a frame has other tokens than the config says.
    """
    if features.shape[1] != averages.tokens:
        found = f"{features.shape[1]} tokens a frame, {averages.tokens} by the config"
        raise InputError("a tower gives a token a patch, and CLIP's one more", found, "a tower of SigLIP or CLIP")
    if averages.view is not None:
        total = features.new_zeros(len(averages.frames), *features.shape[1:]).index_add(0, averages.view, features)
        features = total / averages.frames.to(features.dtype)[:, None, None]
    if averages.taken is None:
        return features.flatten(0, 1)
    both = torch.cat((features, features.mean(dim=1, keepdim=True)), dim=1).flatten(0, 1)
    return both.index_select(0, averages.taken)
