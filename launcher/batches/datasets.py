"""From the settings of a run to its curriculum and its batches: one place, so that everybody has the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.streams.curriculum import AnyStream, Curriculum
from data.streams.pack_stream import PackOptions, PackStream
from launcher.batches import chat_family, clip_family  # noqa: F401  they register themselves
from launcher.batches.dataset_codec import holds_latents, noted
from launcher.batches.family import BatchBuilder, OnRank, caption_notes, family_of
from launcher.config.run_config import RunConfig
from models.core.specs import memory_of
from models.registry import DTYPES
from parallel.attention.plan import Keep
from parallel.errors import InputError
from parallel.kernels.kernel import Kernel
from parallel.mesh import Groups
from parallel.random import key_of
from parallel.sequence.geometry import Geometry


def open_curriculum(
    config: RunConfig, digests: Sequence[tuple[str, ...]] = (), geometry: Geometry | None = None
) -> Curriculum:
    """The streams of a run; reads indexes, no shards.

    Args:
        config: of the run.
        digests: of the datasets of each segment that has begun: the run stays with these, whatever was added since.
        geometry: of its codec and model, if it is at hand.

    Raises:
        InputError: a dataset is missing or changed, or does not fit the settings.
    """
    opened: dict[tuple[tuple[Path, ...], tuple[str, ...]], Any] = {}
    family, geometry = family_of(config.model), geometry or geometry_of(config)
    streams: list[AnyStream] = []
    for number, data in enumerate(config.data.merged()):
        folders = tuple(data.folders)
        pinned = digests[number] if number < len(digests) else ()
        if pinned and len(pinned) != len(folders):
            found = f"{len(folders)} datasets in segment {number}, {len(pinned)} when it began"
            raise InputError("a segment that has begun keeps its datasets", found, "set data.dataset back")
        if (folders, pinned) not in opened:
            opened[folders, pinned] = family.open_index(folders, pinned or [None] * len(folders))
        index = opened[folders, pinned]
        source = family.source(config.model, config.codec, data, _seed(config.seed, number), geometry, index)
        options = PackOptions(data.pack_tokens, data.packs_per_step, data.window, data.weights)
        streams.append(PackStream(source, options))
    return Curriculum(config.data.starts, tuple(streams), config.data.packs_per_step)


def geometry_of(config: RunConfig) -> Geometry:
    """How frames become tokens of a run."""
    return family_of(config.model).geometry(config.model, config.codec)


def builder_of(config: RunConfig, groups: Groups, device: torch.device, kernel: Kernel | None = None) -> BatchBuilder:
    """What makes micro-steps for the model of a run; `kernel` is that of attention (see `Plan`)."""
    where = OnRank(groups, DTYPES[config.dtype], device, kernel, keep_of(config.model))
    return family_of(config.model).builder(config.model, config.objective, config.codec, where)


def keep_of(model: Any) -> Keep:
    """What of attention waits for the backward pass: who computes again can also send again."""
    return "output" if memory_of(model).recompute else "exchanged"


def check_data(config: RunConfig, curriculum: Curriculum) -> None:
    """The model of a run can be trained on its data.

    Raises:
        InputError: see `FamilySpec.check_data`.
    """
    family_of(config.model).check_data(config.model, config.objective, config.codec, curriculum)


def notes_on_words(config: RunConfig, curriculum: Curriculum, first: int = 0) -> list[str]:
    """What a person should know of captions that are longer than the model reads, in segments from `first` on."""
    streams = zip(curriculum.streams[first:], config.data.merged()[first:], strict=True)
    return list(
        dict.fromkeys(note for stream, data in streams for note in caption_notes(config.model, stream.index, data))
    )


def _seed(seed: int, number: int) -> int:
    return seed if number == 0 else key_of(seed, "segment", number) >> 1


def with_own_codec(config: RunConfig) -> RunConfig:
    """The run with the codec of its datasets, if it names none and one of them holds latents."""
    if "codec" in config.model_fields_set or not family_of(config.model).of_latents:
        return config
    folders = dict.fromkeys(folder for data in config.data.merged() for folder in data.folders)
    found = next((codec for folder in folders if (codec := noted(folder)) is not None and holds_latents(folder)), None)
    return config if found is None else config.model_copy(update={"codec": found})
