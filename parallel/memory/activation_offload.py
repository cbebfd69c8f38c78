"""Activations that are kept for the backward pass wait for it in the memory of the host.

    with offload() as store:
        loss = model(batch)          # what is kept goes to pinned memory of the host
    loss.backward()                  # and comes back before its gradient is computed

    training's stream   block 0   block 1   block 2  | backward  block 2   block 1   block 0
    outward stream         keep 0    keep 1    keep 2|
    homeward stream                                  | 2  1         0           one ahead of its use

Best together with `recompute`: then a block keeps its input and its attention alone, and those few go. Copies run on
streams of their own, so kernels wait for none of them as long as a block computes for longer than its copy takes:
16,384 tokens x 4,096 in bf16 are 134 MB, some 3 ms over PCIe 5, where a block computes for some tens. A tensor that
several operators save goes once for each. What is kept lasts from use to use in reverse order, so when one is asked for
the one before it is fetched as well. On a CPU nothing moves, and all is as without.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LIMIT_BYTES = 1 << 20  # smaller tensors stay: they free little, and a copy costs some microseconds whatever its size

_IN_USE: ContextVar[HostStore | None] = ContextVar("host store", default=None)


@dataclass(frozen=True)
class Places:
    """From where to where activations go.

    Attributes:
        devices: kinds of device whose tensors go.
        host: where they wait. A dry run, whose device is a CPU, lets meta tensors stand for the host's.
    """

    devices: tuple[str, ...] = ("cuda",)
    host: str = "cpu"


USUAL = Places()
PLACES: ContextVar[Places] = ContextVar("places of activations", default=USUAL)  # frozen


@dataclass
class Traffic:
    """What went through a store.

    Attributes:
        saved: tensors that were to be kept.
        moved: those of them that went to the host, `moved_bytes` their size.
        fetched: tensors that backward asked for, moved or not.
    """

    saved: int = 0
    moved: int = 0
    moved_bytes: int = 0
    fetched: int = 0


@contextmanager
def offload(limit_bytes: int | None = None) -> Iterator[Traffic]:
    """Keep in the host's memory what operators called meanwhile, and attention under `recompute`, keep for backward.

    The backward pass itself may run later, also outside of the context.

    Args:
        limit_bytes: tensors of fewer bytes stay where they are; `LIMIT_BYTES` if not given.

    Yields:
        Counts, that grow in forward and in backward.
    """
    store = HostStore(LIMIT_BYTES if limit_bytes is None else limit_bytes, PLACES.get())
    token = _IN_USE.set(store)
    try:
        with torch.autograd.graph.saved_tensors_hooks(store.put, lambda handle: handle.tensor()):
            yield store.traffic
    finally:
        _IN_USE.reset(token)


def offload_if(wanted: bool) -> AbstractContextManager[Traffic | None]:
    """`offload()`, or nothing."""
    return offload() if wanted else nullcontext()


def store_in_use() -> HostStore | None:
    """That of the `offload()` in which we are."""
    return _IN_USE.get()


def moves(tensor: Tensor, limit_bytes: int, devices: tuple[str, ...] = ("cuda",)) -> bool:
    """Whether a kept tensor goes to the host.

    What is not on a GPU or is small stays, and so do parameters and views of them (a linear layer saves its weight
    transposed), which are on the GPU anyway.
    """
    parameter = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
    return tensor.device.type in devices and tensor.nbytes >= limit_bytes and not parameter


class Handle:
    """A kept tensor, wherever it is."""

    def __init__(self, store: HostStore) -> None:
        self.store = store

    def tensor(self) -> Tensor:
        """The tensor, on its device."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Begin to bring it back, if it is away."""


class HostStore:
    """Tensors on their way to the host's memory and back."""

    def __init__(self, limit_bytes: int, places: Places) -> None:
        self.limit_bytes, self.places, self.traffic = limit_bytes, places, Traffic()
        self.moved: list[weakref.ref[_Moved]] = []
        self.lanes: dict[torch.device, _Lanes] = {}

    def put(self, tensor: Tensor) -> Handle:
        """Keep a tensor."""
        self.traffic.saved += 1
        if isinstance(tensor, nn.Parameter):
            return _Itself(self, tensor)
        if not moves(tensor, self.limit_bytes, self.places.devices):
            return _Stayed(self, tensor)
        self.traffic.moved += 1
        self.traffic.moved_bytes += tensor.nbytes
        handle = _Moved(self, tensor, len(self.moved))
        self.moved.append(weakref.ref(handle))
        return handle

    def fetch_before(self, number: int) -> None:
        """Begin to bring back what was kept just before number so and so: it is asked for next."""
        for before in reversed(self.moved[:number]):
            handle = before()
            if handle is not None:
                handle.fetch()
                return

    def lanes_of(self, device: torch.device) -> _Lanes:
        """The streams between a device and the host."""
        if device not in self.lanes:
            self.lanes[device] = _CudaLanes(device) if device.type == "cuda" else _Lanes()
        return self.lanes[device]


class _Lanes:
    """Ways out and home. On a CPU there is one stream for all, and nothing to wait for."""

    def outward(self, tensor: Tensor, host: Tensor) -> object:
        """Begin a copy to the host; gives what tells that it has ended."""
        host.copy_(tensor)
        return None

    def homeward(self, host: Tensor, device: torch.device, left: object) -> tuple[Tensor, object]:
        """Begin a copy back of what has `left` by then."""
        found = torch.empty_like(host, device=device)
        found.copy_(host)
        return found, None

    def arrived(self, tensor: Tensor, came: object) -> Tensor:
        """The tensor, whose copy back training's stream waits for."""
        return tensor


class _CudaLanes(_Lanes):
    """Two streams of a GPU, so that copies in both directions run beside each other and beside kernels."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.out, self.home = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def outward(self, tensor: Tensor, host: Tensor) -> object:
        """See `_Lanes`."""
        self.out.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.out):
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(self.out)  # its memory is not given away before it is copied
            return self.out.record_event()

    def homeward(self, host: Tensor, device: torch.device, left: object) -> tuple[Tensor, object]:
        """See `_Lanes`."""
        assert isinstance(left, torch.cuda.Event)
        self.home.wait_event(left)
        with torch.cuda.stream(self.home):
            found = torch.empty_like(host, device=device)
            found.copy_(host, non_blocking=True)
            return found, self.home.record_event()

    def arrived(self, tensor: Tensor, came: object) -> Tensor:
        """See `_Lanes`."""
        assert isinstance(came, torch.cuda.Event)
        now = torch.cuda.current_stream(self.device)
        now.wait_event(came)
        tensor.record_stream(now)
        return tensor


class _Itself(Handle):
    """A parameter: ZeRO-3 swaps its memory between forward and backward, and could free no alias."""

    def __init__(self, store: HostStore, parameter: nn.Parameter) -> None:
        super().__init__(store)
        self.parameter = parameter

    def tensor(self) -> Tensor:
        """See `Handle`."""
        self.store.traffic.fetched += 1
        return self.parameter


class _Moved(Handle):
    """A copy in the memory of the host, and the way back."""

    def __init__(self, store: HostStore, tensor: Tensor, number: int) -> None:
        super().__init__(store)
        self.device, self.number = tensor.device, number
        # strides are kept, so that a transposed tensor is one copy of memory too; pinned, so that nobody waits
        self.host = torch.empty_like(
            tensor, device=store.places.host, pin_memory=tensor.device.type == "cuda", requires_grad=False
        )
        self.left = store.lanes_of(self.device).outward(tensor.detach(), self.host)
        self.coming: tuple[Tensor, object] | None = None

    def fetch(self) -> None:
        """See `Handle`."""
        if self.coming is None:
            self.coming = self.store.lanes_of(self.device).homeward(self.host, self.device, self.left)

    def tensor(self) -> Tensor:
        """See `Handle`."""
        self.store.traffic.fetched += 1
        self.fetch()
        assert self.coming is not None, "it was asked for"
        (tensor, came), self.coming = self.coming, None
        self.store.fetch_before(self.number)
        return self.store.lanes_of(self.device).arrived(tensor, came)


class _Stayed(Handle):
    """The tensor where it is. Torch checks no version of what goes through hooks, so that is done here."""

    def __init__(self, store: HostStore, tensor: Tensor) -> None:
        super().__init__(store)
        self.alias = tensor.detach()  # an operator's own output would hold the graph that holds it, and never be freed
        self.version = tensor._version

    def tensor(self) -> Tensor:
        """See `Handle`."""
        self.store.traffic.fetched += 1
        if self.alias._version != self.version:
            raise RuntimeError(f"a saved tensor {list(self.alias.shape)} was changed in place before its backward pass")
        return self.alias
