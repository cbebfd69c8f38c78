"""`Counter`: what a step allocates, computes, launches, sends and waits for, operator by operator.

    with Counter(device) as counter:
        with counter.phase("forward"):
            loss = model(batch)                    fake tensors or real ones: it only looks

    bytes    by weak reference: a storage is counted from the operator that made it until it is gone
    FLOPs    by the formulas of torch.utils.flop_counter; attention has its own, exact from its plan
    sent     by the payload that each collective of c10d takes away from this rank
    waits    operators whose result the host needs before it can go on

Attention is one operator to torch; here its own Python runs under the counter again, so that the buffers of the ring
and of ulysses and the working memory of kernels are counted too. What stays out: what an allocator rounds up, work
space of BLAS and NCCL, the context of a device.
"""

from __future__ import annotations

import weakref
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from parallel.attention.attend import OPERATORS

aten = torch.ops.aten
SCALAR = aten._local_scalar_dense.default
WAITS = {  # whose result's size or value the host asks the device for
    SCALAR,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
OFFLOAD = "memory/activation_offload.py"  # whose copies run beside the step, from and to pinned memory
QUIET = {  # give memory or another view of it, and launch nothing
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.detach.default,
    aten._unsafe_view.default,
    aten.lift_fresh.default,
}


@dataclass(eq=False)
class Piece:
    """A storage.

    Attributes:
        size: in bytes.
        phase: in which it was made.
        made_by: operator, shape and dtype.
        born, died: moments, counted in births and deaths; `died` is None as long as it lives.
        on_host: it lies in the memory of the host, beside the device that is counted.
        kind: what it is, if somebody has said so.
        sent: it went through a collective.
    """

    size: int
    phase: str
    made_by: str
    born: int
    on_host: bool
    died: int | None = None
    kind: str = ""
    sent: bool = False


@dataclass
class Count:
    """What one phase did.

    Attributes:
        flops: of products of matrices and attention.
        attention_flops: of attention alone.
        launches: operators that launch a kernel at least.
        waits: of the host for the device, copies to it among them, by operator and place.
        transfers: copies from pageable memory of the host to the device, by operator and place.
        sent: bytes that left this rank, by collective.
    """

    flops: int = 0
    attention_flops: int = 0
    launches: int = 0
    waits: Tally[str] = field(default_factory=Tally)
    transfers: Tally[str] = field(default_factory=Tally)
    sent: Tally[str] = field(default_factory=Tally)


class Counter(TorchDispatchMode):
    """See the head of this file.

    Args:
        device: kind of the device whose memory is counted; all else is the host's.
        answer: what to say in place of a number that fake tensors do not have; None asks the tensor.
    """

    def __init__(self, device: str, answer: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device, self.answer = device, answer
        self.counts: dict[str, Count] = {}
        self.pieces: list[Piece] = []
        self.live: dict[int, Piece] = {}
        self.moment = 0
        self.within = ""
        self._inside = False  # of one of our operators, whose FLOPs are counted as a whole

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens meanwhile belongs to this phase, which may come several times."""
        before, self.within = self.within, name
        try:
            yield
        finally:
            self.within = before

    @property
    def count(self) -> Count:
        """That of the phase in which we are."""
        return self.counts.setdefault(self.within, Count())

    def mark(self, tensor: Tensor | None, kind: str) -> None:
        """Say what a tensor is."""
        piece = self._piece(tensor) if tensor is not None else None
        if piece is not None:
            piece.kind = kind

    def forget(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that have shapes and no memory."""
        for tensor in tensors:
            piece = self._piece(tensor)
            if piece is not None:
                piece.size = 0

    def adopt(self, tensors: Sequence[Tensor], kind: str) -> None:
        """Count tensors that were made before, or by what no operator shows, and say what they are."""
        for tensor in tensors:
            self._see(tensor, "adopted")
            self.mark(tensor, kind)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at an operator and let it go on."""
        kwargs = kwargs or {}
        if (func in WAITS or (func is aten.index.Tensor and _boolean(args[1]))) and self._is_ours(args[0]):
            self.count.waits[f"{func} {_asker()}"] += 1
        if func is SCALAR and self.answer is not None:
            return self.answer(args[0])
        if func in OPERATORS:
            return self._open(func, args, kwargs)
        out = func(*args, **kwargs)
        self._launched(func, args, kwargs, out)
        if not self._inside and func._overloadpacket in flop_registry:
            self.count.flops += int(flop_registry[func._overloadpacket](*args, **kwargs, out_val=out))
        if func.namespace == "c10d":
            self._sent(func, args)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, func)
        return out

    def _open(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One of our operators: its own Python, seen by this counter."""
        flops = int(flop_registry[func._overloadpacket](*args, **kwargs))
        self.count.flops += flops
        self.count.attention_flops += flops
        before, self._inside = self._inside, True
        try:
            with self:
                return OPERATORS[func](*args, **kwargs)
        finally:
            self._inside = before

    def _launched(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        tensors = [x for x in tree_iter((args, out)) if isinstance(x, Tensor)]
        if func in QUIET or func.is_view or not any(map(self._is_ours, tensors)) or func.namespace in ("c10d", "prim"):
            return
        self.count.launches += 1
        if func in (aten._to_copy.default, aten.copy_.default) and not _waits_for_nothing(func, args, kwargs):
            into, from_ = (args[0], args[1]) if func is aten.copy_.default else (out, args[0])
            if self._is_ours(into) != self._is_ours(from_) and OFFLOAD not in (asker := _asker()):
                count = self.count.transfers if self._is_ours(into) else self.count.waits
                count[f"{func} {asker}"] += not _is_number(from_)

    def _is_ours(self, tensor: Any) -> bool:
        """Whether it is of the device that is counted."""
        return isinstance(tensor, Tensor) and tensor.device.type == self.device

    def _sent(self, func: Any, args: Sequence[Any]) -> None:
        for tensor in tree_iter(args):
            if isinstance(tensor, Tensor) and (piece := self._piece(tensor)) is not None:
                piece.sent = True
        left = sent_by(func.__name__.partition(".")[0], args)
        if left:
            self.count.sent[func.__name__.partition(".")[0]] += left

    def _piece(self, tensor: Tensor) -> Piece | None:
        return self.live.get(tensor.untyped_storage()._cdata)

    def _see(self, tensor: Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return
        made_by = f"{func} {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        on_host = not self._is_ours(tensor)
        piece = Piece(storage.nbytes(), self.within, made_by, self.moment, on_host)
        self.live[key] = piece
        self.pieces.append(piece)
        self.moment += 1
        weakref.finalize(storage, self._gone, key, piece).atexit = False

    def _gone(self, key: int, piece: Piece) -> None:
        piece.died = self.moment
        if self.live.get(key) is piece:
            del self.live[key]
        self.moment += 1


def sent_by(operator: str, args: Sequence[Any]) -> int:
    """Bytes that leave a rank in a collective of c10d, as the usual algorithms send them; 0 of one that only receives.

    Args:
        operator: its name, such as `alltoall_base_`.
        args: that it was called with.
    """
    tensors = [x for x in tree_iter(args) if isinstance(x, Tensor)]
    groups = [x for x in args if isinstance(x, torch.ScriptObject) and "ProcessGroup" in str(x._type())]
    ranks = ProcessGroup.unbox(groups[0]).size() if groups else 1
    if operator == "alltoall_base_":
        _, leaving, _, _, counts = args[:5]
        if not counts:
            return int(leaving.nbytes * (ranks - 1) // ranks)
        own = counts[ProcessGroup.unbox(groups[0]).rank()]
        return int(leaving.nbytes - own * leaving.nbytes // max(1, sum(counts)))
    if operator == "send":
        return sum(x.nbytes for x in tensors)
    if operator in ("_allgather_base_", "allgather_", "allgather_into_tensor_coalesced_"):
        own = tensors[-1] if operator == "allgather_" else args[1]
        return sum(x.nbytes for x in tree_iter(own) if isinstance(x, Tensor)) * (ranks - 1)
    if operator in ("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_"):
        whole = [x for x in tree_iter(args[1]) if isinstance(x, Tensor)]
        return sum(x.nbytes for x in whole) * (ranks - 1) // ranks
    if operator in ("allreduce_", "allreduce_coalesced_"):
        return 2 * sum(x.nbytes for x in tensors) * (ranks - 1) // ranks
    if operator in ("broadcast_", "reduce_", "gather_", "scatter_"):
        return sum(x.nbytes for x in tensors) * (ranks - 1) // ranks
    return 0


def _boolean(indices: Sequence[Tensor | None]) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)


def _waits_for_nothing(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """A copy that is queued, from or to pinned memory."""
    return bool(kwargs.get("non_blocking", args[2] if func is aten.copy_.default and len(args) > 2 else False))


def _is_number(x: Tensor) -> bool:
    """A number of the host that torch wraps as a tensor: it travels as an argument of a kernel."""
    return x.dim() == 0 and x.device.type == "cpu"


def _asker() -> str:
    """The innermost line of code, outside of torch and of this file, that asked for an operator."""
    import sys

    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and name != __file__:
            return f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
