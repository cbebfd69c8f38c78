"""The one place where optimizers are listed: add one in its own file, and one line here or in that file."""

from __future__ import annotations

from typing import Annotated

from parallel.registry import OneOf, Registry
from parallel.zero.optimizers.adamw import AdamWConfig
from parallel.zero.optimizers.optimizer import OptimizerConfig

OPTIMIZERS: Registry[type[OptimizerConfig]] = Registry("optimizer")
OPTIMIZERS.register("adamw", AdamWConfig)
OptimizerChoice = Annotated[OptimizerConfig, OneOf(OPTIMIZERS, lambda config: config)]
