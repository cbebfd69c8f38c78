"""Fragments: the elements of each parameter, and of what the optimizer keeps beside it, that lie on one rank.

    parameter   [ 0 1 2 3 4 5 6 7 8 9 ]          stage 0: the whole of it on every rank
    rank 0      [ 0 1 2 3 4 ]                    stages 1 to 3: a stretch of it on each
    rank 1                [ 5 6 7 8 9 ]

Checkpoints, moving averages and weights of a folder read and write fragments, and so ask for no stage and no mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MASTER = "master"  # the numbers of a parameter that the optimizer updates


@dataclass(frozen=True)
class Fragment:
    """What a rank holds of one parameter: some elements of it, in the order of the flattened parameter.

    Attributes:
        name: of the parameter.
        start: first element.
        tensors: [elements] by name, the engine's own memory: writing to them changes the engine.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]

    @property
    def stop(self) -> int:
        """After the last element."""
        return self.start + len(self.tensors[MASTER])

    def cut(self, start: int, stop: int) -> Fragment:
        """The same of elements [start, stop)."""
        tensors = {key: t[start - self.start : stop - self.start] for key, t in self.tensors.items()}
        return Fragment(self.name, start, tensors)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def whole_frozen(module: nn.Module) -> list[Fragment]:
    """Parameters that are not trained, of a module that is whole on this rank."""
    names = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
    return [Fragment(name, 0, {MASTER: parameter.data.view(-1)}) for name, parameter in names]


def share(fragments: Sequence[Fragment], rank: int, ranks: int) -> list[Fragment]:
    """Elements laid end to end and cut into as many equal intervals as there are ranks: that of `rank`."""
    total = sum(f.stop - f.start for f in fragments)
    first, last = total * rank // ranks, total * (rank + 1) // ranks
    found, before = [], 0
    for fragment in fragments:
        size = fragment.stop - fragment.start
        start, stop = max(first - before, 0), min(last - before, size)
        if start < stop:
            found.append(fragment.cut(fragment.start + start, fragment.start + stop))
        before += size
    return found


def shape_of(parameter: Tensor) -> torch.Size:
    """The whole shape, also of a parameter that ZeRO-3 has cut."""
    return getattr(parameter, "ds_shape", parameter.shape)
