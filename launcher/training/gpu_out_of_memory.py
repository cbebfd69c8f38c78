"""A GPU whose memory has run out: what held it, said by the rank itself before it goes.

    torch.OutOfMemoryError, NCCL's, cuBLAS', the driver's  -->  GpuMemoryError: parameters 15.0, optimizer 30.1, ...

Only the rank knows what its memory was used for, and only until it ends; which settings would make the step fit is for
`relief` to say, from the run's settings. What a rank keeps for the whole run is counted once, before the first step;
what is left of the allocator's count is activations, gradients and buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType

import torch
from torch import Tensor

from launcher.core.hardware import is_gpu_shortage
from parallel.zero.engine import Engine

GIB = 1 << 30


class GpuMemoryError(RuntimeError):
    """A GPU has too little memory for a step; says what held it."""


class Shortage:
    """A context in which an error for want of GPU memory becomes a `GpuMemoryError`.

    Args:
        device: of the rank; on a CPU nothing happens.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.engine: Engine | None = None
        self.kept: dict[str, int] = {}

    def holds(self, engine: Engine) -> None:
        """What this engine keeps on the device for the whole run is counted now."""
        if self.device.type == "cuda":
            self.engine, self.kept = engine, kept_by(engine, self.device)

    def __enter__(self) -> Shortage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda" and error is not None and is_gpu_shortage(type(error).__name__, str(error)):
            raise GpuMemoryError(self._told(error)) from error

    def _told(self, error: BaseException) -> str:
        """One line; the error's own words stay in the traceback."""
        allocated, reserved = (read(self.device) for read in (torch.cuda.memory_allocated, torch.cuda.memory_reserved))
        total = torch.cuda.get_device_properties(self.device).total_memory
        held = dict(self.kept)
        gradients = _bytes((p.grad for p in self.engine.module.parameters()), self.device) if self.engine else 0
        if gradients:
            held["gradients"] = gradients
        rest = "activations and buffers" if gradients else "gradients, activations and buffers"
        held[rest if self.engine else "model, activations and buffers"] = max(0, allocated - sum(held.values()))
        held["reserved and unused"] = max(0, reserved - allocated)
        return f"{_first_line(error)}; of {total / GIB:.1f} GiB: {_listed(held)}"


def kept_by(engine: Engine, device: torch.device) -> dict[str, int]:
    """Bytes on a device of parameters and of the optimizer's state, tensors that are both counted as parameters."""
    parameters = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    state = [tensor for fragment in engine.held() for tensor in fragment.tensors.values()]
    own = {p.data_ptr() for p in parameters} - {0}  # the address of what has none, such as an empty part
    return {
        "parameters": _bytes(parameters, device),
        "optimizer": _bytes((tensor for tensor in state if tensor.data_ptr() not in own), device),
    }


def _bytes(tensors: Iterable[Tensor | None], device: torch.device) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None and t.device.type == device.type)


def _listed(held: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.items())


def _first_line(error: BaseException) -> str:
    """What was asked for: the first two sentences of torch's allocator, else the line that tells of memory."""
    lines = str(error).splitlines() or [type(error).__name__]
    if lines[0].startswith("NCCL"):
        return f"NCCL: {next((line for line in lines if 'out of memory' in line), lines[0])}"
    first, dot, rest = lines[0].partition(". ")
    asked = rest.partition(". ")[0] if rest.startswith("Tried to allocate") else ""
    return f"{first}{dot}{asked}".rstrip(". ")
