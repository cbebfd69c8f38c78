"""What an optimizer is to everything else: the section `optimizer` of a run, and the names of what it keeps.

    class LionConfig(OptimizerConfig):                 a file of its own: settings, names, and an optimizer of torch
        kind: State[Literal["lion"]] = "lion"
        state_names = ("exp_avg",)
        def build(self, groups): return Lion(groups, lr=0.0)
    OPTIMIZERS.register("lion", LionConfig)            one call, and `optimizer: {kind: lion}` is a run

    engine        build, groups, initial_state, clip    checkpoints, imports    tensor_names
    memory floor  state_names                           run                     stages

Nobody else knows how many tensors an optimizer keeps, or how they are called. ZeRO 1 to 3 cut parameters anywhere and
give the optimizer flat stretches of them, which is right for one that treats every element alike; one that needs whole
matrices says so in `stages`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from parallel.errors import InputError
from parallel.fragments import MASTER, shape_of
from parallel.setting_effects import Rate, State, Update

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(BaseModel):
    """The optimizer of a run, its learning rate, and the moving average of the weights.

    Attributes:
        kind: name of the optimizer.
        learning_rate: peak learning rate.
        warmup_steps: steps of the linear warm-up from 0 to the peak [steps].
        schedule: "constant"; "cosine" down to final_ratio x learning_rate at the last step; "wsd": constant, then
            linear down to that over the last quarter (MiniCPM, arXiv:2404.06395).
        final_ratio: learning rate of the last step / learning_rate, for "cosine" and "wsd".
        weight_decay: decoupled weight decay, on matrices only.
        max_grad_norm: gradient clipping: largest global gradient norm; 0 never clips.
        ema: decay of the exponential moving average of the weights, such as 0.999, which `longreel sample` uses; 0
            keeps none.
        state_names: of the class: keys of torch's state of a parameter whose tensors are of the parameter's size; zeros
            must be what they are before the first update.
        counter: of the class: the key under which torch's state counts updates; none for one that does not count.
        stages: of the class: ZeRO stages at which it may run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    state_names: ClassVar[tuple[str, ...]] = ()
    counter: ClassVar[str | None] = None
    stages: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)

    kind: State[str]
    learning_rate: Rate[float] = Field(default=1e-4, gt=0)
    warmup_steps: Rate[int] = Field(default=0, ge=0)
    schedule: Rate[Literal["constant", "cosine", "wsd"]] = "constant"
    final_ratio: Rate[float] = Field(default=0.1, ge=0, le=1)
    weight_decay: Update[float] = Field(default=0.0, ge=0)
    max_grad_norm: Update[float] = Field(default=1.0, ge=0)
    ema: Update[Share] = 0.0

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Of what an engine holds of a parameter: its master, and the state beside it."""
        return (MASTER, *self.state_names)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Torch's optimizer of these groups; its learning rate is set at every step."""
        raise NotImplementedError

    def groups(self, parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
        """Parameter groups for torch: matrices decay, vectors do not."""
        every = list(parameters)
        groups = [
            {"params": [p for p in every if len(shape_of(p)) >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in every if len(shape_of(p)) < 2], "weight_decay": 0.0},
        ]
        return [g for g in groups if g["params"]]

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What torch's optimizer would make for a parameter at its first update, to be overwritten."""
        state = {name: torch.zeros_like(parameter) for name in self.state_names}
        self.set_updates(state, parameter, 0)
        return state

    def set_updates(self, state: dict[str, Tensor], parameter: Tensor, updates: int) -> None:
        """Write into the state of a parameter how many updates it has seen.

        The counter lies on the device of the parameter: fused kernels of a GPU read it there, and refuse another.
        """
        if self.counter is not None:
            state[self.counter] = torch.tensor(float(updates), dtype=torch.float32, device=parameter.device)


def refuse_stage(optimizer: OptimizerConfig, stage: int) -> None:
    """An optimizer runs at the ZeRO stages that it was made for.

    Raises:
        InputError: this is none of them.
    """
    if stage not in optimizer.stages:
        rule = f"{optimizer.kind} runs at ZeRO stage {', '.join(map(str, optimizer.stages))}"
        found = f"optimizer.kind={optimizer.kind}, zero.stage={stage}"
        raise InputError(rule, found, f"zero.stage={max(optimizer.stages)}")
