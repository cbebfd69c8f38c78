"""Video-language models: any language model of transformers that `causal_lm.py` knows, with or without a vision tower.

    frames --tower, projector, averages--> rows --+
    text tokens ---------embed-------------------+-> layers, `attend` over all ranks -> hidden -> loss

The shape is that of LLaVA, so that its weights load and save under their own names. It is trained on an `LMBatch`;
who sees whom is causal in a document unless the config says more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.core.specs import HeadShape, MakeHeads, ModelSpec, of_blocks
from models.language import causal_lm, vision_tower
from models.language.causal_lm import Backbone, Plans
from models.language.lm_batch import LMBatch
from models.language.video_lm_config import LAYERS, PARTS, TOWER, VideoLMConfig
from models.language.vision_tower import VisionLM
from parallel.errors import InputError
from parallel.memory.activation_offload import offload_if


class VideoLM(nn.Module):
    """A language model, with or without a vision tower.

    Args:
        lm: the model.
        pool: `spatial_pool` of `VideoLMConfig`.
        offload: see `VideoLMConfig`.
        heads: of an objective, for the hidden rows; parts of this module by their names.
    """

    def __init__(
        self, lm: Backbone, pool: int = 1, offload: bool = False, heads: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.lm, self.pool, self.offload = lm, pool, offload
        for name, head in (heads or {}).items():
            self.add_module(name, head)

    def forward(self, batch: LMBatch, plans: Plans) -> Tensor:
        """Hidden rows [tokens, dim] of this rank. Collective over the ranks of the replica."""
        embedded = self.embedded(batch)
        with offload_if(self.offload):
            return self.lm.hidden(embedded, batch.packed.position, plans, rope=batch.rope)

    def embedded(self, batch: LMBatch) -> Tensor:
        """Text tokens, and rows of visuals at their positions: [tokens, dim]."""
        if batch.visuals is None:
            return self.lm.embed(batch.tokens)
        assert isinstance(self.lm, VisionLM), "a model without a tower was given frames"
        return self.lm.encode_visuals(batch.tokens, batch.visuals, self.pool)


def build(
    config: VideoLMConfig, dtype: torch.dtype, seed: int, heads: MakeHeads | None = None, reads_out: bool = True
) -> VideoLM:
    """The model of a config, its first numbers a function of `seed` alone; frozen parts are not trained.

    Args:
        config: of the model.
        dtype: of its numbers.
        seed: of the first of them.
        heads: makes those of the objective.
        reads_out: the objective uses the head over the vocabulary, which is frozen else.
    """
    make = vision_tower.make if config.views else causal_lm.make
    lm = make(config.transformers, dtype, seed, config.recompute, config.mlp_tiles, config.compile)
    still = (*(prefix for part in config.freeze for prefix in PARTS[part]), *unused(config))
    for name, parameter in lm.model.named_parameters():
        plain = name if config.views else name.replace("model.", LAYERS, 1)
        parameter.requires_grad_(not plain.startswith(still))
    if not reads_out:
        for parameter in lm.model.lm_head.parameters():
            parameter.requires_grad_(lm.model.config.get_text_config().tie_word_embeddings)
    if heads is None:
        return VideoLM(lm, config.spatial_pool, config.offload)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        made = {name: head.to(dtype) for name, head in heads(config.dim).items()}
        return VideoLM(lm, config.spatial_pool, config.offload, made)


def unused(config: VideoLMConfig) -> tuple[str, ...]:
    """Prefixes of parameters of the tower that its features do not depend on: layers after the one that is taken."""
    if not config.views:
        return ()
    tower, layer = config.transformers.vision_config, config.transformers.vision_feature_layer
    layers = [layer] if isinstance(layer, int) else list(layer)
    last = max(n if n >= 0 else tower.num_hidden_layers + 1 + n for n in layers)
    after = [f"encoder.layers.{n}." for n in range(last, tower.num_hidden_layers)]
    found = (*after, "post_layernorm.", "head.")
    return tuple(f"{TOWER}{inner}{name}" for name in found for inner in ("", "vision_model."))


def refuse_contrast(model: VideoLMConfig, objective: object) -> None:
    """Video and text are compared by a model that has a vision tower, from its first numbers on.

    Raises:
        InputError: this one has none, or begins with weights.
    """
    if model.path or not model.views:
        found = f"model.path: {model.path}, vision: {model.vision}"
        raise InputError("video_text is learned from scratch, by a model that sees", found, "give model.vision")


def _head_shapes(config: VideoLMConfig) -> tuple[HeadShape, ...]:
    text = config.text
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return (HeadShape("the language model", config.heads, int(text.num_key_value_heads), int(dim)),)


SPEC = ModelSpec(
    VideoLMConfig,
    "language",
    lambda config, numbers: build(config, numbers.dtype, numbers.seed, numbers.heads, numbers.reads_out),
    head_shapes=_head_shapes,
    about=lambda config: of_blocks(config) + 2 * config.vocabulary * config.dim,
    narrower=None,
    in_parts=False,
    folder=lambda config: config.path,
    can_freeze=True,
    pretrained=True,
)
