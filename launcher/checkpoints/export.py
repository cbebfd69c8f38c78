"""Weights alone, in one safetensors file with whole tensors under the model's own names."""

from __future__ import annotations

import shutil
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
    if out.suffix != ".safetensors":
        raise InputError("weights are exported as safetensors", str(out), f"--out {out.with_suffix('.safetensors')}")
    key, kind = _what(found, averaged, dtype)
    tensors = {name: found.parameter(name, key).to(kind).contiguous() for name in found.manifest.shapes}
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {"step": found.state.step, "tensor": key, "dtype": dtype}
    safetensors.torch.save_file(tensors, out, {name: str(value) for name, value in told.items()})
    return {**told, "tensors": len(tensors), "bytes": out.stat().st_size}


def export_folder(found: Checkpoint, out: Path, averaged: bool | None, dtype: str) -> dict[str, Any]:
    """Write the weights of a video_lm as a folder of Hugging Face, its tokenizer beside them; gives what was written.

    Args:
        found: the checkpoint.
        out: the folder, which is not there yet.
        averaged: see `export`.
        dtype: see `export`.

    Raises:
        InputError: see `export`; the folder is there, or the model is none of transformers.
    """
    from data.talks import TOKENIZER
    from launcher.config import check
    from launcher.weights import export as write
    from launcher.weights import fill, folder_of_weights
    from models.kinds import build
    from models.video_lm import VideoLM, VideoLMConfig

    key, kind = _what(found, averaged, dtype)
    config = check(found.manifest.config)
    if not isinstance(config.model, VideoLMConfig):
        raise InputError("weights are exported as safetensors", str(out), f"--out {out.with_suffix('.safetensors')}")
    data = config.data_of(found.state.step)
    module, like = build(config.model, 3, config.seed, torch.float32, config.objective), folder_of_weights(config)
    if like is not None:
        fill(like, module)  # what is frozen is in no checkpoint
    assert isinstance(module, VideoLM), "a video_lm is built as one"
    module.lm.describe(data.turning, data.positions)
    write(out, found, module, key, kind, like=like)
    tokenizer = data.folders[0] / TOKENIZER
    for file in tokenizer.iterdir() if tokenizer.is_dir() else ():
        if not (out / file.name).exists():
            shutil.copy(file, out / file.name)
    told = {"step": found.state.step, "tensor": key, "dtype": dtype}
    size = sum(file.stat().st_size for file in out.iterdir())
    return {**told, "tensors": len(found.manifest.shapes), "bytes": size}


def _what(found: Checkpoint, averaged: bool | None, dtype: str) -> tuple[str, torch.dtype]:
    """Which tensors, and as what."""
    if dtype not in DTYPES:
        raise InputError("weights are exported as float32 or bf16", f"--dtype {dtype}", "--dtype bf16")
    has = EMA in found.manifest.keys
    if averaged and not has:
        raise InputError("a moving average is exported if the run kept one", f"{found.where} has none", "--no-ema")
    return EMA if averaged or (averaged is None and has) else "master", DTYPES[dtype]
