"""The models and objectives that a run may name: what is asked of each stands in `models.core.specs`.

A new one registers itself with one call, in its own file; a run imports such files by its key `extensions`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from pydantic import BaseModel
from torch import nn

from models.core.loss_module import LossModule, Objective
from models.core.specs import ModelSpec, Numbers, ObjectiveSpec
from models.diffusion import video_dit
from models.language import contrastive_head, video_lm
from models.objectives.contrastive import VideoText, VideoTextConfig
from models.objectives.masked_token import MaskedToken, MaskedTokenConfig
from models.objectives.next_token import NextToken, NextTokenConfig
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from parallel.errors import InputError
from parallel.registries import OneOf, Registry

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}  # of models, by name

MODELS: Registry[ModelSpec] = Registry("model")
MODELS.register("video_dit", video_dit.SPEC)
MODELS.register("video_lm", video_lm.SPEC)

OBJECTIVES: Registry[ObjectiveSpec] = Registry("objective")
OBJECTIVES.register("rectified_flow", ObjectiveSpec(RectifiedFlowConfig, "diffusion", RectifiedFlow))
OBJECTIVES.register("next_token", ObjectiveSpec(NextTokenConfig, "language", NextToken))
OBJECTIVES.register(
    "masked_token",
    ObjectiveSpec(
        MaskedTokenConfig, "language", MaskedToken, mask_token=lambda objective: objective.mask_token, generates=False
    ),
)
OBJECTIVES.register(
    "video_text",
    ObjectiveSpec(
        VideoTextConfig,
        "language",
        VideoText,
        heads=contrastive_head.heads_of,
        reads_out=False,
        refuse_model=video_lm.refuse_contrast,
        generates=False,
    ),
)

ModelConfig = Annotated[Any, OneOf(MODELS, lambda spec: spec.config)]
ObjectiveConfig = Annotated[Any, OneOf(OBJECTIVES, lambda spec: spec.config)]


def spec_of(model: Any) -> ModelSpec:
    """What there is to ask about a model of these settings."""
    return MODELS[model.kind]


def objective_spec_of(objective: Any) -> ObjectiveSpec:
    """What there is to ask about an objective of these settings."""
    return OBJECTIVES[objective.kind]


def usual_objective(model: Any) -> str:
    """The kind of objective of a model that names none: the first of its family.

    Args:
        model: its settings as they were written: a mapping, a kind alone, or something that is refused later.
    """
    kind = model.get("kind") if isinstance(model, dict) else model if isinstance(model, str) else None
    spec = MODELS[str(kind) if str(kind) in MODELS else next(iter(MODELS))]
    return objectives_of(spec)[0]


def objectives_of(spec: ModelSpec) -> list[str]:
    """The kinds of objective that a kind of model learns: those of its family."""
    return [name for name, objective in OBJECTIVES.items() if objective.family == spec.family]


def refuse_other_objective(model: Any, objective: Any) -> None:
    """A model learns the objectives of its family.

    Raises:
        InputError: this one does not learn that.
    """
    spec, learned = spec_of(model), objective_spec_of(objective)
    if learned.family != spec.family:
        names = objectives_of(spec)
        found = f"model.kind: {model.kind}, objective.kind: {objective.kind}"
        raise InputError(f"a {model.kind} learns: {', '.join(names)}", found, f"objective.kind={names[0]}")
    if learned.refuse_model is not None:
        learned.refuse_model(model, objective)


def build(
    config: BaseModel, channels: int, seed: int, dtype: torch.dtype, objective: BaseModel | None = None
) -> nn.Module:
    """The model of `config`, its first numbers a function of `seed` alone.

    Args:
        config: of the model.
        channels: of a latent cell, for models of latents.
        seed: of the first numbers.
        dtype: of the model.
        objective: what it learns, which may have parameters of its own.
    """
    numbers = Numbers(channels, seed, dtype)
    if objective is not None:
        spec = objective_spec_of(objective)
        heads = partial(spec.heads, objective) if spec.heads is not None else None
        numbers = Numbers(channels, seed, dtype, heads, spec.reads_out)
    return spec_of(config).build(config, numbers)


def build_objective(config: Any) -> Objective:
    """The objective of a config."""
    return objective_spec_of(config).build(config)


def build_loss(config: BaseModel, channels: int, seed: int, dtype: torch.dtype, objective: BaseModel) -> LossModule:
    """The model of `config` with its objective, as an engine wraps it; arguments as of `build`."""
    return LossModule(build(config, channels, seed, dtype, objective), build_objective(objective))
