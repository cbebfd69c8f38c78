"""The one place where kinds are listed: add a model or an objective in its own file, and one line here."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator

from models import dit
from models.dit import VideoDiT, VideoDiTConfig
from models.flow import RectifiedFlow, RectifiedFlowConfig
from parallel.errors import InputError

MODELS: dict[str, type[VideoDiTConfig]] = {"video_dit": VideoDiTConfig}
OBJECTIVES: dict[str, type[RectifiedFlowConfig]] = {"rectified_flow": RectifiedFlowConfig}


def _known(noun: str, kinds: dict[str, Any]) -> BeforeValidator:
    """Check `kind` before anything else, so that a typing error is named as such; no kind means the first one."""

    def check(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, dict):
            raise InputError(f"a {noun} is a mapping with a kind", repr(value), f"write kind: {next(iter(kinds))}")
        kind = value.get("kind", next(iter(kinds)))
        if kind not in kinds:
            near = get_close_matches(str(kind), kinds, n=1, cutoff=0.0)
            raise InputError(f"a {noun} is one of: {', '.join(kinds)}", f"kind: {kind}", f"did you mean {near[0]}?")
        return kinds[kind].model_validate(value)

    return BeforeValidator(check)


ModelConfig = Annotated[VideoDiTConfig, _known("model", MODELS)]
ObjectiveConfig = Annotated[RectifiedFlowConfig, _known("objective", OBJECTIVES)]


def build(config: VideoDiTConfig, channels: int, seed: int, dtype: torch.dtype) -> VideoDiT:
    """The model of `config` for latents of `channels`, its first numbers a function of `seed` alone."""
    return dit.build(config, channels, seed, dtype)


def build_objective(config: RectifiedFlowConfig) -> RectifiedFlow:
    """The objective of `config`."""
    return RectifiedFlow(config)
