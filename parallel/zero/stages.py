"""Which engine a ZeRO stage has.

stage   0                  1            2             3
        PlainEngine        DeepSpeedEngine
each    everything         ... but its part of the optimizer's state, of gradients too, of parameters too
"""

from __future__ import annotations

import torch
from torch import nn

from parallel.optimizers.optimizer import OptimizerConfig, refuse_stage
from parallel.zero.deepspeed_config import Offload, refuse_offload
from parallel.zero.deepspeed_engine import DeepSpeedEngine
from parallel.zero.engine import Engine
from parallel.zero.meta_init import give_memory
from parallel.zero.plain import PlainEngine


def engine_for(
    module: nn.Module,
    optimizer: OptimizerConfig,
    stage: int,
    micro_steps: int,
    offload: Offload = "nothing",
    device: torch.device | None = None,
) -> Engine:
    """The engine of a ZeRO stage; torch.distributed is up.

    Args:
        module: the whole model, the same on every rank; or one made in `on_meta`, whose numbers are then not a number
            until they are written to `held`.
        optimizer: its settings.
        stage: 0 to 3.
        micro_steps: calls of `backward` in one step.
        offload: what lies in the memory of the host instead of the device: the optimizer's state, of stages 1 to 3, or
            that and the parameters, of stage 3.
        device: where a module made in `on_meta` gets its memory; the CPU unless told. Another stays where it is.

    Raises:
        InputError: the stage cannot offload that, or the optimizer cannot run at it.
    """
    refuse_offload(stage, offload)
    refuse_stage(optimizer, stage)
    device = device or torch.device("cpu")
    if stage == 0:
        give_memory(module, device)
        return PlainEngine(module, optimizer)
    return DeepSpeedEngine(module, optimizer, stage, micro_steps, offload, device)
