"""A model that no rank ever holds whole: its first numbers are drawn layer by layer, and each layer is cut at once.

    Block(config)     Linear  drawn, cut, its memory let go     Linear  drawn, cut ...         numbers as of one process
    engine_for        shapes alone, memory of this rank's part
    write             the parts that were cut  -->  `held`

A layer is drawn in its constructor and is whole when it becomes a part of another module, so that is when it is cut.
All ranks draw all numbers, in the order of one process: the same numbers, and as much work, but the room of one layer.

Where a file has the numbers, none are drawn. Parameters on the meta device get memory one by one, and at stage 3 each
is cut before the next one is made:

    with on_meta():  shapes alone  --give_memory-->  [ p0 whole ] cut  [ p1 whole ] cut ...  --weights--> `held`

so that a rank never holds more of the model than its part and one parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

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


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules made within have shapes and dtypes of parameters, and no numbers; their buffers are real.

    Parameters stay tied, which `accelerate.init_empty_weights` undoes; a device context makes buffers empty as well.
    """

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # as it is
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    register: Any = register_module_parameter_registration_hook  # its type forgets that a hook may give another
    hook = register(without_memory)
    try:
        yield
    finally:
        hook.remove()


def give_memory(module: nn.Module, device: torch.device, cut: Callable[[nn.Parameter], object] | None = None) -> None:
    """Replace parameters on the meta device by real ones, of which no number is a number; buffers move along.

    Args:
        module: if none of its parameters is on the meta device, nothing happens.
        device: of all; a dry run's device is "meta" itself.
        cut: takes a whole parameter's part for this rank and lets go of the rest, which is then the next one's room.
    """
    empty = [parameter for parameter in module.parameters() if parameter.is_meta]
    if not empty:
        return
    largest = max(parameter.numel() for parameter in empty) if cut else 0
    shared = {p.dtype: torch.full((largest,), math.nan, dtype=p.dtype, device=device) for p in empty}
    known: dict[nn.Parameter, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.is_meta and parameter not in known:
                room = shared[parameter.dtype]
                numbers = room[: parameter.numel()] if cut else room.new_full((parameter.numel(),), math.nan)
                known[parameter] = nn.Parameter(numbers.view(parameter.shape), parameter.requires_grad)
                if cut is not None:
                    cut(known[parameter])
            setattr(owner, name, known.get(parameter, parameter))  # tied ones stay tied
        for name, buffer in list(owner.named_buffers(recurse=False)):
            assert not buffer.is_meta or device.type == "meta", (
                f"buffer {name} has no numbers, and no file has them: make the module in on_meta"
            )
            setattr(owner, name, buffer.to(device))
