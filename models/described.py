"""Configs of transformers, from plain settings or from a folder; nothing is downloaded, no code of a folder runs."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from parallel.errors import InputError


def config_of(language: dict[str, Any], tower: dict[str, Any] | None) -> Any:
    """A transformers config of plain settings.

    Raises:
        InputError: transformers does not take them.
    """
    from transformers import AutoConfig

    rule = "a model is described as in config.json of transformers"
    for name, settings in (("language", language), ("vision", tower)):
        if settings is not None and "model_type" not in settings:
            raise InputError(rule, f"model.{name} has no model_type", f"model.{name}.model_type: llama")
    try:
        text = AutoConfig.for_model(**language)
        _refuse_unknown_keys("language", language, text)
        if tower is None:
            return text
        seen = AutoConfig.for_model(**tower)
        _refuse_unknown_keys("vision", tower, seen)
        return AutoConfig.for_model(
            "llava", text_config=text.to_dict(), vision_config=seen.to_dict(), image_token_id=text.vocab_size - 1,
            vision_feature_layer=-1, vision_feature_select_strategy="default" if _has_class(seen) else "full",
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(rule, f"{type(error).__name__}: {str(error)[:200]}", "see its page of transformers") from error


def read_config(path: Path) -> Any:
    """The transformers config of a folder; nothing is downloaded.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        found = f"{path}: {str(error).splitlines()[0][:200]}"
        raise InputError(
            "model.path is a folder as transformers saves it", found, "model.save_pretrained(FOLDER)"
        ) from error


def _has_class(tower: Any) -> bool:
    """Whether the tower has a token that is no patch."""
    return str(tower.model_type) == "clip_vision_model"


def _refuse_unknown_keys(name: str, settings: dict[str, Any], config: Any) -> None:
    known = set(type(config)().to_dict()) | {"model_type", "rope_theta", "rope_scaling"}
    for key in settings:
        if key not in known:
            near = get_close_matches(key, sorted(known), n=1, cutoff=0.0)
            raise InputError(f"every key of model.{name} is known", f"model.{name}.{key}", f"did you mean {near[0]}?")
