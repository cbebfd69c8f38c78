"""A GPU's attention on fake CPU tensors: its calls, the shapes of what it gives, and the memory it works in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from launcher.training.run_kernel import refuse_shapes
from parallel.kernels.flash_cuda import FlashCUDA
from parallel.kernels.kernel import HALF, Kernel, kernel_for
from parallel.kernels.launch import Call

PAD_ROWS = 128  # a piece of a variable-length call is padded by, in the float32 sum of dq
PAD_DIM = 32  # head_dim is rounded up to a multiple of


def gpu_kernel(model: Any, dtype: torch.dtype) -> Kernel:
    """The kernel that every GPU has for the dtype of a run.

    Raises:
        InputError: there is none for the model's widths or heads.
    """
    refuse_shapes(model, dtype)
    return DryFlash() if dtype in HALF else kernel_for(torch.device("cuda"), dtype)


class DryFlash(FlashCUDA):
    """Flash attention, and what its backward pass allocates inside (Dao, flash_api.cpp, `mha_varlen_bwd`)."""

    def _call_backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        call: Call, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        padded, width = len(q) + PAD_ROWS * len(call.pieces), -(-q.shape[2] // PAD_DIM) * PAD_DIM
        work = [
            q.new_empty(padded, q.shape[1], width, dtype=torch.float32),  # dq is summed there
            q.new_empty(q.shape[1], padded, dtype=torch.float32),  # rows of dout * out
        ]
        if q.shape[1] != k.shape[1]:  # dk, dv for each query head
            work += [k.new_empty(len(k), q.shape[1], k.shape[2]) for _ in "kv"]
        found = super()._call_backward(grad, q, k, v, out, lse, call, scale)
        del work
        return found
