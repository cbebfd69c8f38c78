"""What is asked of a model and of an objective: the entries of `MODELS` and `OBJECTIVES` (`models.registry`).

    MODELS.register("wide_dit", ModelSpec(WideDiTConfig, "diffusion", build))          in the file of the model
    OBJECTIVES.register("edm", ObjectiveSpec(EDMConfig, "diffusion", EDM))             in the file of the objective

Nobody tests what class a config has: what differs between models is a field here, with the answer that suits most. A
model and an objective go together if they have one family: it says of what samples a batch is made, and of which shape
(`launcher.batches.family`). The first objective of a family is the usual one of its models.

Every config of a model has `kind`, `dim`, `depth`, `heads` and `attention` (a pattern for each layer in turn); what a
family asks beside these stands with the family. `memory_of` tells of the keys about memory, which a model may leave
out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import nn

from models.core.loss_module import Objective

MakeHeads = Callable[[int], Mapping[str, nn.Module]]  # by name, for hidden rows of a width
T = TypeVar("T")


@dataclass(frozen=True)
class HeadShape:
    """Heads of one kind of attention of a model.

    Attributes:
        of: whose they are, in the words of the config.
        heads: of queries.
        kv_heads: of keys.
        dim: numbers of one.
    """

    of: str
    heads: int
    kv_heads: int
    dim: int


@dataclass(frozen=True)
class Memory:
    """What of a model's settings is about memory; the defaults are those of a model without such a key.

    Attributes:
        recompute: keep only the input of each block for the backward pass.
        offload: what is kept waits in the memory of the host.
        mlp_tiles: of each MLP.
        compile: "none", or what torch.compile makes kernels of.
    """

    recompute: bool = False
    offload: bool = False
    mlp_tiles: int = 1
    compile: str = "none"


def memory_of(model: BaseModel) -> Memory:
    """Of the settings of a model."""
    found: dict[str, Any] = {field.name: getattr(model, field.name, field.default) for field in fields(Memory)}
    return Memory(**found)


@dataclass(frozen=True)
class Numbers:
    """What the first numbers of a model depend on, beside its config.

    Attributes:
        channels: of a latent cell, for models of latents.
        seed: of the first numbers.
        dtype: of the model.
        heads: of the objective, made for hidden rows of a width; None if it has none.
        reads_out: see `ObjectiveSpec`.
    """

    channels: int
    seed: int
    dtype: torch.dtype
    heads: MakeHeads | None = None
    reads_out: bool = True


def own_heads(model: Any) -> tuple[HeadShape, ...]:
    """Of a model whose attention is all of `dim` numbers in `heads` heads."""
    return (HeadShape("model.dim / model.heads", model.heads, model.heads, model.dim // model.heads),)


def nothing(_: Any) -> None:
    """No answer, or nothing to refuse."""


def of_blocks(model: Any) -> int:
    """About the parameters of a transformer's blocks."""
    return int(12 * model.depth * model.dim**2)


def none_beside(_: Any) -> float:
    """No rows beside those that every block keeps."""
    return 0.0


@dataclass(frozen=True)
class ModelSpec:
    """A kind of model.

    Attributes:
        config: its settings.
        family: of its batches.
        build: the module of a config.
        head_shapes: of each kind of attention that goes through `attend`; the one that costs most first.
        refuse_on_gpu: raises InputError for widths that a GPU should not compute.
        about: parameters, roughly: whether they are sooner drawn than counted.
        kept: rows of width `dim` that a block keeps of each token beside those of any transformer.
        narrower: the key that makes a smaller model of it, halved in proposals; None for none.
        in_parts: layers may be drawn and cut one by one under ZeRO-3; False if they are drawn once all are there.
        folder: a published model that the settings name: its config, and perhaps weights to begin with.
        can_freeze: some of its parameters may be trained by no run, and are in no checkpoint then.
        pretrained: it has a model of transformers within, which weights of Hugging Face go into and come from.
    """

    config: type[BaseModel]
    family: str
    build: Callable[[Any, Numbers], nn.Module]
    head_shapes: Callable[[Any], tuple[HeadShape, ...]] = own_heads
    refuse_on_gpu: Callable[[Any], None] = nothing
    about: Callable[[Any], int] = of_blocks
    kept: Callable[[Any], float] = none_beside
    narrower: str | None = "dim"
    in_parts: bool = True
    folder: Callable[[Any], Path | None] = nothing
    can_freeze: bool = False
    pretrained: bool = False


@dataclass(frozen=True)
class ObjectiveSpec:
    """A kind of objective.

    Attributes:
        config: its settings.
        family: of the batches that it learns from.
        build: the objective of a config.
        heads: its own parameters by name, for hidden rows of a width: parts of the model.
        reads_out: it uses the model's head over a vocabulary, which is not trained otherwise.
        refuse_model: raises InputError if these settings of a model cannot learn these of the objective.
        mask_token: of the vocabulary, that stands where one is hidden; None for none.
        generates: what has learned it can be sampled by the family's generator.
    """

    config: type[BaseModel]
    family: str
    build: Callable[[Any], Objective]
    heads: Callable[[Any, int], Mapping[str, nn.Module]] | None = None
    reads_out: bool = True
    refuse_model: Callable[[Any, Any], None] | None = None
    mask_token: Callable[[Any], int | None] = nothing
    generates: bool = True
