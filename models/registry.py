"""The one place where kinds are listed: add a model or an objective in its own file, and one line here."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch

from models.diffusion import video_dit
from models.diffusion.video_dit import VideoDiT, VideoDiTConfig
from models.language import video_lm
from models.language.contrastive_head import Contrast
from models.language.video_lm import VideoLM, VideoLMConfig
from models.objectives.contrastive import VideoText, VideoTextConfig
from models.objectives.masked_token import MaskedToken, MaskedTokenConfig
from models.objectives.next_token import NextToken, NextTokenConfig
from models.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from parallel.errors import InputError
from parallel.registry import OneOf, Registry

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}  # of models, by name
AnyModelConfig = VideoDiTConfig | VideoLMConfig
TalkObjectiveConfig = NextTokenConfig | MaskedTokenConfig | VideoTextConfig
AnyObjectiveConfig = RectifiedFlowConfig | TalkObjectiveConfig
MODELS: Registry[type[AnyModelConfig]] = Registry("model")
MODELS.register("video_dit", VideoDiTConfig)
MODELS.register("video_lm", VideoLMConfig)
OBJECTIVES: Registry[type[AnyObjectiveConfig]] = Registry("objective")
OBJECTIVES.register("rectified_flow", RectifiedFlowConfig)
OBJECTIVES.register("next_token", NextTokenConfig)
OBJECTIVES.register("masked_token", MaskedTokenConfig)
OBJECTIVES.register("video_text", VideoTextConfig)
LEARNS: dict[type[AnyModelConfig], tuple[type[AnyObjectiveConfig], ...]] = {  # what each model can learn
    VideoDiTConfig: (RectifiedFlowConfig,),
    VideoLMConfig: (NextTokenConfig, MaskedTokenConfig, VideoTextConfig),
}
ModelConfig = Annotated[AnyModelConfig, OneOf(MODELS, lambda config: config)]
ObjectiveConfig = Annotated[AnyObjectiveConfig, OneOf(OBJECTIVES, lambda config: config)]


def usual_objective(model: Any) -> str:
    """The kind of objective of a model that names none.

    Args:
        model: its settings as they were written: a mapping, a kind alone, or something that is refused later.
    """
    kind = model.get("kind") if isinstance(model, dict) else model if isinstance(model, str) else None
    learned = LEARNS[MODELS[str(kind) if str(kind) in MODELS else next(iter(MODELS))]][0]
    return next(name for name, one in OBJECTIVES.items() if one is learned)


def refuse_other_objective(model: AnyModelConfig, objective: AnyObjectiveConfig) -> None:
    """A model learns what it was made for.

    Raises:
        InputError: this one does not learn that.
    """
    kinds = LEARNS[type(model)]
    if isinstance(objective, VideoTextConfig) and isinstance(model, VideoLMConfig) and (model.path or not model.views):
        found = f"model.path: {model.path}, vision: {model.vision}"
        raise InputError("video_text is learned from scratch, by a model that sees", found, "give model.vision")
    if not isinstance(objective, kinds):
        names = [name for name, kind in OBJECTIVES.items() if kind in kinds]
        found = f"model.kind: {model.kind}, objective.kind: {objective.kind}"
        raise InputError(f"a {model.kind} learns: {', '.join(names)}", found, f"objective.kind={names[0]}")


def build(
    config: AnyModelConfig,
    channels: int,
    seed: int,
    dtype: torch.dtype,
    objective: AnyObjectiveConfig | None = None,
) -> VideoDiT | VideoLM:
    """The model of `config`, its first numbers a function of `seed` alone.

    Args:
        config: of the model.
        channels: of latents, for one that draws.
        seed: of the first numbers.
        dtype: of the model.
        objective: what it learns, which may have parameters of its own.
    """
    if isinstance(config, VideoLMConfig):
        contrast = None
        if isinstance(objective, VideoTextConfig):
            contrast = partial(Contrast, width=objective.embedding_dim, temperature=objective.temperature)
        return video_lm.build(config, dtype, seed, contrast)
    return video_dit.build(config, channels, seed, dtype)


def build_flow(config: AnyObjectiveConfig) -> RectifiedFlow:
    """The objective of a model that draws."""
    assert isinstance(config, RectifiedFlowConfig), f"{config.kind} draws nothing"
    return RectifiedFlow(config)


def build_talk_objective(config: AnyObjectiveConfig) -> NextToken | MaskedToken | VideoText:
    """The objective of a model that speaks."""
    if isinstance(config, VideoTextConfig):
        return VideoText(config)
    if isinstance(config, MaskedTokenConfig):
        return MaskedToken(config)
    assert isinstance(config, NextTokenConfig), f"{config.kind} says nothing"
    return NextToken(config)
