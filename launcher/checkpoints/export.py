"""Weights alone, in one safetensors file with whole tensors under the model's own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from launcher.checkpoints.reading import Checkpoint
from parallel.ema import EMA
from parallel.errors import InputError

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def export(found: Checkpoint, out: Path, averaged: bool | None, dtype: str) -> dict[str, Any]:
    """Write the weights; gives what was written.

    Args:
        found: the checkpoint.
        out: the file.
        averaged: the moving average, or the weights themselves; None takes the average if there is one.
        dtype: "float32" or "bf16".

    Raises:
        InputError: no such dtype, no average in the checkpoint, or a file that is no .safetensors.
    """
    if dtype not in DTYPES:
        raise InputError("weights are exported as float32 or bf16", f"--dtype {dtype}", "--dtype bf16")
    if out.suffix != ".safetensors":
        raise InputError("weights are exported as safetensors", str(out), f"--out {out.with_suffix('.safetensors')}")
    has = EMA in found.manifest.keys
    if averaged and not has:
        raise InputError("a moving average is exported if the run kept one", f"{found.where} has none", "--no-ema")
    key = EMA if averaged or (averaged is None and has) else "master"
    tensors = {name: found.parameter(name, key).to(DTYPES[dtype]).contiguous() for name in found.manifest.shapes}
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {"step": found.state.step, "tensor": key, "dtype": dtype}
    safetensors.torch.save_file(tensors, out, {name: str(value) for name, value in told.items()})
    return {**told, "tensors": len(tensors), "bytes": out.stat().st_size}
