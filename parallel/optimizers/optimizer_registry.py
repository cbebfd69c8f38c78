"""The one place where optimizers are listed: add one in its own file, and one line here or in that file."""

from __future__ import annotations

from typing import Annotated

from parallel.optimizers.adamw import AdamWConfig
from parallel.optimizers.optimizer import OptimizerConfig
from parallel.registries import OneOf, Registry

OPTIMIZERS: Registry[type[OptimizerConfig]] = Registry("optimizer")
OPTIMIZERS.register("adamw", AdamWConfig)
OptimizerChoice = Annotated[OptimizerConfig, OneOf(OPTIMIZERS, lambda config: config)]
