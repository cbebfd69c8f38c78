"""A run for every key of the schema, and another value of each: what tests of resumes change, one at a time."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.config_schema import Key, keys
from launcher.config.loading import check
from models.codecs.diffusers_vae import DiffusersCodecConfig
from models.language.video_lm_config import VideoLMConfig
from models.registry import OBJECTIVES
from parallel.setting_effects import Effect
from tests.support import conversations
from tests.support.runs import config

STEP = 2  # of the checkpoint: in the first segment of data, before its end
TILES = {"tile": [1, 2, 2]}
PATTERNS = {  # an attention pattern of each kind that has settings
    "frame_window": {"before": 1, "after": 1, "sinks": 1},
    "neighbourhood": {**TILES, "radius": [1, 1, 1]},
    "criss_cross": TILES,
    "dilated": {**TILES, "stride": [1, 1, 2]},
    "shifted_windows": {**TILES, "window": [1, 2, 2], "shift": [0, 1, 0]},
}
FAULTS = [{"kind": "slow", "rank": 0, "step": 5, "phase": "forward", "seconds": 1.0}]
SEGMENTS: list[dict[str, Any]] = [
    {"until": 4, "frames": 7},
    {"frames": 8, "pack_tokens": 700, "size": [32, 32], "stride": 1, "window": 8, "caption": "short"},
]
TOWER = {**conversations.VISION, "hidden_size": 24, "num_attention_heads": 2}
VALUES: dict[str, list[Any]] = {  # of keys whose type tells no other value
    "out": ["elsewhere"],
    "extensions": [["json"]],
    "model.kind": ["video_dit", "video_lm"],
    "model.text.kind": ["other"],
    "model.attention.*.kind": ["spatial", "full"],
    "optimizer.kind": ["other"],
    "codec.kind": ["pixel", "diffusers"],
    "objective.kind": ["rectified_flow", "next_token", "video_text"],
    "data.dataset": ["elsewhere"],
    "data.segments.*.dataset": ["elsewhere"],
    "codec.path": ["elsewhere"],
    "model.path": ["elsewhere"],
    "checkpoint.location": ["elsewhere"],
    "data.frames": [5, None],
    "data.segments.*.frames": [5],
    "data.size": [[24, 24], None],
    "data.segments.*.size": [[24, 24]],
    "data.window": [12],
    "data.segments.*.window": [12],
    "data.rope_scaling": [{"rope_theta": 1e6}],
    "data.segments.*.rope_scaling": [{"rope_theta": 1e6}],
    "data.segments.*.until": [3],
    "data.segments.*.stride": [2],
    "data.segments.*.pack_tokens": [800],
    "data.segments.*.max_positions": [512],
    "data.segments.*.timestamps": [True],
    "data.max_positions": [512],
    "model.language": [{**conversations.LANGUAGE, "intermediate_size": 48}],
    "model.vision": [TOWER],
    "model.freeze": [["vision"]],
    "model.patch": [[1, 4, 4]],
    "model.dim": [96],
    "model.heads": [2],
    "model.text.heads": [4],
    "model.text.dim": [48],
    "model.mlp_hidden": [200],
    "model.mlp_tiles": [4],
    "model.spatial_pool": [4],
    "model.mask.window": [40],
    "model.mask.chunk": [40],
    "objective.conditioning": [{"first_frame": 0.5}, {}],
    "objective.shift": [3.0, "tokens"],
    "objective.mask_ratio": [0.5],
    "objective.mask_token": [263],
    "optimizer.betas": [[0.8, 0.95]],
    "optimizer.ema": [0.9],
    "guard.spike_factor": [1e6],
    "checkpoint.keep_every": [3],
    "restart.collective_timeout_seconds": [600.0],
    "restart.hang_timeout_seconds": [600.0],
    "sample.sampler": ["heun"],
    "sample.prompts": [["a cat"]],
    "sample.frames": [4],
    "sample.size": [[16, 16]],
    "faults.*.step": [4],
    "faults.*.kind": ["pause"],
    "faults.*.rank": [1],
    "steps": [9, 5],
}


@dataclass(frozen=True)
class Case:
    """One key, changed alone.

    Attributes:
        key: with numbers in place of stars.
        of: the key of the schema.
        before: settings of a run that has it.
        value: another one for it.
    """

    key: str
    of: Key
    before: dict[str, Any]
    value: Any

    @property
    def now(self) -> dict[str, Any]:
        """The settings with the other value."""
        return placed(self.before, self.key, self.value)

    def __str__(self) -> str:
        return f"{self.key}={self.value}".replace(" ", "")[:60]


def cases(out: Path, clips: Path, spoken: Path) -> Iterator[Case]:
    """Every key of the schema with every other value that is tried; those of lists in their first and last element."""
    for key in keys():
        before = base(key, out, clips, spoken)
        for name in _numbered(key.name, before):
            was = _get(before, name)
            for value in VALUES.get(key.name) or _others(key.field.annotation, was):
                if value == was:
                    continue
                yield Case(name, key, before, value)
                if key.effect is Effect.RATE and name != "optimizer.schedule":
                    yield Case(name, key, placed(before, "optimizer.schedule", "cosine"), value)


def base(key: Key, out: Path, clips: Path, spoken: Path) -> dict[str, Any]:
    """Settings of a run that has the key."""
    name = key.name
    speaks = (
        key.section is VideoLMConfig
        or name.startswith("model.mask")
        or name.endswith((".rope_scaling", ".max_positions", ".timestamps"))
    )
    learned = next((n for n, objective in OBJECTIVES.items() if objective.config is key.section), None)
    if speaks or (learned is not None and OBJECTIVES[learned].family == "language"):
        kind = learned or "next_token"
        objective = {"kind": kind, **({"mask_token": 300} if kind == "masked_token" else {})}
        changes = conversations.settings(spoken, objective=objective)
    else:
        changes = {"data__dataset": str(clips)}
    if name.startswith("model.attention"):
        kind = key.section.model_fields["kind"].default
        changes["model__attention"] = [{"kind": kind, **PATTERNS.get(kind, {})}]
    if name.startswith("faults"):
        changes |= {"faults": FAULTS, "mesh": {"ring": 2}}
    if key.section is DiffusersCodecConfig:
        changes["codec"] = {"kind": "diffusers", "path": "vae"}
    settings = config(out, clips, steps=6, **changes).model_dump(mode="json")
    if name.startswith("data.segments"):
        first = {**SEGMENTS[0], **({"mesh": {"replica": 1}} if ".mesh." in name else {})}
        settings["data"]["segments"] = deepcopy([first, *([{"frames": 4}] if speaks else SEGMENTS[1:])])
    check(settings)
    return settings


def placed(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed."""
    copy = deepcopy(settings)
    *path, last = key.split(".")
    here: Any = copy
    for name in path:
        if isinstance(here, list):
            here = here[int(name)]
            continue
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
    here[last] = value
    return copy


def _get(settings: Any, key: str) -> Any:
    here = settings
    for name in key.split("."):
        here = here[int(name)] if isinstance(here, list) else (here or {}).get(name)
    return here


def _numbered(name: str, settings: dict[str, Any]) -> list[str]:
    """With the first and the last number in place of a star."""
    before, star, after = name.partition(".*.")
    if not star:
        return [name]
    last = len(_get(settings, before)) - 1
    return [f"{before}.{number}.{after}" for number in dict.fromkeys((0, last))]


def _others(annotation: Any, was: Any) -> list[Any]:
    """Other values of a type: every other choice, the other truth, a little more."""
    if isinstance(was, list) and was and all(isinstance(number, int) for number in was):
        return [[*was[:-1], was[-1] + 1]]
    if typing.get_origin(annotation) is typing.Literal:
        return [choice for choice in typing.get_args(annotation) if choice != was]
    options = typing.get_args(annotation) or (annotation,)
    for option in options:
        if typing.get_origin(option) is typing.Literal:
            return _others(option, was)
        if option is bool:
            return [not was]
        if option is int:
            return [(was or 0) + 1]
        if option is float:
            return [(was or 0.2) * 1.5]
    raise AssertionError(f"no other value is known for {annotation}: add one to VALUES in tests/support/keys.py")
