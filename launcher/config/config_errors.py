"""Mistakes in the settings of a run: the rule, the place, and the key that was meant."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from launcher.config.config_schema import is_list, sections_of
from launcher.config.foreign_keys import meaning_of, value_of
from launcher.config.run_config import RunConfig
from launcher.config.run_yaml import LONGEST_NAME
from parallel.errors import InputError
from parallel.parsing import shorter

EXAMPLES = {  # of keys without a default that shows their kind
    "out": "runs/mine",
    "steps": "100",
    "data.dataset": "datasets/mine",
    "data.frames": "16",
    "data.size": "[32,32]",
    "model.patch": "[1,4,4]",
    "faults": "[{kind: kill, rank: 1, step: 8}]",
    "sample.frames": "16",
    "sample.size": "[32,32]",
}


KNOWN = "every key of a run is known"
MOST_TOLD = 4  # keys of a section that is none


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a run."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for inner in _sections_of(field):
            keys += [key for key in known_keys(inner, f"{prefix}{name}.") if key not in keys]
    return keys


def refuse_unknown(settings: Mapping[str, Any], lines: Mapping[str, str]) -> None:
    """Raises InputError of the first key that no section has, with the key that was probably meant."""
    known = known_keys()
    for key in _keys(settings, ""):
        if key in known:
            continue
        if any(key.startswith(k + ".") and k in known and not any(o.startswith(k + ".") for o in known) for k in known):
            continue  # below a plain value: pydantic says what is wrong with the type
        found, is_word = f"{shorter(key)[1:-1]} ({written_at(key, lines)})", len(key) <= LONGEST_NAME
        inner = _value(settings, key)
        told = _meant_section(key, inner, known) if is_word and isinstance(inner, Mapping) else None
        remedy = told or (_meant(key, known) if is_word else "see docs/ for the keys of a run")
        raise InputError(KNOWN, found, remedy)


def _value(settings: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted key; None if that is no key of mappings of words."""
    here: Any = settings
    for name in key.split("."):
        here = here.get(name) if isinstance(here, Mapping) else None
    return here


def _meant_section(key: str, inner: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """Of an unknown section: the one that is spelled alike, or what its keys are here; None if nobody knows."""
    sections = list(dict.fromkeys(one.rpartition(".")[0] for one in known if "." in one))
    near = difflib.get_close_matches(key, sections, n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}?"
    meanings = {str(name): meaning_of(str(name)) for name in inner if len(str(name)) <= LONGEST_NAME}
    lasts = {one.rpartition(".")[2]: one for one in reversed(known)}
    found = [
        f"{name} is {meaning or lasts.get(name)}" for name, meaning in meanings.items() if meaning or name in lasts
    ]
    return f"there is no such section; {'; '.join(found[:MOST_TOLD])}" if found else None


def _meant(key: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown key: what other systems call so, the nearest one, or those that there are."""
    near, meaning = nearest_key(key, known), meaning_of(key)
    if meaning is not None and not (near and near.endswith(f".{key.rpartition('.')[2]}")):
        return f"here it is {meaning}" if meaning.keys else meaning.why
    if near is not None:
        return f"did you mean {near}?"
    section = key.rpartition(".")[0]
    there = [k for k in known if k.rpartition(".")[0] == section] or [k for k in known if "." not in k]
    return f"leave it out; there {'is' if len(there) == 1 else 'are'} {', '.join(there)}"


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The key that was probably meant: of the same last name, or spelled alike; None if none is."""
    section, _, last = key.rpartition(".")
    same = [k for k in known if k.rpartition(".")[2] == last]
    if same:
        return max(same, key=lambda k: (k.startswith(f"{section}."), -k.count(".")))
    inside = [k for k in known if section and k.rpartition(".")[0] == section]
    others = [k for k in known if k != section]
    for names in (inside, others):
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
        if near:
            return near[0]
    lasts = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in known], n=1, cutoff=0.7)
    return next((k for k in known if lasts and k.rpartition(".")[2] == lasts[0]), None)


def first_mistake(error: ValidationError, lines: Mapping[str, str]) -> InputError:
    """What pydantic refused first, as rule, value with its place, and remedy."""
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    known = known_keys()
    while "." in key and key not in known:  # below it pydantic names the kinds that a value may have
        key = key.rpartition(".")[0]
    where = written_at(key, lines)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if isinstance(inner, InputError):
        return InputError(inner.rule, f"{inner.value} ({where}){more}" if key else inner.value + more, inner.remedy)
    if first["type"] in ("model_type", "model_attributes_type"):
        inside = [k for k in known if k.startswith(key + ".")]
        found = f"{shorter(first['input'])} ({where}){more}"
        return InputError(f"{key} has keys of its own", found, f"give {', '.join(inside)}")
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing" and not field.endswith(key):
        rule, found = f"each of {key} has {first['loc'][-1]}", f"{shorter(first['input'])} ({where}){more}"
        return InputError(rule, found, f"for example {key}={_example(key)}")
    if first["type"] == "missing" and key in known_keys():
        return InputError(f"a run has {key}", f"no such key{more}", f"add it, or give {key}=VALUE")
    if first["type"] == "extra_forbidden" and (kinds := _kinds_with(key)):
        section = key.partition(".")[0]
        rule = f"{key} is a key of {section}.kind={' and '.join(kinds)}"
        return InputError(rule, f"{first['input']!r} ({where}){more}", f"{section}.kind={kinds[0]}, or leave {key} out")
    rule, remedy = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}", f"for example {key}={_example(key)}"
    meant = value_of(key, first["input"])
    return InputError(rule, f"{shorter(first['input'])} ({where}){more}", f"{meant}; {remedy}" if meant else remedy)


def _kinds_with(key: str) -> list[str]:
    """Kinds of a section, such as of models, that have a key which the kind that was given has not."""
    section, _, name = key.partition(".")
    field = RunConfig.model_fields.get(section)
    kinds = [each for each in (_sections_of(field) if field else []) if "kind" in each.model_fields]
    return [str(kind.model_fields["kind"].default) for kind in kinds if name in kind.model_fields and len(kinds) > 1]


def written_at(key: str, lines: Mapping[str, str]) -> str:
    """Where a key, or else the last one below it, was written."""
    below = [lines[k] for k in lines if key and k.startswith(key + ".")]
    return lines.get(key) or (below[-1] if below else "settings")


def _example(key: str) -> str:
    """A value of the right kind: the default, the first choice, or the kind's name."""
    section: type[BaseModel] = RunConfig
    parts = key.split(".")
    last = parts[-1]
    for name, after in pairwise(parts):
        having = [s for s in _sections_of(section.model_fields[name]) if after in s.model_fields]
        if not having:
            return "VALUE"
        section = having[0]
    field = section.model_fields.get(last)
    if field is None:
        return "VALUE"
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
    if choices:
        return f"{choices[0]} (one of {', '.join(map(str, choices))})"
    if isinstance(field.default, bool | int | float | str):
        return str(field.default)
    for inner in _sections_of(field):
        return "{" + f"{next(iter(inner.model_fields))}: ..." + "}"
    return EXAMPLES.get(key, "VALUE")


def _sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Sections that have keys with dots: those in lists have none."""
    return [] if is_list(field) else sections_of(field)


def _keys(settings: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
