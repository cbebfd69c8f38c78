"""A diffusion objective from outside of the packages: even levels, the clean tokens predicted, in absolute error.

z = (1 - s) x + s e        s ~ U(0, 1)        loss = sum weight |x - prediction|
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.core.specs import ObjectiveSpec
from models.objectives.rectified_flow import Prepared
from models.registry import OBJECTIVES
from parallel.device_stream import Send, here
from parallel.random import key_of, normal, uniform
from parallel.sequence.packed import Packed, local_spans
from parallel.setting_effects import Numbers


class AbsoluteErrorConfig(BaseModel):
    """Keys of `objective` in a run.

    Attributes:
        most: noise level that is drawn at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Numbers[Literal["absolute_error"]] = "absolute_error"
    most: Numbers[float] = Field(default=0.9, gt=0, le=1)


class AbsoluteError:
    def __init__(self, config: AbsoluteErrorConfig) -> None:
        self.config = config

    def prepare(self, packed: Packed, send: Send = here) -> Prepared:
        """Noise from the key of each clip and the position in it, so that it is the same on any mesh."""
        clean, noise, levels = packed.values, torch.empty_like(packed.values), np.empty(len(packed.values))
        row = 0
        for index, start, stop in local_spans(packed.lengths, packed.ranges):
            key, rows = packed.documents[index].key, slice(row, row + stop - start)
            noise[rows] = send(torch.from_numpy(normal(key_of(key, "noise"), start, stop, clean.shape[1])))
            levels[rows] = self.config.most * uniform(key_of(key, "level"))
            row = rows.stop
        level = send(torch.from_numpy(levels).to(clean.dtype))
        noisy = (1 - level)[:, None] * clean + level[:, None] * noise
        return Prepared(replace(packed, values=noisy, noise_level=level), clean, levels)

    def loss(self, model: Any, batch: Any, plans: Any) -> tuple[Tensor, Tensor]:
        """The sum of weighted absolute errors, and of weights."""
        error = (model(batch.input, plans) - batch.target).abs().mean(dim=1)
        return (batch.packed.weight * error).sum(), batch.packed.weight.sum()


OBJECTIVES.register("absolute_error", ObjectiveSpec(AbsoluteErrorConfig, "diffusion", AbsoluteError))
