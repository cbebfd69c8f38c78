"""The one place where kinds are listed: add a model or an objective in its own file, and one line here."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator

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

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}  # of models, by name
AnyModelConfig = VideoDiTConfig | VideoLMConfig
TalkObjectiveConfig = NextTokenConfig | MaskedTokenConfig | VideoTextConfig
AnyObjectiveConfig = RectifiedFlowConfig | TalkObjectiveConfig
MODELS: dict[str, type[AnyModelConfig]] = {"video_dit": VideoDiTConfig, "video_lm": VideoLMConfig}
OBJECTIVES: dict[str, type[AnyObjectiveConfig]] = {
    "rectified_flow": RectifiedFlowConfig,
    "next_token": NextTokenConfig,
    "masked_token": MaskedTokenConfig,
    "video_text": VideoTextConfig,
}
LEARNS: dict[type[AnyModelConfig], tuple[type[AnyObjectiveConfig], ...]] = {  # what each model can learn
    VideoDiTConfig: (RectifiedFlowConfig,),
    VideoLMConfig: (NextTokenConfig, MaskedTokenConfig, VideoTextConfig),
}


def _known(noun: str, kinds: dict[str, Any]) -> BeforeValidator:
    """Check `kind` before anything else, so that a typing error is named as such; no kind means the first one.

    A name alone is a kind with its defaults: `objective: rectified_flow`.
    """
    of_it = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"

    def check(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict):
            remedy = f"{noun}={next(iter(kinds))}, or {noun}.kind and its other keys"
            raise InputError(f"{of_it} is a kind, or a mapping with a kind", repr(value), remedy)
        kind = value.get("kind", next(iter(kinds)))
        if kind not in kinds:
            near = get_close_matches(str(kind), kinds, n=1, cutoff=0.0)
            raise InputError(f"{of_it} is one of: {', '.join(kinds)}", f"kind: {kind}", f"did you mean {near[0]}?")
        return kinds[kind].model_validate(value)

    return BeforeValidator(check)


ModelConfig = Annotated[AnyModelConfig, _known("model", MODELS)]
ObjectiveConfig = Annotated[AnyObjectiveConfig, _known("objective", OBJECTIVES)]


def usual_objective(model: Any) -> str:
    """The kind of objective of a model that names none.

    Args:
        model: its settings as they were written: a mapping, a kind alone, or something that is refused later.
    """
    kind = model.get("kind") if isinstance(model, dict) else model if isinstance(model, str) else None
    learned = LEARNS[MODELS.get(str(kind), next(iter(MODELS.values())))][0]
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
            contrast = partial(Contrast, width=objective.width, temperature=objective.temperature)
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
