"""Ways to compute one attention: ours on three meshes, one process, and peers that run on CPU; each in a few lines.

A way says which positions this process holds and has a function of their q, k and v. What is not attention (plans,
process groups, a mask as a tensor) is made with the way, outside of the clock: a training step does it once for all
layers. Peers come as their authors' examples use them, with the split that suits them best (zigzag where causal), and
with the same kernel as everybody here, torch's flash attention for CPU:

    yunchang            LongContextAttention, ring and ulysses. Its backend for torch names the CUDA operator, which CPU
                        does not have, so we put the one for CPU in its place. It has no backward for torch's kernels.
    deepspeed           DistributedAttention (ulysses) around the same local attention that one process computes
    context_parallel    of torch.distributed.tensor.experimental
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel import random
from parallel.attention.attend import attend
from parallel.attention.plan import plan_for
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.mesh import Groups, Mesh, join
from parallel.sequence.ownership import held_by
from parallel.sequence.packed import Ranges
from parallel.sequence.sharding import Split, areas_of, balanced, contiguous, zigzag

RANKS = 4
DOCUMENTS = 32
FRAMES, BEFORE = 16, 2  # the window: frames of the clip, and how many before its own a frame sees

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cannot(Exception):  # noqa: N818 - no error: a row of the table
    """A way does not do a case; says why in a word or two."""


@dataclass(frozen=True)
class Work:
    """One mask over one sequence: "full", "causal", "packed" (causal documents) or "window" (of frames)."""

    name: str
    tokens: int

    @property
    def mask(self) -> Mask:
        """As ours takes it."""
        if self.name == "packed":
            return masks.packed(self.documents, causal=True)
        if self.name == "window":
            return video_patterns.frame_window(FRAMES, self.tokens // FRAMES, BEFORE)
        return masks.full(self.tokens) if self.name == "full" else masks.causal(self.tokens)

    @property
    def documents(self) -> list[int]:
        """Tokens of each document of the pack."""
        return log_normal(DOCUMENTS, self.tokens)


@dataclass(frozen=True)
class Way:
    """One way to compute a work, in this process.

    Attributes:
        ranges: positions of the rows that this process holds.
        attend: of q, k and v [rows, heads, head_dim].
        backward: whether it has one.
        imbalance: mask area of the busiest rank to that of the mean one.
        split: its name, for the table.
        context: entered around forward and backward, outside of the clock.
    """

    ranges: Ranges
    attend: Attend
    backward: bool = True
    imbalance: float = 1.0
    split: str = "contiguous"
    context: Callable[[], AbstractContextManager[None]] = nullcontext


def one_process(work: Work) -> Way:
    """torch's scaled_dot_product_attention; documents and frames one after the other, no pair computed in vain."""
    return Way(((0, work.tokens),), _turned(_local(work)), split="-")


def one_process_dense(work: Work) -> Way:
    """The window as torch's documentation would have it: one call with a mask of [tokens, tokens]."""
    if work.name != "window":
        raise Cannot("needs no mask")
    frame = torch.arange(work.tokens) // (work.tokens // FRAMES)
    back = frame[:, None] - frame
    seen = (back >= 0) & (back <= BEFORE)
    return Way(((0, work.tokens),), _turned(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, seen)), split="-")


def ours(ring: int, ulysses: int) -> Callable[[Work], Way]:
    """`parallel.attention.attend.attend` on a mesh; balanced where some see more than others, else contiguous."""

    def make(work: Work) -> Way:
        mesh, mask = Mesh(1, ring, ulysses), work.mask
        even = work.name == "full" or work.name == "window"
        split = contiguous(work.tokens, RANKS) if even else balanced(mask, mesh)
        groups = _groups(mesh)
        plan = plan_for(mask, split, groups)
        return Way(
            split.ranges[groups.place.sequence],
            lambda q, k, v: attend(q, k, v, plan),
            imbalance=_imbalance(work, split, mesh),
            split=_named(split, work.tokens, mesh),
        )

    return make


def yunchang(ring: int, ulysses: int) -> Callable[[Work], Way]:
    """`LongContextAttention` of yunchang, forward."""

    def make(work: Work) -> Way:
        _peer("yunchang")
        if work.name == "packed":
            raise Cannot("needs flash-attn")
        if work.name == "window":
            raise Cannot("no such mask")
        kernels: Any = importlib.import_module("yunchang.kernels")
        kernels.attention._scaled_dot_product_flash_attention = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        )
        causal = work.name == "causal"
        zigzags = causal and ring > 1
        layer = _yunchang_layer(ring, ulysses, "zigzag" if zigzags else "basic")
        mesh, split = Mesh(1, ring, ulysses), contiguous(work.tokens, RANKS)
        if zigzags:  # of the ring places; each place's part in `ulysses` stretches
            split = zigzag(work.tokens, ring, ulysses)

        def attend_(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = layer(q[None], k[None], v[None], causal=causal)[0]
            return out

        return Way(
            split.ranges[dist.get_rank()],
            attend_,
            backward=False,
            imbalance=_imbalance(work, split, mesh),
            split="zigzag" if zigzags else "contiguous",
        )

    return make


def deepspeed(work: Work) -> Way:
    """`DistributedAttention` of DeepSpeed: its all-to-alls around what one process would compute."""
    layer: Any = _peer("deepspeed.sequence.layer").DistributedAttention(
        _ByToken(_local(work)), _deepspeed_world(), scatter_idx=2, gather_idx=1
    )
    split = contiguous(work.tokens, RANKS)
    return Way(split.ranges[dist.get_rank()], lambda q, k, v: layer(q[None], k[None], v[None], 0)[0])


def context_parallel(work: Work) -> Way:
    """`context_parallel` of torch: its ring has no kernel for CPU, where DTensor decides what is sent."""
    if work.name in ("packed", "window"):
        raise Cannot("no such mask")
    experimental: Any = importlib.import_module("torch.distributed.tensor.experimental")
    mesh = _device_mesh()

    def context() -> AbstractContextManager[None]:
        placeholder = torch.empty(work.tokens)  # it cuts its buffers in place; our rows are cut already
        manager: AbstractContextManager[None] = experimental.context_parallel(
            mesh, buffers=[placeholder], buffer_seq_dims=[0]
        )
        return manager

    def local(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        try:
            return F.scaled_dot_product_attention(q, k, v, is_causal=work.name == "causal")
        except NotImplementedError:
            raise Cannot("no CPU kernel") from None

    split = contiguous(work.tokens, RANKS)
    return Way(split.ranges[dist.get_rank()], _turned(local), backward=False, context=context)


ALONE: dict[str, Callable[[Work], Way]] = {
    "one process": one_process,
    "one process, dense mask": one_process_dense,
}
RANKED: dict[str, Callable[[Work], Way]] = {
    "ours ring 4": ours(4, 1),
    "ours ring 2 x ulysses 2": ours(2, 2),
    "ours ulysses 4": ours(1, 4),
    "deepspeed ulysses 4": deepspeed,
    "yunchang ring 4": yunchang(4, 1),
    "yunchang ring 2 x ulysses 2": yunchang(2, 2),
    "yunchang ulysses 4": yunchang(1, 4),
    "torch context_parallel": context_parallel,
}


def log_normal(documents: int, tokens: int) -> list[int]:
    """Lengths of documents, log-normal (sigma 1) as those of clips and texts are; always the same ones."""
    weights = torch.from_numpy(random.normal(random.key_of("documents"), 0, documents, 1)).double().exp().flatten()
    lengths: list[int] = (1 + weights / weights.sum() * (tokens - documents)).long().tolist()
    lengths[0] += tokens - sum(lengths)
    return lengths


class _ByToken(torch.nn.Module):
    """Local attention of [1, tokens, heads, head_dim], as DeepSpeed hands it over."""

    def __init__(self, local: Attend) -> None:
        super().__init__()
        self.local = local

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.local(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _turned(local: Attend) -> Attend:
    """Of [tokens, heads, head_dim], from one of [1, heads, tokens, head_dim]: views, nothing is copied."""
    return lambda q, k, v: local(*(x.transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1)


def _local(work: Work) -> Attend:
    """Of [1, heads, tokens, head_dim]: the whole work in one process.

    Cut by `split` and put together by `cat`, whose gradients touch every element once: each slice of a tensor would
    have a gradient of the size of the whole.
    """
    sdpa = F.scaled_dot_product_attention
    if work.name == "packed":

        def by_document(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            queries, keys, values = (x.split(work.documents, dim=2) for x in (q, k, v))
            parts = zip(queries, keys, values, strict=True)
            return torch.cat([sdpa(q, k, v, is_causal=True) for q, k, v in parts], dim=2)

        return by_document
    if work.name == "window":

        def by_frame(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            queries, keys, values = (x.split(work.tokens // FRAMES, dim=2) for x in (q, k, v))
            outs = []
            for f, query in enumerate(queries):
                near = slice(max(0, f - BEFORE), f + 1)
                outs.append(sdpa(query, torch.cat(keys[near], dim=2), torch.cat(values[near], dim=2)))
            return torch.cat(outs, dim=2)

        return by_frame
    return lambda q, k, v: sdpa(q, k, v, is_causal=work.name == "causal")


def _imbalance(work: Work, split: Split, mesh: Mesh) -> float:
    areas = areas_of(work.mask, held_by(split.ranges, mesh.ulysses), mesh.ring)
    return float(areas.max() / areas.mean())


def _named(split: Split, tokens: int, mesh: Mesh) -> str:
    """What `balanced` chose."""
    if split == contiguous(tokens, mesh.sequence_ranks):
        return "contiguous"
    return "zigzag" if split == zigzag(tokens, mesh.ring, mesh.ulysses) else "dealt"


def _peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Cannot("absent") from None


@cache
def _groups(mesh: Mesh) -> Groups:
    return join(mesh, dist.get_rank())


@cache
def _yunchang_layer(ring: int, ulysses: int, kind: str) -> Any:
    peer: Any = importlib.import_module("yunchang")
    peer.set_seq_parallel_pg(ulysses, ring, dist.get_rank(), RANKS)
    attn_type = importlib.import_module("yunchang.kernels").AttnType.TORCH_FLASH
    return peer.LongContextAttention(ring_impl_type=kind, attn_type=attn_type)


@cache
def _deepspeed_world() -> Any:
    peer: Any = importlib.import_module("deepspeed")
    peer.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    return dist.group.WORLD


@cache
def _device_mesh() -> Any:
    options: Any = importlib.import_module("torch.distributed.tensor.experimental._attention")._cp_options
    options.enable_load_balance = False  # which it wants for causal masks alone
    return importlib.import_module("torch.distributed.device_mesh").init_device_mesh("cpu", (RANKS,))


def rows_of(ranges: Ranges) -> Tensor:
    """Positions, in the order of the rows."""
    parts: Sequence[Tensor] = [torch.arange(start, stop) for start, stop in ranges]
    return torch.cat([torch.arange(0), *parts])
