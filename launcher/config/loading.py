"""Loading a run: one YAML file and overrides become a checked `RunConfig` before anything starts.

    config = load(Path("recipes/quickstart.yaml"), ["steps=20", "mesh.ring=2"])

Every mistake is an InputError with a rule, the value with its file and line, and a remedy; an unknown key names the
nearest known one. Nothing else in the project reads YAML, environment variables or command-line flags for settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from launcher.config.config_errors import KNOWN, first_mistake, refuse_unknown, written_at
from launcher.config.extensions import absolute, import_extensions
from launcher.config.run_config import RunConfig, paths_of
from launcher.config.run_yaml import DEEPEST, parse_yaml, read_run, refuse_odd_path
from parallel.errors import InputError
from parallel.parsing import shorter

OF_A_KIND = ("model", "objective", "codec", "optimizer")  # sections whose kind alone may stand for them


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked run of a YAML file, with `key=value` overrides on top.

    Raises:
        InputError: no such file, no YAML, an unknown key, a wrong type, a value out of range.
    """
    settings, places = parse_yaml(read_run(path), str(path))
    if not isinstance(settings, dict):
        found = f"{path}: {shorter(settings)}"
        raise InputError("a run is a mapping of keys to values", found, "see recipes/ for examples")
    lines = {key: f"{path}, line {line}" for key, line in places.items()}
    for override in overrides:
        key, value = parse_override(override)
        _set(settings, key, value)
        lines[key] = f"command line, {override}"
    if "extensions" in settings:
        settings["extensions"] = absolute(settings["extensions"], path.absolute().parent)
    return check(settings, lines)


def load_stored(path: Path) -> RunConfig:
    """The resolved run that a run folder holds.

    Raises:
        InputError: it is damaged, or an earlier version wrote it with other keys.
    """
    try:
        return load(path)
    except InputError as error:
        if error.rule != KNOWN:
            raise
        remedy = f"train it anew: longreel train RUN.yaml out=ANOTHER_FOLDER ({error.remedy})"
        raise InputError("a run folder must be of this version", error.value, remedy) from None


def parse_override(override: str) -> tuple[str, Any]:
    """`a.b=value` as key and YAML value."""
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")) or key.count(".") > DEEPEST:
        raise InputError("an override is key=value", shorter(override), "for example steps=20 or mesh.ring=2")
    if not value.strip():
        raise InputError("an override has a value", shorter(override), f"{key}=VALUE, or {key}=null for none")
    return key, parse_yaml(value, shorter(override), "the value of an override is YAML")[0]


def check(settings: Mapping[str, Any], lines: Mapping[str, str] | None = None) -> RunConfig:
    """The run of a plain mapping, its extensions imported first; `lines` says where each dotted key was written."""
    lines = lines or {}
    import_extensions(settings.get("extensions", ()))
    refuse_unknown(settings, lines)
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise first_mistake(error, lines) from None
    for key, path in paths_of(config):
        refuse_odd_path(key, path, written_at(key, lines))
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved run as YAML that `load` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    here = settings
    for name in path:
        inner = here.setdefault(name, {})
        if isinstance(inner, str) and here is settings and name in OF_A_KIND:
            inner = here[name] = {"kind": inner}
        elif not isinstance(inner, dict):
            inner = here[name] = {}
        here = inner
    here[last] = value
