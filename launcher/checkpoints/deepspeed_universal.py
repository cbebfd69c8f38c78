"""Weights and optimizer state that DeepSpeed saved, as the first checkpoint of a run.

    DeepSpeed's checkpoint --ds_to_universal--> zero/NAME/fp32.pt  STATE.pt ...  (step.pt)
                                                      |
                              step-00000000/part-00000.safetensors, part-00001 ..., manifest.json

A universal checkpoint (Lian et al., arXiv:2406.18820) holds whole tensors by the parameter's name, so any mesh and
stage can go on from it. Its files are pickles: they are opened with `weights_only`, which builds tensors alone.
What else it holds, such as the place in the data, is of its own trainer: this run begins its data at the beginning.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.streams.curriculum import Position
from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState, Updates, layout_of, name_of
from launcher.checkpoints.part import Part, file_of, write_part
from launcher.checkpoints.storage import open_storage
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, make_run_folder, run_id
from parallel.errors import InputError
from parallel.fragments import MASTER, Fragment

MASTER_FILE = "fp32.pt"  # the others are named as the optimizer names them
PART_BYTES = 1 << 30  # of a part: no more of the model is in memory
REMEDY = "python -m deepspeed.checkpoint.ds_to_universal --inject_missing_state --input_folder IN --output_folder OUT"


@dataclass(frozen=True)
class Imported:
    """What was brought in.

    Attributes:
        where: the new checkpoint.
        parameters: how many.
        elements: of them all.
        updates: that had been made.
    """

    where: str
    parameters: int
    elements: int
    updates: int


def import_universal(
    source: Path, config: RunConfig, shapes: dict[str, tuple[int, ...]], updates: int | None
) -> Imported:
    """Write the checkpoint of step 0 of a run that has not begun.

    Args:
        source: the universal checkpoint.
        config: of the run.
        shapes: of the parameters of its model, by name.
        updates: that the state has seen, which a bias correction depends on; read from step.pt if not given.

    Raises:
        InputError: it is none, it has other parameters than the model, the run has begun, or nobody knows the updates.
    """
    _refuse_others(source, shapes)
    folder = RunFolder(config.out)
    storage, name = open_storage(folder.checkpoints, config.checkpoint.location), name_of(0)
    if storage.names():
        raise InputError(
            "weights are imported into a run that has not begun",
            f"{storage.where('')} holds {storage.names()[-1]}",
            "out=FOLDER of another run",
        )
    done = _updates(source, sorted(shapes)[0]) if updates is None else updates
    make_run_folder(folder)
    parts: list[Part] = []
    files = {name: MASTER_FILE if name == MASTER else f"{name}.pt" for name in config.optimizer.tensor_names}
    for fragments in _groups(source, shapes, files):
        parts.append(write_part(storage, name, file_of(len(parts)), fragments))
    settings = config.model_dump(mode="json")
    state = TrainState(Position(), (), Updates(done))
    manifest = Manifest(state, settings, layout_of(settings), {}, (), shapes, tuple(parts), run_id(folder))
    storage.commit(name, [part.file for part in parts], manifest.to_json())
    folder.record("import", source=str(source), updates=done)
    return Imported(storage.where(name), len(shapes), sum(f[2] - f[1] for p in parts for f in p.fragments), done)


def _groups(source: Path, shapes: dict[str, tuple[int, ...]], files: dict[str, str]) -> Iterator[list[Fragment]]:
    """Parameters in the model's order, about a gigabyte at a time."""
    group: list[Fragment] = []
    size = 0
    for name, shape in shapes.items():
        tensors = {key: _tensor(source / "zero" / name / file, shape) for key, file in files.items()}
        group.append(Fragment(name, 0, tensors))
        size += sum(t.nbytes for t in tensors.values())
        if size >= PART_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _tensor(path: Path, shape: tuple[int, ...]) -> Tensor:
    found = _load(path)
    if isinstance(found, dict):
        found = found.get("param")
    if not isinstance(found, Tensor) or found.numel() != torch.Size(shape).numel():
        size = f"{found.numel():,} numbers" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError("a parameter has the size that the model gives it", f"{path}: {size}, not {shape}", REMEDY)
    return found.detach().to(torch.float32).flatten().contiguous()


def _updates(source: Path, name: str) -> int:
    path = source / "zero" / name / "step.pt"
    if not path.exists():
        raise InputError(
            "it is known how many updates the state has seen", f"{path.parent} has no step.pt", "--updates N"
        )
    return int(_load(path))


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError("a universal checkpoint holds tensors", f"{path}: {reason}", REMEDY) from None


def _refuse_others(source: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    zero = source / "zero"
    if not zero.is_dir():
        raise InputError("a universal checkpoint of DeepSpeed has a folder zero", f"{source} has none", REMEDY)
    there = {path.name for path in zero.iterdir() if path.is_dir()}
    missing, strange = sorted(shapes.keys() - there), sorted(there - shapes.keys())
    if missing or strange:
        told = [f"lacks {missing[0]} and {len(missing) - 1} more"] if missing else []
        told += [f"has {strange[0]} and {len(strange) - 1} more that the model has not"] if strange else []
        raise InputError(
            "a checkpoint holds the parameters of the model", f"{source}: {'; '.join(told)}", "the config of its model"
        )
