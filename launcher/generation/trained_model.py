"""The model of a run's checkpoint, ready to generate: which checkpoint, which weights, and what is read beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.checkpoints.checkpoint_manifest import name_of
from launcher.checkpoints.external_hashes import Hashes, outside_of, refuse_other_outside
from launcher.checkpoints.pretrained import fill, folder_of_weights
from launcher.checkpoints.reading import Checkpoint, newest, one
from launcher.checkpoints.storage import open_storage
from launcher.config.loading import load_stored
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from models.registry import DTYPES, build
from parallel.errors import InputError
from parallel.fragments import Fragment
from parallel.zero.ema import EMA


def open_run(run: Path, step: int | None = None) -> tuple[RunConfig, Checkpoint]:
    """A run's config and one of its checkpoints, the newest whole one if no step is given."""
    folder = RunFolder(run)
    if not folder.config.exists():
        raise InputError("a run folder holds config.yaml", f"{run} does not", "give the `out` folder of a run")
    config = load_stored(folder.config)
    storage = open_storage(folder.checkpoints, config.checkpoint.location)
    if step is None:
        found, _ = newest(storage)
        if found is None:
            raise InputError(
                "samples come from a checkpoint", f"{run} has none yet", "train at least one checkpoint.every"
            )
        return config, found
    return config, one(storage, name_of(step))


def is_averaged(found: Checkpoint, asked: bool | None = None) -> bool:
    """Whether the moving average is taken: as asked, or if the run kept one.

    Raises:
        InputError: it is asked for, and there is none.
    """
    has = EMA in found.manifest.keys
    if asked and not has:
        raise InputError("a moving average is sampled from if the run kept one", f"{found.where} has none", "--no-ema")
    return has if asked is None else asked


def load_model(
    config: RunConfig, found: Checkpoint, channels: int, device: torch.device, averaged: bool | None = None
) -> Any:
    """The model with the checkpoint's weights, or their moving average: see `is_averaged`.

    Raises:
        InputError: what is read beside the checkpoint, as frozen weights and the codec, is not what it was.
    """
    model = build(config.model, channels, config.seed, DTYPES[config.dtype], config.objective).to(device).eval()
    folder = folder_of_weights(config.model)
    refuse_other_outside(found, config, outside_of(config, model, None, Hashes()))
    if folder is not None:
        fill(folder, model)
    key = EMA if is_averaged(found, averaged) else "master"
    named = model.named_parameters()
    parameters = {name: parameter.data.view(-1) for name, parameter in named if name in found.manifest.shapes}
    found.fill([Fragment(name, 0, {"master": flat, key: flat}) for name, flat in parameters.items()], (key,))
    return model
