"""What is asked of a family of models: of which samples its batches are made, and how (`FAMILIES`).

    model.kind --spec_of--> ModelSpec.family --FAMILIES--> FamilySpec      open_index, stream, builder, drawn_pack ...

A model of a family that there is needs none of this: it is one entry of `models.registry.MODELS`. A family is for
models that learn from samples of another kind, or read batches of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from data.streams.curriculum import AnyStream, Curriculum
from data.streams.pack_stream import Pack, SampleSource
from launcher.batches.drawn_packs import DrawnPack
from launcher.config.sections import DataConfig
from models.codecs.codec import CodecConfig
from models.registry import spec_of
from parallel.attention.plan import Keep, Plan
from parallel.device_stream import Stream
from parallel.kernels.kernel import Kernel
from parallel.mesh import Groups
from parallel.registries import Registry
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import Document


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward of this rank.

    Attributes:
        batch: of the family, a dataclass with the `packed` that has the weights of its tokens.
        plans: of attention, as the model takes them.
        received: see `Batch` of `launcher.batches.loader`.
        problems: of reading it, by document.
    """

    batch: Any
    plans: Any
    received: int
    problems: dict[int, str]

    @property
    def each_plan(self) -> list[Plan]:
        """Of attention, whether they come one a layer or by window."""
        return list(self.plans.values() if isinstance(self.plans, dict) else self.plans)


class BatchBuilder(Protocol):
    """What makes micro-steps of packs.

    Attributes:
        groups: of this rank.
        stream: where what it makes is queued for the device.
    """

    @property
    def groups(self) -> Groups:
        """Of this rank."""

    @property
    def stream(self) -> Stream:
        """See above."""

    def check(self, curriculum: Curriculum) -> None:
        """Raises InputError if it cannot be trained on that."""

    def micro_step(self, stream: Any, pack: Pack) -> MicroStep:
        """The part of this rank."""

    def area(self, stream: Any, pack: Pack) -> float:
        """Query-key pairs of one head, in the mean over layers."""

    def empty_step(self, documents: Sequence[Document], layouts: Sequence[Any], rope: Any) -> MicroStep:
        """A micro-step of values that are never read: see `DrawnPack`; `rope` is that of the segment."""


@dataclass(frozen=True)
class OnRank:
    """Where and with what a builder makes its batches.

    Attributes:
        groups: of this rank.
        dtype: of the model.
        device: of the tensors.
        kernel, keep: of attention: see `Plan`.
    """

    groups: Groups
    dtype: torch.dtype
    device: torch.device
    kernel: Kernel | None = None
    keep: Keep = "exchanged"


@dataclass(frozen=True)
class FamilySpec:
    """A family of models. `model`, `objective`, `codec` and `data` are the sections of a run.

    Attributes:
        open_index: (folders, digests) -> index of the samples of one or more datasets, as they were then.
        geometry: (model, codec) -> how frames become tokens.
        source: (model, codec, data, seed, geometry, index) -> samples: their lengths, costs, layouts and bytes.
        builder: (model, objective, codec, where) -> what makes batches of packs.
        check_data: (model, objective, codec, curriculum) raises InputError if the run cannot be trained on its data.
        drawn_pack: (model, data, geometry, stream, documents) -> a pack for a dry run; the stream may be None.
        layouts: (source, pack) -> what `empty_step` of the builder knows of each document beside its grid.
        caption_bytes: (model) -> bytes of a caption that it reads; None if captions are no input of its own.
        of_latents: its tokens are latents of a codec, and each rank reads the ranges of a pack that it holds.
    """

    open_index: Callable[[Sequence[Path], Sequence[str | None]], Any]
    geometry: Callable[[Any, CodecConfig], Geometry]
    source: Callable[[Any, CodecConfig, DataConfig, int, Geometry, Any], SampleSource]
    builder: Callable[[Any, Any, CodecConfig, OnRank], BatchBuilder]
    check_data: Callable[[Any, Any, CodecConfig, Curriculum], None]
    drawn_pack: Callable[[Any, DataConfig, Geometry, AnyStream | None, int | None], DrawnPack]
    layouts: Callable[[Any, Pack], tuple[Any, ...]]
    caption_bytes: Callable[[Any], int | None]
    of_latents: bool


FAMILIES: Registry[FamilySpec] = Registry("family of models")


def family_of(model: Any) -> FamilySpec:
    """The family of a model of these settings."""
    return FAMILIES[spec_of(model).family]


def caption_notes(model: Any, index: Any, data: DataConfig) -> Iterator[str]:
    """What a person should know of captions that are longer than the model reads."""
    most = family_of(model).caption_bytes(model)
    if most is None:
        return
    sizes = index.caption_bytes(data.caption)
    longer, row = int((sizes > most).sum()), int(sizes.argmax())
    if longer:
        yield (
            f"{longer:,} of {len(sizes):,} captions are read up to their first {most:,} bytes "
            f"(model.text.max_bytes): the longest has {int(sizes[row]):,} ({index.file(row)})"
        )
