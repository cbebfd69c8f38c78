"""`Stream`: where a thread queues its work for a device, so that one thread's copies run beside another's kernels.

    feed thread       entered:   [ copy ][ copy ][ VAE ]  mark ------+
    training thread              [ forward    backward   step ]      +-- hand over: the next step's kernels wait for it

A CPU has no queue: what is asked for is done when the call returns, and this class says so in its base, which is what
all tests run. On CUDA the copies come from pinned memory, so that the host does not wait for them, and a tensor that
was made on one stream and is read on another is told so, else its memory would be given away while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

Send = Callable[[Tensor], Tensor]  # puts a tensor of the host on a device
Handover = Callable[[Any], None]  # see `Stream.mark`


def here(x: Tensor) -> Tensor:
    """A `Send` to where the tensor is already."""
    return x


class Stream:
    """A queue of a device that has none: each call has done its work when it returns.

    Args:
        device: of what is sent.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, x: Tensor) -> Tensor:
        """A tensor of the host, on the device; the host may write to `x` no more."""
        return x.to(self.device)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within it, all work of this thread for the device goes here, behind what other threads have queued so far."""
        yield

    def mark(self) -> Handover:
        """To be called by another thread, with what was made here up to now, before it reads any of that."""
        return _nothing


class CudaStream(Stream):
    """One of CUDA's."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream: Any = None

    def send(self, x: Tensor) -> Tensor:
        """See `Stream`; the allocator of pinned memory keeps the pinned copy until it has arrived."""
        return (x if detect_fake_mode() else x.pin_memory()).to(self.device, non_blocking=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See `Stream`. The current device is each thread's own, and the first one in a new thread."""
        torch.cuda.set_device(self.device)
        self._stream = torch.cuda.Stream(self.device)
        self._stream.wait_stream(torch.cuda.default_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Handover:
        """See `Stream`."""
        event = torch.cuda.current_stream(self.device).record_event()

        def hand_over(made: Any) -> None:
            reader = torch.cuda.current_stream(self.device)
            reader.wait_event(event)
            for tensor in tensors_of(made):
                if tensor.device == self.device:
                    tensor.record_stream(reader)

        return hand_over


def stream_for(device: torch.device) -> Stream:
    """That of a kind of device."""
    return CudaStream(device) if device.type == "cuda" and torch.cuda.is_available() else Stream(device)


def tensors_of(made: Any) -> list[Tensor]:
    """All tensors in lists, tuples, dicts and dataclasses, what these have computed once and kept included."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    ahead = [made]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Tensor):
            found[id(one)] = one
        elif id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, list | tuple):
                ahead += one
            elif isinstance(one, dict):
                ahead += one.values()
            elif is_dataclass(one) and not isinstance(one, type):
                ahead += vars(one).values()
    return list(found.values())


def _nothing(_: Any) -> None:
    """There is nothing to wait for."""
