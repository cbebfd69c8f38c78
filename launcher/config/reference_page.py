"""docs/settings.md: the configuration reference, written from the settings' own classes, so that it cannot drift.

python -m launcher.config.reference_page > docs/settings.md

Meaning and unit come from the class's docstring, type and default from pydantic, the effect on a begun run from the
word around the type (`parallel/setting_effects.py`).
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from launcher.config.config_schema import Key, keys
from parallel.setting_effects import Effect

HEAD = """\
# Configuration reference

A run is one YAML file; every key may also be given on the command line as `key=value`, such as `mesh.ring=2`. This page
is written from the code: `python -m launcher.config.reference_page > docs/settings.md`. Units stand in brackets.

The column "changed on resume" says what a run that has begun does with another value of the key:

| changed on resume | when you rerun the command with another value |
| --- | --- |
"""
RESUMES = {
    Effect.STATE: "the resume is refused: set it back, or start another run with `out=FOLDER`",
    Effect.CONTENT: "the resume continues if the same content is at the other path; another content is refused",
    Effect.DATA: "refused in a segment that has begun, with the `data.segments=[...]` that changes it from here on",
    Effect.NUMBERS: "the resume continues and says so; steps that are repeated are not compared",
    Effect.UPDATE: "the resume continues and says so; the first repeated step is compared, later ones are not",
    Effect.RATE: "the resume continues and prints both learning rates if they differ; steps of equal rate are compared",
    Effect.ROUNDING: "the resume continues and says so; repeated steps are compared to the tolerance of the dtype",
    Effect.MEMORY: "the resume continues and says so; repeated steps are compared bit for bit",
    Effect.NOTHING: "the resume continues; repeated steps are compared bit for bit",
}
WORDS = {
    Effect.STATE: "refused",
    Effect.CONTENT: "same content only",
    Effect.DATA: "new segment only",
    Effect.NUMBERS: "other losses",
    Effect.UPDATE: "other updates",
    Effect.RATE: "other learning rate",
    Effect.ROUNDING: "rounding",
    Effect.MEMORY: "memory and speed",
    Effect.NOTHING: "free",
}
NAMES = {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path", type(None): "null"}
COLUMNS = "| key | type | default | meaning | changed on resume |\n| --- | --- | --- | --- | --- |\n"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole of it."""
    parts = [HEAD + "".join(f"| {WORDS[effect]} | {RESUMES[effect]} |\n" for effect in Effect)]
    groups: dict[tuple[str, type[BaseModel]], list[Key]] = {}
    for key in keys():
        of_section = groups.setdefault((_title(key), key.section), [])
        if key.name not in (one.name for one in of_section):  # several models may have the same section
            of_section.append(key)
    for (title, section), keys_of in groups.items():
        meanings = _meanings(section)
        parts.append(f"## {title}\n\n{_summary(section)}\n\n{COLUMNS}")
        for key in keys_of:
            assert key.effect is not None, f"{key.name} declares no effect"
            name = key.name.replace(".*.", "[].")
            cells = (_type(key.field), _default(key.field), meanings[name.rpartition(".")[2]], WORDS[key.effect])
            parts[-1] += f"| `{name}` | {' | '.join(cells)} |\n"
    return "\n".join(parts)


def _title(key: Key) -> str:
    """The section of a key, with its kind if it is one of several."""
    section = key.name.rpartition(".")[0].replace(".*", "[]")
    kind = key.section.model_fields.get("kind")
    named = kind is not None and len(typing.get_args(kind.annotation)) == 1
    return f"{section}, kind: {kind.default}" if named and kind is not None else section or "The run itself"


def _summary(section: type[BaseModel]) -> str:
    return (inspect.getdoc(section) or "").partition("\n\n")[0].replace("\n", " ")


def _meanings(section: type[BaseModel]) -> dict[str, str]:
    """What each field is, from the docstrings of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        for names, meaning in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", text, re.M):
            words = " ".join(meaning.split()).replace("|", "\\|")
            found.update(
                dict.fromkeys(names.split(", "), words if "_" in words.split()[0] else words[:1].upper() + words[1:])
            )
    return {"kind": "Name of the entry.", **found}


def _type(field: FieldInfo) -> str:
    """Such as `integer ≥ 1, or null`."""
    bounds = [f" {sign} {bound}" for mark in field.metadata for bound, sign in _bounds(mark)]
    kinds = list(dict.fromkeys(_kinds(field.annotation)))
    null = ["null"] if "null" in kinds else []
    others = [kind for kind in kinds if kind != "null"]
    return " or ".join(others) + "".join(bounds) + "".join(f", or {one}" for one in null)


def _bounds(mark: Any) -> Iterator[tuple[Any, str]]:
    for name, sign in BOUNDS.items():
        if getattr(mark, name, None) is not None:
            yield getattr(mark, name), sign


def _kinds(annotation: Any) -> Iterator[str]:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        yield " or ".join(f"`{choice}`" for choice in inside)
    elif origin in (typing.Union, types.UnionType):
        for one in inside:
            yield from _kinds(one)
    elif origin is typing.Annotated:
        yield from _kinds(inside[0])
    elif origin is tuple:
        listed = [next(_kinds(one)) for one in inside if one is not Ellipsis]
        yield f"list of {listed[0]}" if Ellipsis in inside else f"[{', '.join(listed)}]"
    elif origin is dict:
        yield "mapping"
    else:
        yield NAMES.get(annotation, "text")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else "empty"
    value = to_jsonable_python(field.default)
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


if __name__ == "__main__":
    print(page(), end="")
