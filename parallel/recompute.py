"""Recompute activations in the backward pass, but not attention: it is kept, and neither computed nor sent again.

Attention is the one part whose compute grows with the square of the sequence, and the one that talks to other ranks;
what it gives is no larger than its input (with ulysses, which keeps what it exchanged, five times that).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import parallel.attention  # registers the operator  # noqa: F401

ResultT = TypeVar("ResultT")


def recompute(function: Callable[..., ResultT], *inputs: Any) -> ResultT:
    """`function(*inputs)`, of which only the inputs and attention are kept for the backward pass."""
    contexts = partial(create_selective_checkpoint_contexts, _keep)
    # no random numbers are drawn in a model, so that there is no state of them to keep
    made = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return cast(ResultT, made)


def _keep(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    attention = operator is torch.ops.longreel.attention.default
    return CheckpointPolicy.MUST_SAVE if attention else CheckpointPolicy.PREFER_RECOMPUTE
