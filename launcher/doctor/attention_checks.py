"""Attention as a run computes it, forward and backward, on each device and with each kernel that may be chosen.

Its answer is compared with dense attention in float64, for the head sizes of usual models; on a GPU a larger piece is
timed too, which tells a kernel that works from one that is worth choosing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from launcher.doctor.finding import Finding, one_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from parallel.kernels.kernel import Kernel
    from parallel.kernels.launch import Launch

ERRORS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 3e-2}  # relative to the largest value
HEAD_DIMS = {"cpu": (16,), "cuda": (64, 128)}  # of usual models; on a CPU no head size is special
TIMED_ROWS, TIMED_HEADS, TIMED_DIM = 8192, 8, 128
ROUNDS = 3


def attention() -> Iterator[Finding]:
    """One finding for the CPU, and one for each GPU."""
    import torch

    yield found_on(torch.device("cpu"), ERRORS)
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        with torch.cuda.device(number):
            yield found_on(torch.device("cuda", number), ("float32", "bfloat16"))


def found_on(device: torch.device, dtypes: Iterable[str]) -> Finding:
    """How far each kernel is from the truth on a device, and on a GPU how fast it is."""
    import torch

    from parallel.kernels.kernel_benchmark import routed

    said, wrong = [], False
    for name in dtypes:
        for title, kernel in kernels_here(device, getattr(torch, name)).items():
            try:
                with routed(title):
                    sizes = HEAD_DIMS[device.type]
                    error = max(attention_error(kernel, device, getattr(torch, name), dim) for dim in sizes)
                    fast = device.type == "cuda" and name == "bfloat16"
                    speed = "{:.0f} and {:.0f} TFLOP/s".format(*attention_speed(kernel, device)) if fast else ""
            except Exception as failure:
                said.append(f"{name} by {title} fails with {one_line(failure)}")
                wrong = True
            else:
                said.append(f"{name} by {title} {error:.0e}{', ' if speed else ''}{speed}")
                wrong |= not error <= ERRORS[name]
    heads = " and ".join(map(str, HEAD_DIMS[device.type]))
    found = f"furthest from a dense reference, forward and backward, heads of {heads}: {'; '.join(said)}"
    remedy = "install torch again, or another build of it; float32 is the safest dtype" if wrong else ""
    return Finding(f"attention on {device}", "problem" if wrong else "ok", found, remedy)


def kernels_here(device: torch.device, dtype: torch.dtype) -> dict[str, Kernel]:
    """The kernels that a run could choose on a device, by name."""
    from parallel.kernels.kernel_benchmark import candidates, titled

    return {titled(name, kernel): kernel for name, kernel in candidates(device, dtype)[0].items()}


def attention_error(kernel: Kernel, device: torch.device, dtype: torch.dtype, dim: int) -> float:
    """How far output and gradients are from dense attention in float64, relative to the largest value.

    Full with more keys than rows, and causal, with two query heads to a key head of `dim`.
    """
    import torch

    from parallel.masks.rectangles import CAUSAL, FULL

    worst, scale = 0.0, dim**-0.5
    draw = torch.Generator().manual_seed(0)
    for rows, keys, causal in ((33, 47, False), (33, 33, True)):
        shapes = ((rows, 4), (keys, 2), (keys, 2), (rows, 4))
        q, k, v, grad = (torch.randn(n, h, dim, generator=draw).to(device, dtype) for n, h in shapes)
        launch = _whole(rows, keys, CAUSAL if causal else FULL)
        ((_, out, lse),) = kernel.forward(q, k, v, launch, scale)
        ((_, dq, _, dk, dv),) = kernel.backward(grad, q, k, v, out, lse, launch, scale)
        for mine, right in zip((out, dq, dk, dv), _dense(q, k, v, grad, causal, scale), strict=True):
            worst = max(worst, float((mine.double() - right).abs().max() / right.abs().max()))
    return worst


def attention_speed(kernel: Kernel, device: torch.device) -> tuple[float, float]:
    """TFLOP/s forward and backward of one full piece in bf16, 8192 x 8192 with 8 heads of 128."""
    import torch

    from parallel.masks.rectangles import FULL

    q, k, v, grad = (
        torch.randn(TIMED_ROWS, TIMED_HEADS, TIMED_DIM, device=device).to(torch.bfloat16) for _ in range(4)
    )
    launch, scale = _whole(TIMED_ROWS, TIMED_ROWS, FULL), TIMED_DIM**-0.5
    ((_, out, lse),) = kernel.forward(q, k, v, launch, scale)
    work = 4e-12 * TIMED_ROWS**2 * TIMED_HEADS * TIMED_DIM
    forward = _seconds(lambda: list(kernel.forward(q, k, v, launch, scale)), device)
    backward = _seconds(lambda: list(kernel.backward(grad, q, k, v, out, lse, launch, scale)), device)
    return work / forward, 2.5 * work / backward


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of a few rounds, after one that warms up."""
    import torch

    took = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:])


def _whole(rows: int, keys: int, kind: int) -> Launch:
    import numpy as np

    from parallel.kernels.launch import Launch, Rows

    queries, columns = (Rows(np.array([0]), np.array([n])) for n in (rows, keys))
    return Launch(kind, queries, columns, fresh=True)


def _dense(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, causal: bool, scale: float) -> tuple[Tensor, ...]:
    """Output and gradients of plain softmax attention in float64, by autograd."""
    import torch

    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(groups, dim=1)) * scale
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v.repeat_interleave(groups, dim=1))
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad.double()))
