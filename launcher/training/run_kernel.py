"""The attention kernel of a run, and whether it repeats itself bit by bit.

Rank 0 chooses, for all: ranks that computed by different kernels would not be one run. What it chose is in
events.jsonl, and a run that goes on, on the same kind of GPU with the same torch, keeps it.

On a CPU everything repeats itself. On CUDA the backward pass of attention adds up by atomics, in any order:
`determinism: fast`, the default. `strict` tells torch to be deterministic, in all that it does, and takes kernels that
can be; backward is then slower, by a fifth or so, and an operation that cannot be fails.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.deterministic

from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, read_lines
from models.registry import DTYPES, spec_of
from parallel.errors import InputError
from parallel.kernels.kernel import HALF, refuse_head_dim
from parallel.kernels.kernel_benchmark import KernelChoice, choose, refuse_never, take


def refuse_kernels(config: RunConfig, device: str) -> None:
    """What can be said of a run's attention kernel before it starts: for head sizes, dtype and determinism.

    Args:
        config: of the run.
        device: that it will use, "cuda" or "cpu".

    Raises:
        InputError: no kernel takes the model's heads, or not the one that is asked for.
    """
    refuse_never(config.attention.kernel, device, DTYPES[config.dtype], config.determinism == "strict")
    if device == "cuda":
        refuse_shapes(config.model, DTYPES[config.dtype])


def refuse_shapes(model: Any, dtype: torch.dtype) -> None:
    """Widths and heads that kernels of CUDA take; those of attention in float32 and float64 take any head.

    Raises:
        InputError: there is no kernel for some of the model's.
    """
    spec = spec_of(model)
    spec.refuse_on_gpu(model)
    if dtype in HALF:
        for shape in spec.head_shapes(model):
            refuse_head_dim(shape.dim, f" ({shape.of})")


def be_deterministic(config: RunConfig) -> None:
    """Before the first operation on a GPU: torch repeats itself, if the run says so. Nothing changes on a CPU."""
    if config.determinism == "strict" and config.device == "auto" and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass over memory
        torch.backends.cudnn.benchmark = False


def kernel_of(config: RunConfig, device: torch.device, folder: RunFolder) -> KernelChoice:
    """What all ranks of a run compute attention with.

    Raises:
        InputError: on all ranks, if rank 0 cannot have the kernel that is asked for.
    """
    dtype, asked = DTYPES[config.dtype], config.attention.kernel
    strict = torch.are_deterministic_algorithms_enabled()
    said: list[str | InputError] = [""]
    choice = None
    if dist.get_rank() == 0:
        heads = heads_of_rank(config)
        try:
            before = chosen_before(folder, about(config, device)) if asked == "auto" else None
            choice = choose(asked, device, dtype, *heads, deterministic=strict, before=before)
            said = [choice.name]
        except InputError as error:
            said = [error]
    dist.broadcast_object_list(said)
    if isinstance(said[0], InputError):
        raise said[0]
    return choice or take(said[0], device, dtype, strict)


def heads_of_rank(config: RunConfig) -> tuple[int, int, int]:
    """Query heads, key heads and head_dim of one rank, as near as heads divide."""
    shape = spec_of(config.model).head_shapes(config.model)[0]
    sharing = max(mesh.ulysses for mesh in config.meshes)
    keys = max(1, shape.kv_heads // sharing)
    return shape.heads // shape.kv_heads * keys, keys, shape.dim


def about(config: RunConfig, device: torch.device) -> str:
    """All that a choice depends on, in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shape = "x".join(map(str, heads_of_rank(config)))
    return f"{name}, torch {torch.__version__}, {config.dtype}, heads {shape}, {config.determinism}"


def chosen_before(folder: RunFolder, key: str) -> str | None:
    """What this run chose for the same, the last time."""
    events = [e for e in read_lines(folder.events) if e.get("event") == "kernel" and e.get("for") == key]
    return events[-1]["kernel"] if events else None
