"""A vision tower from outside of the packages: patches mixed by a mean over the frame instead of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from models.language.towers import TOWERS, TowerSpec


class MeanTowerConfig(PretrainedConfig):  # type: ignore[misc,no-untyped-call]
    model_type = "mean_tower"

    def __init__(
        self, image_size: int = 16, patch_size: int = 4, hidden_size: int = 16, num_hidden_layers: int = 2, **more: Any
    ) -> None:
        self.image_size, self.patch_size = image_size, patch_size
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        super().__init__(**more)


class MeanTower(PreTrainedModel):  # type: ignore[misc]
    config_class = MeanTowerConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: MeanTowerConfig) -> None:
        super().__init__(config)
        self.embed = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """[frames, 3, size, size] -> hidden states [frames, patches, hidden_size] of each layer."""
        states = [self.embed(pixel_values).flatten(2).transpose(1, 2)]
        for layer in self.layers:
            states.append(states[-1] + torch.tanh(layer(states[-1] + states[-1].mean(dim=1, keepdim=True))))
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


TOWERS.register("mean_tower", TowerSpec(config=MeanTowerConfig, model=MeanTower))
