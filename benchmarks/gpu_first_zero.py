"""Parts of `gpu_first` about the engine: does a step of each ZeRO stage work, and go on as a resume does?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist

from benchmarks.gpu_first_rows import Case, Row
from parallel.optimizers.adamw import AdamWConfig
from parallel.zero.engine import Engine
from parallel.zero.stages import engine_for

STEPS = 4
RATE = 1e-2
ROWS, WIDTH = 256, 512


def meet(case: Case) -> None:
    """A world of this process alone, over what the device's ranks use."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if case.kind == "cuda":
        torch.cuda.set_device(case.device)
    file = f"{tempfile.mkdtemp(prefix='gpu-first-')}/store"
    dist.init_process_group(
        "nccl" if case.kind == "cuda" else "gloo", init_method=f"file://{file}", rank=0, world_size=1
    )


def engine(stage: int, case: Case) -> Iterator[Row]:
    """A few steps, AdamW's own state on the device of its parameters, and a refresh as after a resume.

    The same numbers are also stepped on the CPU by torch's own AdamW in float32: losses must follow.
    """
    meet(case)
    dtype = torch.bfloat16
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))
    ours = engine_for(_net(dtype).to(case.device), AdamWConfig(max_grad_norm=0), stage, 1, device=case.device)
    losses = _losses(ours, x.to(case.device, dtype))
    strange = {
        str(value.device)
        for fragment in ours.held()
        for value in fragment.tensors.values()
        if value.device.type != case.kind
    }
    wanted = _bare(_net(torch.float32), x)
    off = max(abs(a - b) / b for a, b in zip(losses, wanted, strict=True))
    found = f"loss {losses[0]:.4f} to {losses[-1]:.4f}, float32 on CPU {wanted[0]:.4f} to {wanted[-1]:.4f}"
    good = off < 0.03 and losses[-1] < losses[0] and not strange
    if strange:
        found += f"; state on {', '.join(strange)}"
    yield Row(f"stage {stage}, {STEPS} steps", found, "ok" if good else "wrong", {"losses": losses, "float32": wanted})
    ours.refresh(STEPS)
    again = _losses(ours, x.to(case.device, dtype))
    found = f"loss goes on from {losses[-1]:.4f} to {again[-1]:.4f}"
    yield Row(f"stage {stage}, as after a resume", found, "ok" if again[-1] < losses[-1] else "wrong")
    ours.destroy()


def _net(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
    return torch.nn.Sequential(*layers).to(dtype)


def _losses(ours: Engine, x: torch.Tensor) -> list[float]:
    found = []
    for _ in range(STEPS):
        loss = (ours.forward(x).float() - x.float()).square().mean()
        ours.backward(loss)
        ours.step(RATE / 10)
        found.append(float(loss.detach()))
    return found


def _bare(net: torch.nn.Module, x: torch.Tensor) -> list[float]:
    adam, found = AdamWConfig(max_grad_norm=0), []
    optimizer = torch.optim.AdamW(
        adam.groups(net.parameters()), lr=RATE / 10, betas=adam.betas, eps=adam.eps, weight_decay=0.0
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (net(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


ENGINES = {stage: partial(engine, stage) for stage in range(4)}
