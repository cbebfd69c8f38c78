"""A diffusion model from outside of the packages: gated attention units instead of DiT blocks, and no text.

    x + gate(s) * out(attention(u) * silu(v)),   u, v = linear(norm(x) + scale(s))      (Hua et al., arXiv:2202.10447)

`s` is the noise level of each token; where a token lies is told by sinusoids of its coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.core.specs import ModelSpec, Numbers
from models.diffusion.attention_schedule import Full, Schedule
from models.diffusion.video_dit import DiTBatch
from models.registry import MODELS
from parallel.attention.attend import attend
from parallel.attention.plan import Plan
from parallel.setting_effects import State


class GatedUnitsConfig(BaseModel):
    """Keys of `model` in a run.

    Attributes:
        dim, depth, heads: of the units.
        patch: latent cells of a token along (t, y, x).
        attention: who sees whom, a pattern for each unit in turn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["gated_units"]] = "gated_units"
    dim: State[int] = Field(default=48, gt=0)
    depth: State[int] = Field(default=2, gt=0)
    heads: State[int] = Field(default=4, gt=0)
    patch: State[tuple[int, int, int]] = (1, 8, 8)
    attention: Schedule = (Full(),)


class Unit(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale, self.gate = nn.Linear(1, dim), nn.Linear(1, dim)
        self.qkv, self.value, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, level: Tensor, plan: Plan) -> Tensor:
        """`x` [tokens, dim], `level` [tokens, 1] -> [tokens, dim]."""
        rows = F.layer_norm(x, x.shape[-1:]) + self.scale(level)
        q, k, v = self.qkv(rows).unflatten(1, (3, self.heads, -1)).unbind(1)  # [tokens, heads, head_dim]
        seen = attend(q, k, v, plan).flatten(1)
        return x + self.gate(level) * self.out(seen * F.silu(self.value(rows)))


class GatedUnits(nn.Module):
    def __init__(self, config: GatedUnitsConfig, channels: int) -> None:
        super().__init__()
        self.config, self.token_dim = config, channels * math.prod(config.patch)
        self.embed, self.place = nn.Linear(self.token_dim, config.dim), nn.Linear(6, config.dim)
        self.units = nn.ModuleList(Unit(config.dim, config.heads) for _ in range(config.depth))
        self.head = nn.Linear(config.dim, self.token_dim)

    def forward(self, batch: DiTBatch, plans: Sequence[Plan]) -> Tensor:
        """Prediction [tokens, token_dim]."""
        dtype, packed = self.embed.weight.dtype, batch.packed
        angle = packed.coordinates.to(dtype) / 4
        x = self.embed(packed.values.to(dtype)) + self.place(torch.cat((angle.cos(), angle.sin()), dim=1))
        level = packed.noise_level.to(dtype)[:, None]
        for unit, plan in zip(self.units, cycle(plans), strict=False):
            x = unit(x, level, plan)
        prediction: Tensor = self.head(x)
        return prediction


def build(config: GatedUnitsConfig, numbers: Numbers) -> GatedUnits:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(numbers.seed)
        return GatedUnits(config, numbers.channels).to(numbers.dtype)


MODELS.register("gated_units", ModelSpec(GatedUnitsConfig, "diffusion", build))
