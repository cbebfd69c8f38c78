"""Parts of `gpu_first` about attention: is every kernel right, beyond 2^31 elements too, and how fast is each?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from benchmarks.attention_gpu import ERROR, KINDS, LENGTHS, collected, relative, rows_of
from benchmarks.gpu_first_rows import Case, Row, seconds_of, tflops
from launcher.doctor.attention_checks import kernels_here
from parallel.attention.attend import attend
from parallel.attention.plan import local_plan
from parallel.kernels.kernel import Kernel, Reference
from parallel.kernels.launch import Launch
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.masks.mask import Mask
from parallel.masks.rectangles import FULL

DTYPE = torch.bfloat16
DIMS = (64, 72, 96, 128, 256)
LARGE = (2304, 2048)  # rows and keys of a piece that kernels for large ones take
HEADS = ((4, 4), (8, 2))  # of queries and of keys
OVERFLOW = 1_450_000  # rows that with 12 heads of 128 are more than 2^31 numbers
SPEED_HEADS, SPEED_DIM = 12, 128  # of a Wan-1.3B
SPEED_ROWS = 131_072  # of queries at most: a rank's share of a longer sequence
GUESS = 150e12  # FLOP/s, before anything was measured


def kernels(case: Case) -> Iterator[Row]:
    """Each kernel, each kind of piece, each head size, few key heads; against dense float64 on the same numbers."""
    for name, kernel in kernels_here(case.device, DTYPE).items():
        for dim in DIMS:
            with routed(name):
                yield _row(f"{name}, heads of {dim}", list(_errors(kernel, dim, case)))
    for name, mask in mask_kinds().items():
        yield _row(f"mask {name}", [(f"{q}/{k} heads", mask_error(mask, q, k, case.device)) for q, k in HEADS])


def routed(name: str) -> AbstractContextManager[object]:
    """Torch's flash op goes to the implementation of this name meanwhile, if it is one that torch goes to."""
    try:
        from parallel.kernels.kernel_benchmark import routed as to
    except ImportError:
        return nullcontext()
    return to(name)


def _errors(kernel: Kernel, dim: int, case: Case) -> Iterator[tuple[str, float]]:
    large = {} if case.small else {"large": LARGE[:1]}
    for kind, number in KINDS.items():
        for heads, kv_heads in HEADS:
            for shape, lengths in (LENGTHS | large).items():
                keys = tuple(reversed(lengths)) if kind == "full" else lengths
                keys = LARGE[1:] if kind == "full" and shape == "large" else keys
                launch = Launch(number, rows_of(lengths), rows_of(keys), fresh=True)
                given = _drawn(launch.queries.count, launch.keys.count, heads, kv_heads, dim, case.device)
                name = f"{kind}, {heads}/{kv_heads} heads, {shape}"
                try:
                    got = collected(kernel, given, launch)
                except Exception as error:  # the other shapes are still to be asked
                    yield f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}", float("inf")
                    continue
                q, k, v, grad = (x.double() for x in given)
                want = collected(Reference(), (q, k, v, grad), launch)
                yield name, max(relative(mine, exact) for mine, exact in zip(got, want, strict=True))


def mask_kinds() -> dict[str, Mask]:
    """Every kind of mask that a run can have, of a few hundred tokens."""
    tiling = video_patterns.Tiling((6, 8, 10), (2, 2, 2))
    return {
        "full": masks.full(601),
        "causal": masks.causal(601),
        "packed": masks.packed([5, 170, 1, 300, 80]),
        "packed causal": masks.packed([5, 170, 1, 300, 80], causal=True),
        "window": masks.window(601, before=70, after=20, sinks=3),
        "strided": masks.strided(601, 7),
        "frame causal": video_patterns.frame_causal(17, 30),
        "frame window": video_patterns.frame_window(17, 30, before=2, after=1, sinks=1),
        "spatial": video_patterns.spatial(17, 30),
        "temporal": video_patterns.temporal(17, 30),
        "neighbourhood": video_patterns.neighbourhood(tiling, (1, 0, 1)),
        "criss cross": video_patterns.criss_cross(tiling),
        "dilated": video_patterns.dilated(tiling, (1, 2, 2)),
        "shifted windows": video_patterns.shifted_windows(tiling, (2, 2, 2), (1, 0, 1)),
        "text and video": video_patterns.text_video([60, 200, 50, 180], [False, True, False, True]),
    }


def mask_error(mask: Mask, heads: int, kv_heads: int, device: torch.device) -> float:
    """Of a whole plan, forward and backward, against dense float64: the largest relative one."""
    q, k, v, grad = _drawn(mask.queries, mask.keys, heads, kv_heads, 64, device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*leaves, local_plan(mask))
    got = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    dense = _dense(*exact, seen_of(mask).to(device))
    want = [dense.detach(), *torch.autograd.grad(dense, exact, grad.double())]
    return max(relative(mine, right) for mine, right in zip(got, want, strict=True))


def seen_of(mask: Mask) -> Tensor:
    """[queries, keys], whether a pair counts."""
    seen = torch.zeros(mask.queries, mask.keys, dtype=torch.bool)
    q, k = torch.arange(mask.queries)[:, None], torch.arange(mask.keys)
    for q0, q1, k0, k1, low, high in mask.table.tolist():
        seen |= (q0 <= q) & (q < q1) & (k0 <= k) & (k < k1) & (low <= q - k) & (q - k <= high)
    return seen


def _dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[2] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def _drawn(
    rows: int, keys: int, heads: int, kv_heads: int, dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(heads)
    shapes = ((rows, heads), (keys, kv_heads), (keys, kv_heads), (rows, heads))
    q, k, v, grad = (torch.randn(*shape, dim, generator=draw).to(device, DTYPE) for shape in shapes)
    return q, k, v, grad


def _row(what: str, errors: list[tuple[str, float]]) -> Row:
    name, worst = max(errors, key=lambda e: (e[1] != e[1], e[1]))  # nan is the worst
    limit = ERROR[DTYPE]
    wrong = [n for n, error in errors if not error < limit]
    found = f"at most {worst:.1e} off, in {name}" + (f"; {len(wrong)} of {len(errors)} wrong" if wrong else "")
    return Row(what, found, "wrong" if wrong else "ok", {"errors": dict(errors), "limit": limit})


def overflow(case: Case) -> Iterator[Row]:
    """Rows x heads x head_dim beyond 2^31: gradients of the last rows must be those of the last rows alone."""
    rows, keys, heads, dim = case.scaled(OVERFLOW, 3000), case.scaled(512, 32), case.scaled(12, 2), 128
    device, tail = case.device, 1024
    for name, kernel in kernels_here(device, DTYPE).items():
        q, grad = (torch.randn(rows, heads, dim, device=device, dtype=DTYPE) for _ in range(2))
        k, v = (torch.randn(keys, heads, dim, device=device, dtype=DTYPE) for _ in range(2))
        launch = Launch(FULL, rows_of((rows,)), rows_of((keys,)), fresh=True)
        alone = Launch(FULL, rows_of((tail,)), rows_of((keys,)), fresh=True)
        end = slice(rows - tail, rows)
        with routed(name):
            out, lse, dq, _, _ = collected(kernel, (q, k, v, grad), launch)
            short = collected(kernel, (q[end], k, v, grad[end]), alone)
        pairs = ((out[end], short[0]), (lse[:, end], short[1]), (dq[end], short[2]))
        off = max(relative(got.double(), want.double()) for got, want in pairs)
        numbers = rows * heads * dim
        found = f"the last {tail} rows are off by {off:.1e} of their own"
        figures = {"error": off, "numbers": numbers}
        yield Row(f"{name}, {rows:,} rows x {heads} x {dim}", found, "ok" if off < ERROR[DTYPE] else "wrong", figures)
        del q, grad, out, lse, dq


def speed(case: Case) -> Iterator[Row]:
    """TFLOP/s of each kernel, forward and backward, on full pieces of 8K to 1M keys."""
    heads, dim, device = SPEED_HEADS, SPEED_DIM, case.device
    lengths = (512, 1024) if case.small else tuple(1024 << n for n in (3, 5, 7, 10))
    reached: dict[str, float] = {}
    for keys in lengths:
        rows = min(keys, SPEED_ROWS)
        work = 4.0 * rows * keys * heads * dim
        q, k, v, grad = (torch.randn(n, heads, dim, device=device).to(DTYPE) for n in (rows, keys, keys, rows))
        launch = Launch(FULL, rows_of((rows,)), rows_of((keys,)), fresh=True)
        for name, kernel in kernels_here(device, DTYPE).items():
            what = f"{name}, {rows:,} x {keys:,}, {heads} heads of {dim}"
            rounds = 1 if keys > 1 << 18 else 3
            needed = (rounds + 1) * 3.5 * work / reached.get(name, GUESS)
            if not case.small and needed > case.left:
                yield Row(what, f"would take {needed:.0f} s, {case.left:.0f} are left", "left out")
                continue
            try:
                with routed(name):
                    took = _timed(kernel, (q, k, v, grad), launch, device, rounds)
            except Exception as error:  # of a package that does not fit; the others are still to be asked
                yield Row(what, f"{type(error).__name__}: {str(error).splitlines()[0][:150]}", "wrong")
                continue
            reached[name] = 3.5 * work / sum(took)
            found = f"forward {tflops(work, took[0])}, backward {tflops(2.5 * work, took[1])}"
            figures = {"forward_seconds": took[0], "backward_seconds": took[1], "flops": work}
            yield Row(what, found, figures=figures)


def _timed(
    kernel: Kernel, given: tuple[Tensor, Tensor, Tensor, Tensor], launch: Launch, device: torch.device, rounds: int
) -> tuple[float, float]:
    """Seconds of forward and backward."""
    q, k, v, grad = given
    scale = q.shape[2] ** -0.5
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
    for rows, new, new_lse in kernel.forward(q, k, v, launch, scale):
        out[rows], lse[:, rows] = new, new_lse
    forward = seconds_of(lambda: [None for _ in kernel.forward(q, k, v, launch, scale)], device, rounds)
    backward = seconds_of(
        lambda: [None for _ in kernel.backward(grad, q, k, v, out, lse, launch, scale)], device, rounds
    )
    return forward, backward
