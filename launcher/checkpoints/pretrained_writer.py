"""Weights written in the layout of Hugging Face, of an engine or of a checkpoint, one parameter at a time."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.checkpoints.pretrained import CONFIG, device_of, matched, transformers_part
from launcher.checkpoints.reading import Checkpoint
from launcher.checkpoints.safetensors_files import INDEX, NAMES, SINGLE, few, header_of, split
from parallel.errors import InputError
from parallel.fragments import shape_of, trained
from parallel.zero.deepspeed_engine import DeepSpeedEngine
from parallel.zero.engine import Engine

SHARD_BYTES = 5_000_000_000  # of a file
BESIDE = (".json", ".txt", ".model", ".jinja")  # files of tokenisers and processors, which go along


def save(
    folder: Path,
    engine: Engine,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    like: Path | None = None,
) -> None:
    """Write the weights of an engine as a folder that transformers' `from_pretrained` opens. Collective.

    No rank holds more than one whole parameter. The folder gets its name when it is complete.

    Args:
        folder: that is not there yet; rank 0 writes it.
        engine: see `load`.
        dtype: of the files; that of the model by default.
        shard_bytes: that a file has at most, if it holds more than one tensor.
        like: the folder that was loaded: names stay as they are there, and its tokeniser goes along.

    Raises:
        InputError: on all ranks, if the folder is there already.
    """
    prefix, model = transformers_part(engine.module)
    dtype = dtype or next(model.parameters()).dtype
    refusal = [_refusal(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise refusal[0]
    whole = ((name.removeprefix(prefix), tensor) for name, tensor in _gathered(engine, dtype))
    if dist.get_rank() == 0:
        _write(folder, model, whole, dtype, shard_bytes, like)
    else:
        for _ in whole:  # nothing comes; it sends
            pass
    dist.barrier()


def export(
    folder: Path,
    found: Checkpoint,
    module: nn.Module,
    key: str = "master",
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
    like: Path | None = None,
) -> None:
    """The same as `save`, of a checkpoint and in one process without torch.distributed.

    Args:
        folder: that is not there yet.
        found: the checkpoint.
        module: the model that was trained; `on_meta` is enough, unless parts of it are frozen.
        key: "master", or "ema" for the moving average.
        dtype: of the files.
        shard_bytes: see `save`.
        like: see `save`.

    Raises:
        InputError: the folder is there already, or the checkpoint is of another model or without this key.
    """
    prefix, model = transformers_part(module)
    if (refusal := _refusal(folder)) is not None:
        raise refusal
    own, known = dict(model.named_parameters()), found.manifest.shapes.keys()
    if {prefix + name for name in trained(model)} != known:
        others = sorted({prefix + name for name in trained(model)} ^ known)
        value = f"{found.where}: {few(others)} are of one alone"
        raise InputError("a checkpoint holds the parameters of the model", value, "give the config of its run")
    if key not in found.manifest.keys:
        value = f"{found.where} has no {key}"
        raise InputError("a moving average is exported if the run kept one", value, "--no-ema")
    whole = (
        (name, (found.parameter(prefix + name, key) if prefix + name in known else own[name].detach()).to(dtype))
        for name in own
    )
    _write(folder, model, whole, dtype, shard_bytes, like)


def _refusal(folder: Path) -> InputError | None:
    if not folder.exists():
        return None
    return InputError("weights are saved as a new folder", f"{folder} is there", "give another name, or remove it")


def _names_in_files(model: Any, like: Path | None) -> dict[str, str]:
    """Of each parameter: as in the folder that was loaded, or as `save_pretrained` would write it."""
    if like is not None:
        return {own: stored.name for own, stored in matched(like, model).items()}
    from transformers.core_model_loading import revert_weight_conversion

    empty = {name: torch.empty(shape_of(parameter), device="meta") for name, parameter in model.named_parameters()}
    own = {id(tensor): name for name, tensor in empty.items()}
    written = revert_weight_conversion(model, empty).items()
    assert {id(tensor) for _, tensor in written} == own.keys(), f"{type(model).__name__} is not saved as it is"
    return {own[id(tensor)]: name for name, tensor in written}


def _gathered(engine: Engine, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """On rank 0 each parameter in the model's order, on the CPU; the other ranks send. Collective."""
    rank, device = dist.get_rank(), device_of(engine)
    whole_here = engine.frozen() if rank == 0 or (isinstance(engine, DeepSpeedEngine) and engine.stage == 3) else []
    mine = {fragment.name: fragment for fragment in (*engine.owned(), *whole_here)}
    ranges = {name: (fragment.start, fragment.stop) for name, fragment in mine.items()}
    owners: list[dict[str, tuple[int, int]]] | None = [{}] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(ranges, owners)
    for name, parameter in engine.module.named_parameters():
        master = mine[name].tensors["master"].to(device, dtype) if name in mine else None
        if owners is None:
            if master is not None:
                _transfer([dist.P2POp(dist.isend, master.contiguous(), 0)])
            continue
        shape = shape_of(parameter)
        whole = torch.empty(shape.numel(), dtype=dtype, device=device)
        coming = []
        for owner, of_owner in enumerate(owners):
            if name in of_owner:
                part = whole[slice(*of_owner[name])]
                if master is not None and owner == rank:
                    part.copy_(master)
                else:
                    coming.append(dist.P2POp(dist.irecv, part, owner))
        _transfer(coming)
        yield name, whole.view(shape).cpu()


def _transfer(messages: list[dist.P2POp]) -> None:
    """Through the communicator that all ranks have: a message that is in no batch makes NCCL start one for its pair."""
    for work in dist.batch_isend_irecv(messages) if messages else []:
        work.wait()


def _write(
    folder: Path,
    model: Any,
    whole: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    shard_bytes: int,
    like: Path | None,
) -> None:
    """The folder, from parameters in the model's order, under its name when all of it is on the disk."""
    names = _names_in_files(model, like)
    shapes = {names[own]: tuple(shape_of(parameter)) for own, parameter in model.named_parameters()}
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    shards = split(sizes, shard_bytes)
    several = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = several if len(shards) > 1 else [SINGLE]
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = iter(whole)
    for file, shard in zip(files, shards, strict=True):
        with (part / file).open("wb") as out:
            out.write(header_of({name: shapes[name] for name in shard}, sizes, NAMES[dtype]))
            for name in shard:
                own, tensor = next(tensors)
                assert names[own] == name, f"{own} came in place of {name}"
                out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            out.flush()
            os.fsync(out.fileno())
    assert next(tensors, None) is None, "more parameters than the model has"
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (part / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    _write_config(part, model, dtype, like)
    part.rename(folder)


def _write_config(part: Path, model: Any, dtype: torch.dtype, like: Path | None) -> None:
    if like is not None:
        for path in sorted(like.iterdir()):
            if path.is_file() and path.suffix in BESIDE and path.name not in (CONFIG, INDEX):
                shutil.copyfile(path, part / path.name)
    elif model.can_generate():
        model.generation_config.save_pretrained(part)
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = str(dtype).removeprefix("torch."), [type(model).__name__]
    config.save_pretrained(part)
