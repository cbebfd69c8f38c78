"""Stages 1 to 3: DeepSpeed's ZeRO, with float32 masters, behind the promises of an `Engine`.

What is private to DeepSpeed is touched in this file, in `deepspeed_config` and in `deepspeed_import` alone, and in what
a dry run replaces of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.fragments import MASTER, Fragment, trained, whole_frozen
from parallel.optimizers.optimizer import OptimizerConfig
from parallel.zero.deepspeed_config import Offload, deepspeed_config
from parallel.zero.deepspeed_import import import_deepspeed
from parallel.zero.meta_init import give_memory


class DeepSpeedEngine:
    """Stages 1 to 3, over all ranks as one data-parallel world; sequence ranks need no special treatment."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        stage: int,
        micro_steps: int,
        offload: Offload,
        device: torch.device,
    ) -> None:
        first = next(module.parameters())
        deepspeed = import_deepspeed(device if first.is_meta else first.device)
        self.module, self.stage, self.tensor_names = module, stage, optimizer.tensor_names
        self.config = optimizer
        self.scale = float(dist.get_world_size() * micro_steps)  # DeepSpeed divides by both
        elements = sum(parameter.numel() for parameter in trained(module).values())
        kind = (device if first.is_meta else first.device).type
        settings = deepspeed_config(first.dtype, optimizer.max_grad_norm, stage, micro_steps, offload, elements, kind)
        double = first.dtype == torch.float64
        dtype = torch.float32 if double else None  # left to itself, initialize() takes the model's and refuses it

        def cut(whole: nn.Module) -> None:
            deepspeed.zero.Init(module=whole, config_dict_or_path=settings, dtype=dtype)

        give_memory(module, device, (lambda made: cut(nn.ParameterList([made]))) if stage == 3 else None)
        if stage == 3 and double:
            cut(module)
        groups = optimizer.groups(trained(module).values())
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=self._guarded(optimizer.build(groups)),
            model_parameters=groups,
            dist_init_required=False,
            config=settings,
        )
        self.forward = self.engine.forward

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self.engine.backward(loss * self.scale)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro-step

    def step(self, learning_rate: float, max_norm: float = math.inf) -> float:
        """See `Engine`."""
        self.max_norm = max_norm
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        assert self.engine.is_gradient_accumulation_boundary(), "fewer micro-steps than the engine was made for"
        self.engine.step()
        return self._norm()

    def _norm(self) -> float:
        """Of the gradients that the optimizer is about to use, or used last; DeepSpeed says -1 for not finite."""
        norm = float(self.optimizer._global_grad_norm)
        return norm if norm >= 0 else math.inf

    def held(self) -> list[Fragment]:
        """See `Engine`."""
        if not self.optimizer.optimizer.state:  # before the first step
            self._make_state()
        self._link_state()
        of = self._partition if self.stage == 3 else self._fragment
        found = [of(name, parameter) for name, parameter in trained(self.module).items()]
        return [fragment for fragment in found if fragment is not None]

    def owned(self) -> list[Fragment]:
        """See `Engine`. No two ranks hold the same."""
        return self.held()

    def frozen(self) -> list[Fragment]:
        """See `Engine`."""
        if self.stage < 3:
            return whole_frozen(self.module)
        found = []
        for name, parameter in self.module.named_parameters():
            size = getattr(parameter, "ds_tensor", parameter).numel()
            start = size * dist.get_rank()
            numel = min(size, getattr(parameter, "ds_numel", size) - start)
            if not parameter.requires_grad and numel > 0:
                found.append(Fragment(name, start, {MASTER: parameter.ds_tensor.data[:numel]}))  # type: ignore[attr-defined]
        return found

    def refresh(self, updates: int) -> None:
        """See `Engine`."""
        if self.stage < 3:
            self.optimizer.update_lp_params()
        else:
            parameters: dict[str, Any] = trained(self.module)
            for fragment in self.held():  # the model's own copy does not follow by itself
                master = fragment.tensors[MASTER]
                parameters[fragment.name].ds_tensor.data[: len(master)].copy_(master)
        for partition, state in self.optimizer.optimizer.state.items():
            self.config.set_updates(state, partition, updates)

    def _fragment(self, name: str, parameter: Any) -> Fragment | None:
        """Stages 1 and 2: the interval of a parameter that lies in this rank's part of the flattened group."""
        found = parameter._hp_mapping
        if found is None:
            return None
        tensors = {k: found.get_hp_fragment(None if k == MASTER else k) for k in self.tensor_names}
        return Fragment(name, found.lp_fragment_address.start, {k: t.detach() for k, t in tensors.items()})

    def _partition(self, name: str, parameter: Any) -> Fragment | None:
        """Stage 3: this rank's part of each parameter, without the padding at the end."""
        size = parameter.ds_tensor.numel()
        start = size * dist.get_rank()
        numel = min(size, parameter.ds_numel - start)
        if numel <= 0:
            return None
        tensors = {}
        for (
            key
        ) in self.tensor_names:  # `safe_get_local_*` may give a copy, and fails to write where the size does not divide
            of_optimizer = None if key == MASTER else key
            whole, _ = self.optimizer._get_fp32_opt_state_partition(parameter, False, of_optimizer)
            tensors[key] = whole.detach()[:numel]
        return Fragment(name, start, tensors)

    def destroy(self) -> None:
        """See `Engine`."""
        self.engine.destroy()

    def _guarded(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The same, but without an update where the norm is too large, which is known between sum and update alone."""
        update, self.max_norm = optimizer.step, math.inf

        def step(closure: Any = None) -> Any:
            return update(closure) if self._norm() <= self.max_norm else None

        optimizer.step = step  # type: ignore[method-assign]
        return optimizer

    def _link_state(self) -> None:
        """Tell parameters where the state of the optimizer beside them is.

        DeepSpeed 0.19 does so after the first *group* has stepped, when the later groups have no state yet, and never
        again: their state could not be read.
        """
        if self.stage < 3:
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _make_state(self) -> None:
        """Give the optimizer the state that it would make at its first step, to be overwritten."""
        names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        name = next(n for n in names if hasattr(self.optimizer, n))  # of stage 3, of 1 and 2, of 1 in bf16
        for partition in getattr(self.optimizer, name):
            self.optimizer.optimizer.state[partition] = self.config.initial_state(partition.data)
