"""Activations that are saved for the backward pass wait for it on the CPU.

    with offload() as traffic:
        loss = model(batch)          # what an operator saves goes to pinned memory of the host
    loss.backward()                  # and comes back when its gradient is computed

Best together with `recompute`: then a block saves its input and its attention alone, and those few go. Copies are
non-blocking, in the order of the stream's kernels: the host does not wait and there is no race, but kernels do, bytes /
link bandwidth each way (16,384 tokens x 4,096 in bf16 are 134 MB: some 3 ms over PCIe 5, where a block computes for
some tens). A tensor that several operators save goes once for each. On a CPU nothing moves, and all is as without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LIMIT_BYTES = 1 << 20  # smaller tensors stay: they free little, and a copy costs some microseconds whatever its size

DEVICES = ("cuda",)  # whose tensors go to the CPU


@dataclass
class Traffic:
    """What went through the hooks.

    Attributes:
        saved: tensors that operators saved.
        moved: those of them that went to the CPU, `moved_bytes` their size.
        fetched: tensors that backward asked for, moved or not.
    """

    saved: int = 0
    moved: int = 0
    moved_bytes: int = 0
    fetched: int = 0


@contextmanager
def offload(limit_bytes: int = LIMIT_BYTES) -> Iterator[Traffic]:
    """Keep on the CPU what operators called meanwhile save for backward, if `moves` says so.

    The backward pass itself may run later, also outside of the context.

    Args:
        limit_bytes: tensors of fewer bytes stay where they are.

    Yields:
        Counts, that grow in forward and in backward.
    """
    traffic = Traffic()

    def pack(tensor: Tensor) -> _Moved | _Stayed | nn.Parameter:
        traffic.saved += 1
        if isinstance(tensor, nn.Parameter):
            return tensor  # itself: ZeRO-3 swaps its memory between forward and backward, and could free no alias
        if not moves(tensor, limit_bytes):
            return _Stayed(tensor)
        traffic.moved += 1
        traffic.moved_bytes += tensor.nbytes
        return _Moved(tensor)

    def unpack(packed: _Moved | _Stayed | nn.Parameter) -> Tensor:
        traffic.fetched += 1
        return packed if isinstance(packed, nn.Parameter) else packed.tensor()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield traffic


def moves(tensor: Tensor, limit_bytes: int) -> bool:
    """Whether a saved tensor goes to the CPU.

    What is not on a GPU or is small stays, and so do parameters and views of them (a linear layer saves its weight
    transposed), which are on the GPU anyway.
    """
    parameter = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
    return tensor.device.type in DEVICES and tensor.nbytes >= limit_bytes and not parameter


class _Moved:
    """A copy in the memory of the host, and the way back."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        # strides are kept, so that a transposed tensor is one copy of memory too; pinned, so that nobody waits
        self.host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
        self.host.copy_(tensor, non_blocking=True)

    def tensor(self) -> Tensor:
        # same stream as the copy there, so this one comes after it
        return self.host.to(self.device, non_blocking=True)


class _Stayed:
    """The tensor where it is. Torch checks no version of what goes through hooks, so that is done here."""

    def __init__(self, tensor: Tensor) -> None:
        self.alias = tensor.detach()  # an operator's own output would hold the graph that holds it, and never be freed
        self.version = tensor._version

    def tensor(self) -> Tensor:
        if self.alias._version != self.version:
            raise RuntimeError(f"a saved tensor {list(self.alias.shape)} was changed in place before its backward pass")
        return self.alias
