"""A moving average of the weights, which samples are drawn with (Polyak & Juditsky, 1992).

    average <- decay * average + (1 - decay) * weights        after every update
    decay   =  min(optimizer.ema, (1 + updates) / (10 + updates))

Without that warm-up the first weights, which are noise, would still be 98 % of the average after 200 updates of decay
0.9999; with it less than a millionth is left of them after 30. The formula is that of TensorFlow's
`ExponentialMovingAverage(num_updates=...)`, which diffusers' `EMAModel` has taken over. It asks for the number of
updates alone, which every checkpoint holds: a resumed run averages as one that was never stopped.

Each rank averages the float32 masters that it answers for, in place of a second copy of the model on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parallel.fragments import MASTER, Fragment
from parallel.zero.engine import Engine

EMA = "ema"  # its name beside the engine's own `tensor_names`


def decay_of(max_decay: float, updates: int) -> float:
    """Decay of the average after so many updates of the weights, the one just made included."""
    return min(max_decay, (1 + updates) / (10 + updates))


class Ema:
    """The average of this rank's `owned` part of an engine.

    Attributes:
        decay: of the average once it is warm, from 0 to 1.
        fragments: the engine's, each with the average beside the state of the optimizer.
    """

    def __init__(self, engine: Engine, decay: float) -> None:
        """Begins with the weights as they are."""
        self.decay = decay
        self.fragments = [
            Fragment(f.name, f.start, {**f.tensors, EMA: f.tensors[MASTER].clone()}) for f in engine.owned()
        ]

    @property
    def averages(self) -> list[Tensor]:
        """[elements] of each fragment."""
        return [f.tensors[EMA] for f in self.fragments]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """After a step of the engine; `updates` of the weights were made so far, this one included."""
        weight = 1 - decay_of(self.decay, updates)
        torch._foreach_lerp_(self.averages, [f.tensors[MASTER] for f in self.fragments], weight)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with the weights as they are."""
        torch._foreach_copy_(self.averages, [f.tensors[MASTER] for f in self.fragments])
