"""`Kernel`: forward and backward of the pieces of one launch, with log-sum-exp.

The backward takes the *global* output and log-sum-exp of the rows (after merging all launches), which makes the sum of
the pieces' gradients the exact gradient of the whole (Liu et al., Ring Attention, arXiv:2310.01889, sec. 3).

Tensors are whole blocks, [rows, heads, head_dim], log-sum-exp is [heads, rows], and the launch says which rows of them
meet. What a kernel gives comes piece by piece, each with its rows; of a launch that is `whole`, in order, each row
once. Query heads are a multiple of key heads.

    FlashCPU       torch's aten flash op for CPU: float64, float32, bf16
    FlashCUDA      torch's aten flash op for CUDA, with variable lengths: many small pieces are one call; bf16 and fp16
    FlashPackage   the same from the flash-attn package
    CuDNN          cuDNN's for large pieces, aten's for the rest
    EfficientCUDA  torch's memory-efficient op for CUDA: float32
    Reference      dense, in tiles of rows: float64 on CUDA, and to compare with

Which of them a run uses on CUDA is measured when it starts (`kernel_benchmark.py`); a plan names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from parallel.errors import InputError
from parallel.kernels.efficient_cuda import EfficientCUDA
from parallel.kernels.flash_cpu import FlashCPU
from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.launch import GradientPart, Launch, Part
from parallel.kernels.reference import Reference

LARGEST_HEAD = 256  # that the flash kernels of CUDA take; and multiples of 8
HALF = (torch.bfloat16, torch.float16)


class Kernel(Protocol):
    """Attention of queries to keys, piece by piece."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, launch: Launch, scale: float) -> Iterator[Part]:
        """Rows, output [rows, heads, head_dim] and log-sum-exp [heads, rows] of each stretch of queries."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, launch: Launch, scale: float
    ) -> Iterator[GradientPart]:
        """Gradients of stretches of queries and keys, given the global `out` and `lse` of the rows."""


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel that every torch has for a device and dtype, where a plan names no other."""
    if device.type == "cpu":
        return FlashCPU()
    if dtype in HALF:
        return FlashCUDA()
    return EfficientCUDA() if dtype == torch.float32 else Reference()


def refuse_head_counts(queries: int, keys: int) -> None:
    """Query heads share key heads evenly.

    Raises:
        InputError: they do not.
    """
    if min(queries, keys) < 1 or queries % keys:
        found = f"{queries} query heads, {keys} key heads"
        raise InputError("query heads are a multiple of key heads", found, "change the number of key heads")


def refuse_heads(q: Tensor, k: Tensor, v: Tensor, flash: bool | None = None) -> None:
    """Shapes that a kernel takes.

    Args:
        q: queries.
        k: keys.
        v: values.
        flash: whether a flash kernel of CUDA is to take them; found out if not given.

    Raises:
        InputError: tensors do not fit each other, the query heads are no multiple of the key heads, or no flash kernel
            takes the head dimension.
    """
    shapes = [tuple(x.shape) for x in (q, k, v)]
    if any(len(shape) != 3 for shape in shapes) or k.shape != v.shape or q.shape[2] != k.shape[2] or not q.shape[2]:
        rule = "q is [tokens, heads, head_dim]; k and v are [keys, kv_heads, head_dim]"
        raise InputError(rule, " and ".join(map(str, shapes)), "give three tensors of these shapes")
    if len({(x.dtype, x.device) for x in (q, k, v)}) > 1 or not q.is_floating_point():
        found = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise InputError("q, k and v are of one floating dtype on one device", found, "cast or move them")
    refuse_head_counts(q.shape[1], k.shape[1])
    if flash is None:
        flash = q.device.type == "cuda" and q.dtype in HALF
    if flash:
        refuse_head_dim(q.shape[2])


def refuse_head_dim(dim: int, where: str = "") -> None:
    """A head dimension that flash kernels of CUDA take.

    Raises:
        InputError: none does; `where` says whose it is.
    """
    if dim % 8 or not 0 < dim <= LARGEST_HEAD:
        rule = f"flash attention on CUDA takes a head_dim that is a multiple of 8, up to {LARGEST_HEAD}"
        raise InputError(rule, f"head_dim {dim}{where}", "change the number of heads, or dtype=float32")
