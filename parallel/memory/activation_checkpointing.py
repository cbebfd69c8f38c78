"""Recompute activations in the backward pass, but not attention: it is kept, and neither computed nor sent again.

    forward     block(x)   -> y      kept: x, and what attention gave in the block
    backward    block(x) again, up to what its gradient needs; where it asks for attention, what was kept is given

Attention is the one part whose compute grows with the square of the sequence, and the one that talks to other ranks;
what it gives is no larger than its input. So 2 dim numbers a token and layer wait, and one log-sum-exp a head, where a
whole block of a DiT keeps some forty. Plans say what of attention is kept (`Plan.keep`): short cross attention is
cheaper to compute again than to keep.

Torch's selective checkpointing does the same by looking at every operator in Python, 10 to 15 microseconds each; here
attention itself asks whether it is being recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parallel.memory.activation_offload import Handle, HostStore, store_in_use

ResultT = TypeVar("ResultT")
_CURRENT: ContextVar[Kept | None] = ContextVar("kept", default=None)


def recompute(function: Callable[..., ResultT], *inputs: Any) -> ResultT:
    """`function(*inputs)`, of which only the inputs and attention are kept for the backward pass.

    Within `offload()` both wait in the memory of the host.
    """
    # no random numbers are drawn in a model, so that there is no state of them to keep
    made = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=Kept().contexts)
    return cast(ResultT, made)


class Kept:
    """What attention gave in the first forward pass of one checkpointed call, in order."""

    def __init__(self) -> None:
        self.store: HostStore | None = store_in_use()
        self.results: list[tuple[Tensor | Handle, ...]] = []
        self.next = 0
        self.again = False

    @staticmethod
    def current() -> Kept | None:
        """That of the call in which we are, if it is one of `recompute`."""
        return _CURRENT.get()

    def put(self, results: tuple[Tensor, ...]) -> None:
        """Keep the results of one attention."""
        self.results.append(tuple(results if self.store is None else map(self.store.put, results)))

    def take(self) -> tuple[Tensor, ...] | None:
        """In the second forward pass, the results of its next attention; in the first, None."""
        if not self.again:
            return None
        assert self.next < len(self.results), "the second forward pass asks for more attention than the first"
        found = self.results[self.next]
        self.next += 1
        return tuple(x.tensor() if isinstance(x, Handle) else x for x in found)

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the first and of the second forward pass, as `torch.utils.checkpoint` wants them."""
        return self._within(again=False), self._within(again=True)

    @contextmanager
    def _within(self, again: bool) -> Iterator[None]:
        self.again, self.next = again, 0
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)
