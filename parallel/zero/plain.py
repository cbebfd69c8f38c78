"""Stage 0: every rank holds everything, in the dtype of the run; in float64 it is the reference of all the others.

DeepSpeed refuses float64 gradients at stage 0 and keeps float32 masters at 1 to 3, which agree with this engine to
float32 accuracy.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.fragments import MASTER, Fragment, share, trained, whole_frozen
from parallel.optimizers.optimizer import OptimizerConfig

NORM_ROW = 1024  # of so many numbers the norm is summed in their own precision, of those sums in float64


class PlainEngine:
    """Stage 0: every rank holds everything; gradients are summed in the dtype of the masters."""

    def __init__(self, module: nn.Module, config: OptimizerConfig) -> None:
        self.module, self.config, self.tensor_names = module, config, config.tensor_names
        self.parameters = trained(module)
        exact = {n: torch.float64 if p.dtype == torch.float64 else torch.float32 for n, p in self.parameters.items()}
        self.masters = {n: p.detach().to(exact[n]) for n, p in self.parameters.items()}  # shares memory if no cast
        dtypes = set(exact.values())
        assert len(dtypes) == 1, f"parameters of several exact dtypes: {dtypes}"
        sizes = [p.numel() for p in self.parameters.values()]
        rows = -(-sum(sizes) // NORM_ROW)
        self.flat_gradient = torch.zeros(rows * NORM_ROW, dtype=dtypes.pop(), device=next(module.parameters()).device)
        views = self.flat_gradient[: sum(sizes)].split(sizes)
        self.gradients = {n: v.view_as(p) for v, (n, p) in zip(views, self.parameters.items(), strict=True)}
        self.optimizer = config.build(config.groups(self.masters.values()))
        self.forward = module.forward
        self.cast = [n for n, p in self.parameters.items() if p.dtype != exact[n]]
        for name, master in self.masters.items():
            master.grad = self.gradients[name]
            if name not in self.cast:
                self.parameters[name].grad = self.gradients[name]  # backward adds into the flat gradient itself

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        loss.backward()
        for name in self.cast:
            parameter = self.parameters[name]
            assert parameter.grad is not None, f"{name} took no part in the loss: the ranks of ZeRO-3 would hang"
            self.gradients[name] += parameter.grad
            parameter.grad = None

    def step(self, learning_rate: float, max_norm: float = math.inf) -> float:
        """See `Engine`."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.flat_gradient)
        rows = torch.linalg.vector_norm(self.flat_gradient.view(-1, NORM_ROW), dim=1)
        norm = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
        if 0 < self.config.max_grad_norm < norm:
            self.flat_gradient *= self.config.max_grad_norm / (norm + 1e-6)  # as torch and DeepSpeed do
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if norm <= max_norm:
            self.optimizer.step()
            self._masters_to_model()
        self.flat_gradient.zero_()
        return norm

    def held(self) -> list[Fragment]:
        """See `Engine`."""
        found = []
        for name, master in self.masters.items():
            if not self.optimizer.state[master]:  # before the first step
                self.optimizer.state[master] = self.config.initial_state(master)
            tensors = {MASTER: master.detach(), **self.optimizer.state[master]}
            found.append(Fragment(name, 0, {key: tensors[key].view(-1) for key in self.tensor_names}))
        return found

    def owned(self) -> list[Fragment]:
        """See `Engine`. As all ranks hold the same, each answers for as many elements."""
        return share(self.held(), dist.get_rank(), dist.get_world_size())

    def frozen(self) -> list[Fragment]:
        """See `Engine`."""
        return whole_frozen(self.module)

    def refresh(self, updates: int) -> None:
        """See `Engine`."""
        for master, state in self.optimizer.state.items():
            self.config.set_updates(state, master, updates)
        self._masters_to_model()

    def destroy(self) -> None:
        """See `Engine`."""

    @torch.no_grad()
    def _masters_to_model(self) -> None:
        for name in self.cast:
            self.parameters[name].copy_(self.masters[name])
