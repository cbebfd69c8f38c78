"""Vision towers that a language model may have: `model.vision: {model_type: siglip_vision_model, ...}`.

A tower is a model of transformers: [frames, 3, size, size] -> hidden states [frames, tokens, hidden_size] of each
layer, a token a patch. One of your own is a config and a model in the same shape, in one file, and
`TOWERS.register(model_type, TowerSpec(config=..., model=...))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallel.registries import Registry


@dataclass(frozen=True)
class TowerSpec:
    """A kind of tower.

    Attributes:
        class_token: its first token is no patch, and is dropped.
        config: a `PretrainedConfig` with image_size, patch_size, hidden_size and num_hidden_layers; None for a tower
            that transformers has itself.
        model: its `PreTrainedModel`, whose forward gives hidden_states.
    """

    class_token: bool = False
    config: Any = None
    model: Any = None


TOWERS: Registry[TowerSpec] = Registry("vision tower")
TOWERS.register("siglip_vision_model", TowerSpec())
TOWERS.register("clip_vision_model", TowerSpec(class_token=True))


def tell_transformers() -> None:
    """Make towers from outside known to transformers, which looks classes up by `model_type`."""
    from transformers import AutoConfig, AutoModel

    for name, tower in TOWERS.items():
        if tower.config is not None:
            AutoConfig.register(name, tower.config, exist_ok=True)
            AutoModel.register(tower.config, tower.model, exist_ok=True)


def has_class_token(config: Any) -> bool:
    """Whether the tower of a transformers config has a token that is no patch."""
    name = str(config.model_type)
    return name in TOWERS and TOWERS[name].class_token
