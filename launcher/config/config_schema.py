"""The keys of a run, each with what it does to a begun run to change it: read from the settings' own classes.

    RunConfig.model_fields --keys--> Key("model.depth", Effect.STATE, ...)          of the schema, for docs and tests
    settings as JSON -----leaves--> Leaf("model.depth", Effect.STATE, 12)           of one run, defaults filled in

Settings are read by their classes, but not validated: those of a checkpoint are older than today's rules, and may name
folders that have moved.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from launcher.config.run_config import RunConfig
from parallel.registries import OneOf
from parallel.setting_effects import Effect


@dataclass(frozen=True)
class Key:
    """A key of the schema.

    Attributes:
        name: with dots; a number in a list of sections is "*".
        section: that declares it.
        field: as pydantic knows it.
        effect: that is declared; None if nobody did.
    """

    name: str
    section: type[BaseModel]
    field: FieldInfo
    effect: Effect | None


@dataclass(frozen=True)
class Leaf:
    """A setting of a run, as JSON."""

    key: str
    effect: Effect
    value: Any


def keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key below a section; those of each kind of model and objective."""
    for name, field in section.model_fields.items():
        inner = sections_of(field)
        if not inner:
            yield Key(prefix + name, section, field, _declared(field))
        for each in inner:
            yield from keys(each, f"{prefix}{name}.*." if is_list(field) else f"{prefix}{name}.")


def leaves(settings: Mapping[str, Any], section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Leaf]:
    """Every setting of a run, with the default of each that is not there; keys that nobody knows any more are left out.

    Args:
        settings: of the section, as JSON.
        section: that knows them.
        prefix: of their names.
    """
    for name, field in section.model_fields.items():
        value = settings[name] if name in settings else _default(field)
        inner = sections_of(field)
        if inner and isinstance(value, Mapping):
            yield from leaves(value, _kind_of(inner, value), f"{prefix}{name}.")
        elif inner and isinstance(value, list):
            for number, each in enumerate(value):
                yield from leaves(each, _kind_of(inner, each), f"{prefix}{name}.{number}.")
        elif not inner:
            effect = _declared(field)
            assert effect is not None, f"{prefix}{name} declares no effect: see parallel/setting_effects.py"
            yield Leaf(prefix + name, effect, value)


def sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Classes of settings that a field may have: of each kind of a registry, or those inside its type."""
    return _of_marks(field.metadata) or _inside(field.annotation)


def _inside(annotation: Any) -> list[type[BaseModel]]:
    """Classes of settings inside a type: X, X | Y | None, tuple[X, ...], Annotated[X, ...], those of a `OneOf`."""
    if found := _of_marks(getattr(annotation, "__metadata__", ())):
        return found
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inside in typing.get_args(annotation) for section in _inside(inside)]


def _of_marks(marks: Iterable[Any]) -> list[type[BaseModel]]:
    """Classes of settings of each kind of a registry that is marked."""
    return [section for mark in marks if isinstance(mark, OneOf) for section in mark.classes()]


def is_list(field: FieldInfo) -> bool:
    """Whether it has several sections of one kind."""
    return typing.get_origin(field.annotation) is tuple


def _declared(field: FieldInfo) -> Effect | None:
    found = [mark for mark in field.metadata if isinstance(mark, Effect)]
    return found[0] if len(found) == 1 else None


def _default(field: FieldInfo) -> Any:
    return None if field.default is PydanticUndefined else to_jsonable_python(field.default)


def _kind_of(sections: list[type[BaseModel]], settings: Mapping[str, Any]) -> type[BaseModel]:
    """Of several, the one whose `kind` the settings have; the first without a word."""
    if len(sections) > 1:
        for section in sections:
            if settings.get("kind") == section.model_fields["kind"].default:
                return section
    return sections[0]
