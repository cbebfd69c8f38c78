"""Language models that see: a vision tower of transformers, a projector, and the words' model with its place for both.

    frames, dealt to ranks            [frames, 3, height, width]      each rank some of them, whichever words it holds
        tower, projector              [frames, side x side, dim]      nothing crosses a frame
        averages                      [rows, dim]                     of neighbours, of the frames of a view
        relayout                      the rows whose places are here
    words of this rank --embed------> [tokens, dim], rows of visuals replaced --> `Backbone.hidden`

The cut of the words may go through the middle of a frame, and the frames of a long document may all lie in the part of
one rank: so views (`parallel.sequence.visual_tokens`) are dealt out evenly, and their rows travel to where the mask
wants them. A rank without frames sees a blank one and uses nothing of it, because ZeRO-3 gathers the same parameters on
every rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.language.causal_lm import NAME, Backbone, drawn, refuse_unknown, register
from models.language.hf_config import has_class_token
from models.layers.fused import Compile
from parallel.device_stream import Send, here
from parallel.errors import InputError
from parallel.masks.rectangles import Ints
from parallel.memory.tiled import tiled
from parallel.mesh import Groups
from parallel.sequence.packed import Ranges
from parallel.sequence.relayout import Move, move_for, relayout
from parallel.sequence.sharding import Split, contiguous

TOWER_FRAMES = 256  # that the tower sees at once


@dataclass(frozen=True, eq=False)
class Places:
    """Where the views of one pack go.

    Attributes:
        views: of the pack that this rank's tower sees, [first, stop).
        move: of their rows to the ranks that hold their places.
        rows: of this rank's tokens that are places of visuals, in order.
        most: views that any rank sees.
    """

    views: tuple[int, int]
    move: Move
    rows: Tensor
    most: int

    def to(self, send: Send) -> Places:
        """The same on a device; `send` puts a tensor of the host there."""
        return replace(self, move=self.move.to(send), rows=send(self.rows))


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


@dataclass(frozen=True, eq=False)
class Seen:
    """The frames that this rank's tower sees.

    Attributes:
        pixels: [frames, 3, height, width]; views are in order, and their frames too.
        averages: of their features.
        most: frames that the tower of any rank sees.
    """

    pixels: Tensor
    averages: Averages
    most: int


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

    def see(self, words: Tensor, seen: Seen, places: Places, groups: Groups, pool: int = 1) -> Tensor:
        """Embeddings [tokens, dim] of words and visuals. Collective over the ranks of the replica.

        Args:
            words: [tokens] int64; what stands at places of visuals does not matter.
            seen: the frames of `places.views`.
            places: of this pack.
            groups: of this rank.
            pool: rows of a frame are averaged over pool x pool neighbours.
        """
        features = tiled(self._features, seen.pixels, -(-seen.most // TOWER_FRAMES) or 1)
        embedded = self.embed(words)
        rows = rows_of(pooled(features, pool), seen.averages)
        arrived = relayout(rows, places.move, groups)
        return embedded.index_copy(0, places.rows, arrived.to(embedded.dtype))

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


def places_for(views: Ranges, split: Split, groups: Groups) -> Places:
    """Deal the views of a pack to the ranks of the replica.

    Args:
        views: the rows of each in the pack, [start, stop), in order.
        split: of the pack.
        groups: of this rank.
    """
    ranks, rank = len(split.ranges), groups.place.sequence
    dealt = [ranges[0] if ranges else (0, 0) for ranges in contiguous(len(views), ranks).ranges]
    starts, stops = np.array(views, dtype=np.int64).reshape(-1, 2).T
    before = np.append(0, (stops - starts).cumsum())
    have = [((int(before[first]), int(before[stop])),) if first < stop else () for first, stop in dealt]
    wanted, rows = zip(*(_held(starts, stops, before, ranges) for ranges in split.ranges), strict=True)
    want = [tuple((int(at), int(at) + 1) for at in of_rank) for of_rank in wanted]
    most = max(stop - first for first, stop in dealt)
    return Places(dealt[rank], move_for(have, want, rank), torch.from_numpy(rows[rank]), most)


def _held(starts: Ints, stops: Ints, before: Ints, ranges: Ranges) -> tuple[Ints, Ints]:
    """Rows of all views, end to end, that lie in these positions; and which of the rows of the rank they are."""
    positions = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
    if not len(starts):
        return positions[:0], positions[:0]
    view = np.maximum(np.searchsorted(starts, positions, side="right") - 1, 0)
    inside = (positions >= starts[view]) & (positions < stops[view])
    return (before[view] + positions - starts[view])[inside], np.flatnonzero(inside)
