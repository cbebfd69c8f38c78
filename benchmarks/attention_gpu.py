"""What cutting a mask costs on a GPU: all launches of one rank of eight, beside one flash call of the same area.

    python benchmarks/attention_gpu.py [--tokens 131072 1048576] [--rounds 5]           needs torch and numpy alone
    python benchmarks/attention_gpu.py --device cpu --tokens 4096 --dtype float32       a dry run

One GPU cannot run a ring of 8, but it can do the share of one of its ranks: `plan_of` gives the plan of any place, and
`ring.forward` and `ring.backward` run on it as they are, with keys of each hop that lie ready instead of arriving.
Everything else that a rank does is in the time: gathering what leaves, merging outputs, adding gradients (what is
added for keys that others used is whatever lies in memory: it costs the same). So this is the ceiling of a ring whose
messages hide behind compute. Rank 0 and, if it has more to do, the busiest rank; full (contiguous split), causal and 64
packed causal documents (balanced split); bf16, 8 heads and 8 key heads of 128.

TFLOP/s are of the exact area of the mask: 4 x area x heads x head_dim forward, 2.5 times that backward. The bare call
is torch's scaled_dot_product_attention on its flash kernel, a square of the same area (full, or causal for the causal
masks), with autograd's backward; both take turns, and medians count. "host" is the time until Python has issued
everything: where it is near the whole, the GPU waits for Python.

First the flash kernel is compared with the dense one in float64, for each kind of piece, and for fewer key heads.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.attention_ways import log_normal
from benchmarks.machine import write_result
from parallel.attention import ring
from parallel.attention.plan import Plan, plan_of
from parallel.kernels.kernel import Kernel, kernel_for
from parallel.kernels.launch import Launch, Rows
from parallel.kernels.reference import Reference
from parallel.masks import mask as masks
from parallel.masks.rectangles import ANTICAUSAL, CAUSAL, DIAGONAL, FULL
from parallel.mesh import Mesh
from parallel.sequence.sharding import balanced, contiguous

MESH = Mesh(ring=8)
HEADS, DIM, DOCUMENTS = 8, 128, 64
GOALS = {"full": 0.95, "causal": 0.95, "packed": 0.85}  # TFLOP/s to those of the bare call
BACKWARD = 2.5  # times the work of forward: five products of matrices for two
ALIGNED = 128  # the bare call's sides are multiples of it, which flash kernels like
KINDS = {"full": FULL, "causal": CAUSAL, "anticausal": ANTICAUSAL, "diagonal": DIAGONAL}
LENGTHS = {"mixed": (3, 64, 1, 200, 200, 130), "ones": (1, 1, 1)}  # of pieces, in the check
ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # the largest that counts as right
COLUMNS = (  # title, key, form, unit
    (" tokens", "tokens", "{}", 1),
    ("  mask", "mask", "{}", 1),
    ("rank", "rank", "{}", 1),
    ("launches", "launches", "{}", 1),
    ("pieces", "pieces", "{}", 1),
    ("TFLOP/s forward", "ours_forward_tflops", "{:.1f}", 1),
    ("backward", "ours_backward_tflops", "{:.1f}", 1),
    ("x bare forward", "x_bare_forward", "{:.3f}", 1),
    ("backward", "x_bare_backward", "{:.3f}", 1),
    (" both", "x_bare_both", "{:.3f}", 1),
    ("goal", "goal", "{:.2f}", 1),
    ("ms forward", "ours_forward_seconds", "{:.2f}", 1000),
    ("(host)", "ours_forward_host_seconds", "{:.2f}", 1000),
    ("backward", "ours_backward_seconds", "{:.2f}", 1000),
    ("(host)", "ours_backward_host_seconds", "{:.2f}", 1000),
    ("peak GiB", "ours_backward_peak_bytes", "{:.2f}", 2**-30),
)

Timed = Callable[[], object]


def main() -> None:
    """Check, measure, print a table, write the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tokens", type=int, nargs="+", default=[131072, 1048576])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cuda")
    options.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    given = options.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    checks = check(device, dtype)
    wrong = [name for name, error in checks.items() if not error < ERROR[dtype]]  # nan is wrong too
    for name, error in checks.items():
        print(f"{name:36}{error:.1e}{'   WRONG' if name in wrong else ''}")
    print("  ".join(title for title, *_ in COLUMNS))
    rows = [row for n in given.tokens for name in GOALS for row in measured(name, n, device, dtype, given.rounds)]
    result = {"machine": about(device), "dtype": given.dtype, "heads": HEADS, "head_dim": DIM, "rounds": given.rounds}
    result |= {"errors_of_the_kernel": checks, "wrong": wrong, "rows": rows}
    print(write_result("attention_gpu", result) if device.type == "cuda" else "a dry run: nothing written")
    if wrong:
        raise SystemExit(f"wrong: {'; '.join(wrong)}")


def measured(name: str, tokens: int, device: torch.device, dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """Rank 0, and the busiest one if it has more to do."""
    mask = masks.full(tokens) if name == "full" else masks.causal(tokens)
    if name == "packed":
        mask = masks.packed(log_normal(DOCUMENTS, tokens), causal=True)
    begin = time.perf_counter()
    split = contiguous(tokens, MESH.ring) if name == "full" else balanced(mask, MESH)
    split_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    plans = [plan_of(mask, split, MESH, MESH.place(rank)) for rank in range(MESH.ring)]
    plan_seconds = (time.perf_counter() - begin) / MESH.ring
    areas = [plan.area for plan in plans]
    busiest = areas.index(max(areas))
    rows = []
    for rank in dict.fromkeys((0, busiest if areas[busiest] > areas[0] else 0)):
        row = beside_bare(plans[rank], name != "full", device, dtype, rounds)
        row = {"tokens": tokens, "mask": name, "rank": rank, "goal": GOALS[name]} | row
        row |= {"split_seconds": split_seconds, "plan_seconds": plan_seconds}
        row["max_to_mean_area"] = max(areas) * len(areas) / sum(areas)
        print(line(row), flush=True)
        rows.append(row)
    return rows


def beside_bare(plan: Plan, causal: bool, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Seconds, TFLOP/s and memory of a plan and of a bare call of the same area."""
    ours, (bare, bare_area) = of_plan(plan, device, dtype), of_bare(plan.area, causal, device, dtype)
    found: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for who, works in (("ours", ours), ("bare", bare)):
            for what, work in works.items():
                for name, value in timed(work, device).items():
                    if number:  # round 0 warms up
                        found.setdefault(f"{who}_{what}_{name}", []).append(value)
    row: dict[str, Any] = {name: statistics.median(values) for name, values in found.items()}
    for who, area in (("ours", plan.area), ("bare", bare_area)):
        teraflop = {"forward": 4e-12 * area * HEADS * DIM, "backward": BACKWARD * 4e-12 * area * HEADS * DIM}
        for what, count in teraflop.items():
            row[f"{who}_{what}_tflops"] = count / row[f"{who}_{what}_seconds"]
        seconds = row[f"{who}_forward_seconds"] + row[f"{who}_backward_seconds"]
        row[f"{who}_both_tflops"] = sum(teraflop.values()) / seconds
    for what in ("forward", "backward", "both"):
        row[f"x_bare_{what}"] = row[f"ours_{what}_tflops"] / row[f"bare_{what}_tflops"]
    launches = [launch for hop in plan.hops for launch in hop.launches]
    row |= {"area": plan.area, "bare_area": bare_area, "launches": len(launches)}
    return row | {"pieces": sum(len(launch.queries.starts) for launch in launches)}


def of_plan(plan: Plan, device: torch.device, dtype: torch.dtype) -> dict[str, Timed]:
    """Forward and backward of one rank, messages left out."""
    kernel, scale = kernel_for(device, dtype), DIM**-0.5
    q, grad = (torch.randn(plan.queries, HEADS, DIM, device=device).to(dtype) for _ in range(2))
    blocks = [torch.randn(2, hop.keys, HEADS, DIM, device=device).to(dtype) for hop in plan.hops]
    k, v = blocks[0]

    def silent() -> AbstractContextManager[object]:
        return mock.patch.multiple(ring, _exchange=lambda *_: [], _fetch=lambda plan, *_: _Ready(plan, blocks))

    def forward() -> tuple[Tensor, Tensor]:
        with silent():
            return ring.forward(kernel, q, k, v, plan, None, scale)

    out, lse = forward()

    def backward() -> object:
        with silent():
            return ring.backward(kernel, grad, q, k, v, out, lse, plan, None, scale)

    return {"forward": forward, "backward": backward}


class _Ready(ring._Fetch):
    """Gathers what leaves; what arrives is here already."""

    def __init__(self, plan: Plan, blocks: list[Tensor]) -> None:
        super().__init__(plan, blocks[0][0], blocks[0][1])
        self.blocks = blocks

    def arrive(self) -> None:
        if self.hop < len(self.blocks):
            self.here = self.blocks[self.hop][0], self.blocks[self.hop][1]


def of_bare(area: int, causal: bool, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Timed], int]:
    """Forward and backward of one flash call on a square, and its area."""
    side = max(1, round((area * (2 if causal else 1)) ** 0.5 / ALIGNED)) * ALIGNED
    q, k, v, grad = (torch.randn(side, HEADS, DIM, device=device).to(dtype).transpose(0, 1)[None] for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device.type == "cuda" else nullcontext():
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    out = forward()
    works: dict[str, Timed] = {
        "forward": forward,
        "backward": lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True),
    }
    return works, side * (side + 1) // 2 if causal else side * side


def timed(work: Timed, device: torch.device) -> dict[str, float]:
    """Seconds until all is done and until all is issued, and how far memory grows."""
    if device.type != "cuda":
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "host_seconds": seconds}
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, begin = torch.cuda.memory_allocated(), time.perf_counter()
    start.record()
    work()
    stop.record()
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    grown = torch.cuda.max_memory_allocated() - before
    return {"seconds": start.elapsed_time(stop) / 1000, "host_seconds": host, "peak_bytes": grown}


def check(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The largest relative error (Frobenius) of output, log-sum-exp and gradients, for each kind and head shape."""
    found = {}
    for kind, number in KINDS.items():
        for heads, kv_heads in ((4, 4), (8, 2)):
            for shape, lengths in LENGTHS.items():
                keys = tuple(reversed(lengths)) if kind == "full" else lengths
                launch = Launch(number, rows_of(lengths), rows_of(keys), fresh=True)
                found[f"{kind}, {heads}/{kv_heads} heads, {shape}"] = error_of(launch, heads, kv_heads, device, dtype)
    return found


def rows_of(lengths: tuple[int, ...]) -> Rows:
    """Ranges of these lengths, one after the other."""
    stops = np.cumsum(lengths)
    return Rows(stops - lengths, stops)


def error_of(launch: Launch, heads: int, kv_heads: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of the kernel for this device, against the dense one in float64 on the same rounded inputs."""
    generator = torch.Generator().manual_seed(heads)
    queries, keys = launch.queries.count, launch.keys.count
    shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)]
    q, k, v, grad = (torch.randn(*shape, DIM, generator=generator).to(device, dtype) for shape in shapes)
    got = collected(kernel_for(device, dtype), (q, k, v, grad), launch)
    want = collected(Reference(), (q.double(), k.double(), v.double(), grad.double()), launch)
    return max(relative(mine, exact) for mine, exact in zip(got, want, strict=True))


def collected(kernel: Kernel, given: tuple[Tensor, Tensor, Tensor, Tensor], launch: Launch) -> list[Tensor]:
    """Output, log-sum-exp and gradients of all parts of a launch."""
    q, k, v, grad = given
    out, lse = torch.zeros_like(q), torch.zeros_like(q[..., 0].T, dtype=torch.promote_types(q.dtype, torch.float32))
    for rows, new, new_lse in kernel.forward(q, k, v, launch, DIM**-0.5):
        out[rows], lse[:, rows] = new, new_lse
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for rows, new_dq, columns, new_dk, new_dv in kernel.backward(grad, q, k, v, out, lse, launch, DIM**-0.5):
        for total, where, new in ((dq, rows, new_dq), (dk, columns, new_dk), (dv, columns, new_dv)):
            total[where] += new
    return [out, lse, dq, dk, dv]


def relative(got: Tensor, want: Tensor) -> float:
    """Frobenius; absolute where the answer is 0 (gradients of queries with one key)."""
    if got.shape != want.shape:
        return float("inf")
    norm = float(want.norm())
    return float((got.double() - want).norm()) / (norm if norm > 1e-9 else want.numel() ** 0.5)


def line(row: dict[str, Any]) -> str:
    """Of the table."""
    cells = ((form.format(row[key] * unit) if key in row else "-", title) for title, key, form, unit in COLUMNS)
    return "  ".join(cell.rjust(len(title)) for cell, title in cells)


def about(device: torch.device) -> dict[str, Any]:
    """What it was measured on; this script runs where none of our other dependencies are."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    cuda = torch.version.cuda if device.type == "cuda" else None
    cores, date = len(os.sched_getaffinity(0)), time.strftime("%Y-%m-%d")
    return {"device": name, "cores": cores, "versions": {"torch": torch.__version__, "cuda": cuda}, "date": date}


if __name__ == "__main__":
    main()
