"""One step of training over all ranks, whatever the ZeRO stage: what an `Engine` promises.

The contract that makes every mesh, micro-step count and stage agree: the losses given to `backward`, summed over all
ranks and micro-steps, are the loss of the step. So gradients are *summed* over ranks, whatever the ranks share: a
replica's ranks each hold a part of the same sequence, and replicas hold different ones.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor, nn

from parallel.fragments import Fragment


class Engine(Protocol):
    """A model with its optimizer, spread over all ranks. `forward` to `refresh` and `destroy` are collective."""

    module: nn.Module
    tensor_names: tuple[str, ...]  # of every fragment that it holds: "master", and what its optimizer keeps beside it

    def forward(self, *args: Any) -> Any:
        """The model's forward."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, this rank's part of one micro-step of the step's loss."""

    def step(self, learning_rate: float, max_norm: float = math.inf) -> float:
        """Update from the gradients of the micro-steps so far; gives their global norm before clipping.

        There is no update, and the gradients are dropped, if the norm is more than `max_norm` or not a number. A norm
        that is not finite may be given as infinite.
        """

    def held(self) -> list[Fragment]:
        """All state on this rank, in the model's order. Valid as long as the engine is."""

    def owned(self) -> list[Fragment]:
        """What of `held` this rank answers for: over all ranks, every element of every parameter once."""

    def frozen(self) -> list[Fragment]:
        """What lies on this rank of parameters that are not trained: "master" alone, in the model's own dtype."""

    def refresh(self, updates: int) -> None:
        """Make model and optimizer follow what was written to `held`, the state after `updates` steps."""

    def destroy(self) -> None:
        """Free buffers and hooks; the engine is of no use afterwards."""
