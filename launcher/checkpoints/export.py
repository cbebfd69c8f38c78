"""Weights alone, in one safetensors file with whole tensors under the model's own names."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from launcher.checkpoints.reading import Checkpoint
from parallel import shell
from parallel.errors import InputError
from parallel.zero.ema import EMA

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def export(found: Checkpoint, out: Path, averaged: bool | None, dtype: str) -> dict[str, Any]:
    """Write the weights that were trained; gives what was written, and how many tensors are frozen and left out.

    Args:
        found: the checkpoint.
        out: the file.
        averaged: the moving average, or the weights themselves; None takes the average if there is one.
        dtype: "float32" or "bf16".

    Raises:
        InputError: no such dtype, no average in the checkpoint, or a file that is no .safetensors, or is there.
        OSError: it cannot be written; nothing of it stays.
    """
    if out.suffix != ".safetensors":
        raise InputError(
            "weights are exported as safetensors",
            str(out),
            _named(out),
        )
    if out.exists():
        raise InputError("weights are exported as a new file", f"{out} is there", "give another --out, or remove it")
    key, kind = _what(found, averaged, dtype)
    tensors = {name: found.parameter(name, key).to(kind).contiguous() for name in found.manifest.shapes}
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {"step": found.state.step, "tensor": key, "dtype": dtype}
    _write(out, tensors, {name: str(value) for name, value in told.items()})
    return {**told, "tensors": len(tensors), "frozen": _frozen(found), "bytes": out.stat().st_size}


def export_folder(found: Checkpoint, out: Path, averaged: bool | None, dtype: str) -> dict[str, Any]:
    """Write the weights of a video_lm as a folder of Hugging Face, its tokenizer beside them; gives what was written.

    Args:
        found: the checkpoint.
        out: the folder, which is not there yet.
        averaged: see `export`.
        dtype: see `export`.

    Raises:
        InputError: see `export`; the folder is there, or the model is none of transformers; or what is frozen is not
            what the run was trained with.
    """
    from data.chat.chat_index import MANIFEST, TOKENIZER, ChatIndex
    from launcher.checkpoints.external_hashes import (
        TOKENIZER_OF,
        Hashes,
        hash_of_tokenizer,
        outside_of,
        refuse_other_outside,
    )
    from launcher.checkpoints.pretrained import fill, folder_of_weights
    from launcher.checkpoints.pretrained_writer import export as write
    from launcher.checkpoints.safetensors_files import stored_in
    from launcher.config.loading import check
    from models.language.video_lm import VideoLM
    from models.registry import build, spec_of

    key, kind = _what(found, averaged, dtype)
    config = check(found.manifest.config)
    if not spec_of(config.model).pretrained:
        raise InputError(
            "weights are exported as safetensors",
            str(out),
            _named(out),
        )
    data = config.data_of(found.state.step)
    module, like = build(config.model, 3, config.seed, torch.float32, config.objective), folder_of_weights(config.model)
    if like is not None:
        refuse_other_outside(found, config, outside_of(config, module, None, Hashes()))
        fill(like, module)  # what is frozen is in no checkpoint
    assert isinstance(module, VideoLM), "a video_lm is built as one"
    module.lm.describe(data.rope_items, data.max_positions)
    write(out, found, module, key, kind, like=like)
    if (data.folders[0] / MANIFEST).is_file():
        chats, segment = ChatIndex.open(data.folders[0]), config.data.merged().index(data)
        refuse_other_outside(found, config, {TOKENIZER_OF.format(segment): hash_of_tokenizer(chats)})
    tokenizer = data.folders[0] / TOKENIZER
    for file in tokenizer.iterdir() if tokenizer.is_dir() else ():
        if not (out / file.name).exists():
            shutil.copy(file, out / file.name)
    told = {"step": found.state.step, "tensor": key, "dtype": dtype}
    size = sum(file.stat().st_size for file in out.iterdir())
    return {**told, "tensors": len(stored_in(out)), "frozen": 0, "bytes": size}


def _write(out: Path, tensors: dict[str, torch.Tensor], told: dict[str, str]) -> None:
    """The file, whole or not at all; safetensors tells a full disk in words of its own, here it is an OSError."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file(tensors, temporary, told)
        os.replace(temporary, out)
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1] or number[2])
        raise OSError(code, os.strerror(code), str(out)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _frozen(found: Checkpoint) -> int:
    """Parameters of the model that are in no checkpoint; few kinds of model have any."""
    from launcher.config.loading import check
    from models.registry import MODELS, build
    from parallel.zero.meta_init import on_meta

    if not MODELS[found.manifest.config["model"]["kind"]].can_freeze:
        return 0
    config = check(found.manifest.config)
    with on_meta():
        module = build(config.model, 3, config.seed, torch.float32, config.objective)
    return sum(not parameter.requires_grad for parameter in module.parameters())


def _what(found: Checkpoint, averaged: bool | None, dtype: str) -> tuple[str, torch.dtype]:
    """Which tensors, and as what."""
    if dtype not in DTYPES:
        raise InputError("weights are exported as float32 or bf16", f"--dtype {dtype}", "--dtype bf16")
    has = EMA in found.manifest.keys
    if averaged and not has:
        raise InputError("a moving average is exported if the run kept one", f"{found.where} has none", "--no-ema")
    return EMA if averaged or (averaged is None and has) else "master", DTYPES[dtype]


def _named(out: Path) -> str:
    """The option with a name that is right."""
    return f"--out {shell.quote(str(out.with_suffix('.safetensors')))}"
