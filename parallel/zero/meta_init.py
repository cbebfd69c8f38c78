"""A model that no rank ever holds whole: its first numbers are drawn layer by layer, and each layer is cut at once.

    Block(config)     Linear  drawn, cut, its memory let go     Linear  drawn, cut ...         numbers as of one process
    engine_for        shapes alone, memory of this rank's part                                 (`on_meta` of `zero`)
    write             the parts that were cut  -->  `held`

A layer is drawn in its constructor and is whole when it becomes a part of another module, so that is when it is cut.
All ranks draw all numbers, in the order of one process: the same numbers, and as much work, but the room of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from parallel.zero.engine import Engine


class Drawn:
    """This rank's part of the first numbers of a model.

    Args:
        rank: of this process.
        ranks: of all, over which each parameter is cut in equal stretches, as ZeRO-3 does.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self._parts: dict[nn.Parameter, tuple[int, Tensor]] = {}  # by what is left of a parameter, its shape

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Modules made within keep shapes alone, but for parameters that belong to the outermost module itself."""

        def cut(_: nn.Module, __: str, part: nn.Module | None) -> None:
            for owner in part.modules() if part is not None else ():
                for name, parameter in owner.named_parameters(recurse=False):
                    if not parameter.is_meta:
                        setattr(owner, name, self._cut(parameter))

        register: Any = register_module_module_registration_hook
        hook = register(cut)
        try:
            yield
        finally:
            hook.remove()

    @property
    def bytes(self) -> int:
        """That it holds."""
        return sum(part.nbytes for _, part in self._parts.values())

    def write(self, module: nn.Module, engine: Engine, names: dict[nn.Parameter, str]) -> None:
        """Write the numbers into an engine that has made no step. Collective.

        Args:
            module: that the engine trains.
            engine: of the module, made of its shapes.
            names: of the shapes, before the engine was made.
        """
        parts = {names[parameter]: part for parameter, part in self._parts.items()}
        dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
        with torch.no_grad():
            for fragment in engine.held():
                first, part = parts[fragment.name]
                start, stop = fragment.start - first, fragment.stop - first
                assert 0 <= start <= stop <= len(part), f"{fragment.name}: the engine cuts elsewhere"
                fragment.tensors["master"].copy_(part[start:stop].to(dtypes[fragment.name]))
        engine.refresh(0)

    def _cut(self, parameter: nn.Parameter) -> nn.Parameter:
        shape = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        flat = parameter.detach().view(-1)
        size = -(-len(flat) // self.ranks)
        start = min(self.rank * size, len(flat))
        self._parts[shape] = start, flat[start : start + size].clone()
        return shape
