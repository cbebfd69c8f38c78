"""Language models that see: a vision tower of transformers, a projector, and the words' model with its place for both.

    images, dealt to ranks            [images, 3, height, width]      each rank some of them, whichever words it holds
        tower, projector              [images x tokens, dim]          nothing crosses an image
        relayout                      the rows whose places are here
    words of this rank --embed------> [tokens, dim], rows of images replaced --> `Backbone.hidden`

The cut of the words may go through the middle of an image, and the images of a long document may all lie in the part of
one rank: so images are dealt out evenly, and their rows travel to where the mask wants them. A rank without images sees
a blank one and uses nothing of it, because ZeRO-3 gathers the same parameters on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backbone import NAME, Backbone, refuse_unknown, register
from parallel.errors import InputError
from parallel.mesh import Groups
from parallel.packed import Ranges
from parallel.relayout import Move, move_for, relayout
from parallel.split import Split, contiguous


@dataclass(frozen=True, eq=False)
class Places:
    """Where the images of one pack go.

    Attributes:
        images: of the pack that this rank's tower sees, [first, stop).
        move: of their rows to the ranks that hold their places.
        rows: of this rank's tokens that are places of images, in order.
    """

    images: tuple[int, int]
    move: Move
    rows: Tensor


class VisionLM(Backbone):
    """A model in the shape of LLaVA (Liu et al., arXiv:2304.08485): `LlavaForConditionalGeneration`, made by `make`."""

    @property
    def decoder(self) -> Any:
        """See `Backbone`."""
        return self.model.model.language_model

    @property
    def image_tokens(self) -> int:
        """Places of one image among the words."""
        vision = self.model.config.vision_config
        drops_first = self.model.config.vision_feature_select_strategy == "default"
        return int(vision.image_size // vision.patch_size) ** 2 + (0 if drops_first else 1)

    def see(self, words: Tensor, pixels: Tensor, places: Places, groups: Groups) -> Tensor:
        """Embeddings [tokens, dim] of words and images. Collective over the ranks of the replica.

        Args:
            words: [tokens] int64; what stands at places of images does not matter.
            pixels: [images, 3, height, width], those of `places.images`.
            places: of this pack.
            groups: of this rank.
        """
        config, count = self.model.config, len(pixels)
        features = self.model.model.get_image_features(
            pixels if count else pixels.new_zeros(1, *pixels.shape[1:]),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        embedded = self.embed(words)
        arrived = relayout(torch.cat(features)[: count * self.image_tokens], places.move, groups)
        return embedded.index_copy(0, places.rows.to(words.device), arrived.to(embedded.dtype))


def make(config: Any, dtype: torch.dtype, seed: int) -> VisionLM:
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = LlavaForConditionalGeneration
        return VisionLM(made._from_config(config, attn_implementation=attention, dtype=dtype))


def places_for(images: Ranges, tokens: int, split: Split, groups: Groups) -> Places:
    """Deal the images of a pack to the ranks of the replica.

    Args:
        images: the places of each image in the pack, [start, stop), in order.
        tokens: of each image.
        split: of the pack.
        groups: of this rank.

    Raises:
        InputError: an image has other places than it has tokens.
    """
    for start, stop in images:
        if stop - start != tokens:
            raise InputError(
                "an image has as many places among the words as it has tokens",
                f"{stop - start} places at {start}, for {tokens} tokens",
                "repeat the image's placeholder as often in the text",
            )
    ranks, rank = len(split.ranges), groups.place.sequence
    dealt = [ranges[0] if ranges else (0, 0) for ranges in contiguous(len(images), ranks).ranges]
    have = [((first * tokens, stop * tokens),) if first < stop else () for first, stop in dealt]
    starts = np.array([start for start, _ in images], dtype=np.int64)
    wanted, rows = zip(*(_held(starts, tokens, ranges) for ranges in split.ranges), strict=True)
    want = [tuple((int(at), int(at) + 1) for at in of_rank) for of_rank in wanted]
    return Places(dealt[rank], move_for(have, want, rank), torch.from_numpy(rows[rank]))


def _held(starts: np.ndarray[Any, Any], tokens: int, ranges: Ranges) -> tuple[np.ndarray[Any, Any], ...]:
    """Rows of all images, end to end, that lie in these positions; and which of the rows of the rank they are."""
    positions = np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])
    image = np.searchsorted(starts, positions, side="right") - 1
    inside = positions - starts[np.maximum(image, 0)] if len(starts) else np.full(len(positions), tokens)
    seen = (image >= 0) & (inside < tokens)
    return image[seen] * tokens + inside[seen], np.flatnonzero(seen)
