"""A moving average of the weights, which samples are drawn with (Polyak & Juditsky, 1992).

    average <- decay * average + (1 - decay) * weights        after every update

Each rank averages the float32 masters that it answers for, in place of a second copy of the model on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.zero import Engine, Fragment

EMA = "ema"  # its name beside the engine's own `STATE_NAMES`


class Ema:
    """The average of this rank's `owned` part of an engine.

    Attributes:
        decay: of the average, from 0 to 1.
        fragments: the engine's, each with the average beside the state of the optimiser.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        """Begins with the weights as they are."""
        self.decay = decay
        self.fragments = [
            Fragment(f.name, f.start, {**f.tensors, EMA: f.tensors["master"].clone()}) for f in engine.owned()
        ]

    @property
    def averages(self) -> list[Tensor]:
        """[elements] of each fragment."""
        return [f.tensors[EMA] for f in self.fragments]

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the engine."""
        torch._foreach_lerp_(self.averages, [f.tensors["master"] for f in self.fragments], 1 - self.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with the weights as they are."""
        torch._foreach_copy_(self.averages, [f.tensors["master"] for f in self.fragments])
