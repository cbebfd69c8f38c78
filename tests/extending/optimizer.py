"""An optimizer from outside of the packages: gradient descent with momentum, one number beside each parameter."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from parallel.optimizers.optimizer import OptimizerConfig
from parallel.optimizers.optimizer_registry import OPTIMIZERS
from parallel.setting_effects import State, Update


class MomentumConfig(OptimizerConfig):
    """Gradient descent with momentum.

    Attributes:
        momentum: share of the last update that goes on.
    """

    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    kind: State[Literal["momentum"]] = "momentum"
    momentum: Update[float] = Field(default=0.9, gt=0, lt=1)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """See `OptimizerConfig`."""
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)


OPTIMIZERS.register("momentum", MomentumConfig)
