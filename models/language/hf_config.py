"""Configs of transformers, from plain settings or from a folder; nothing is downloaded, no code of a folder runs."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from models.language.causal_lm import refuse_model_type
from models.language.towers import TOWERS, has_class_token, tell_transformers
from parallel.errors import InputError
from parallel.hf_folder import from_folder

ROPE_KEYS = (
    "rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
    "beta_slow", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim",
    "partial_rotary_factor", "truncate",
)  # fmt: skip


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
        refuse_model_type(text)
        _refuse_unknown_keys("language", language, text)
        if tower is None:
            return text
        tell_transformers()
        seen = AutoConfig.for_model(**tower)
        if seen.model_type not in TOWERS:
            known = ", ".join(TOWERS)
            raise InputError(f"a vision tower is one of: {known}", seen.model_type, next(iter(TOWERS)))
        _refuse_unknown_keys("vision", tower, seen)
        return AutoConfig.for_model(
            "llava", text_config=text.to_dict(), vision_config=seen.to_dict(), image_token_id=text.vocab_size - 1,
            vision_feature_layer=-1, vision_feature_select_strategy="default" if has_class_token(seen) else "full",
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # each config of transformers, and each version of it, says no in its own way
        told = " ".join(str(error).split())[:200]
        raise InputError(rule, f"{type(error).__name__}: {told}", "see its page of transformers") from error


def read_config(path: Path) -> Any:
    """The transformers config of a folder; nothing is downloaded.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig

    if not path.is_dir():
        rule = "model.path is a folder as transformers saves it"
        raise InputError(rule, f"{path}: no such folder", "model.save_pretrained(FOLDER)")
    tell_transformers()
    try:
        return from_folder(AutoConfig, path)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        found = f"{path}: {str(error).splitlines()[0][:200]}"
        raise InputError(
            "model.path is a folder as transformers saves it", found, "model.save_pretrained(FOLDER)"
        ) from error


def refuse_impossible(text: Any) -> None:
    """A language model that can be built.

    Raises:
        InputError: it has no layers, no words, heads that do not divide, an unknown activation or rotary type.
    """
    from transformers.activations import ACT2FN

    rule = "a language model can be built"
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        if getattr(text, name) < 1:
            raise InputError(rule, f"{name}: {getattr(text, name)}", f"{name} of 1 or more")
    if text.num_attention_heads % text.num_key_value_heads:
        found = f"{text.num_attention_heads} heads, num_key_value_heads: {text.num_key_value_heads}"
        raise InputError(rule, found, "num_key_value_heads that divide num_attention_heads")
    if text.hidden_act not in ACT2FN:
        raise InputError(rule, f"hidden_act: {text.hidden_act}", "silu")
    refuse_rope(text.rope_parameters)


def refuse_rope(rope: Mapping[str, Any]) -> None:
    """Rotary frequencies that transformers knows.

    Raises:
        InputError: it does not.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rule = "rotary frequencies are described as in rope_parameters of transformers"
    for key in rope:
        if key not in ROPE_KEYS:
            near = get_close_matches(key, ROPE_KEYS, n=1, cutoff=0.0)
            raise InputError(rule, f"rope.{key}", f"did you mean {near[0]}?")
    kind = rope.get("rope_type", "default")
    if kind not in ("default", *ROPE_INIT_FUNCTIONS):
        raise InputError(rule, f"rope_type: {kind}", f"one of default, {', '.join(ROPE_INIT_FUNCTIONS)}")
    for key in ("rope_theta", "factor"):
        value = rope.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError(rule, f"{key}: {value!r}", f"{key} above 0")
    if kind not in ("default", "proportional") and "factor" not in rope:
        raise InputError(rule, f"rope_type: {kind} without a factor", "add factor: 2.0, or what it was trained with")


def _refuse_unknown_keys(name: str, settings: dict[str, Any], config: Any) -> None:
    known = set(type(config)().to_dict()) | {"model_type", "rope_theta", "rope_scaling"}
    for key in settings:
        if key not in known:
            near = get_close_matches(key, sorted(known), n=1, cutoff=0.0)
            raise InputError(f"every key of model.{name} is known", f"model.{name}.{key}", f"did you mean {near[0]}?")
