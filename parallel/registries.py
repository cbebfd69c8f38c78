"""Registries: what a run may choose by name, and the one call that adds to the choice.

    OPTIMIZERS: Registry[OptimizerSpec] = Registry("optimizer")      beside the code that asks it
    OPTIMIZERS.register("lion", OptimizerSpec(LionConfig, ...))      in the file of the new one
    optimizer: Annotated[Base, OneOf(OPTIMIZERS, config_of)]         a section of a run: `kind` chooses its class

An entry is asked for what it can do and is never tested for its type. A registry grows while modules are imported, and
a run imports the modules of its own that it names, so every process of a run has the same entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from parallel.errors import InputError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names and what they stand for, in the order of registration; the first is the default.

    Args:
        noun: what the entries are, for errors: "optimizer".
        key: of a run that chooses one; the noun if not given.
    """

    def __init__(self, noun: str, key: str | None = None) -> None:
        self.noun, self.key = noun, key or noun
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add an entry.

        Raises:
            InputError: another entry has this name.
        """
        if name in self._entries:
            raise InputError(f"each {self.noun} has a name of its own", f"{name!r} twice", "choose another name")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """The entry of a name.

        Raises:
            InputError: there is none; the remedy is the nearest one.
        """
        if name not in self:
            near = get_close_matches(name, self._entries, n=1, cutoff=0.0) if isinstance(name, str) else [*self][:1]
            article = "an" if self.noun[0] in "aeiou" else "a"
            rule = f"{article} {self.noun} is one of: {', '.join(self._entries)}"
            raise InputError(rule, f"kind: {name}", f"did you mean {near[0]}?" if near else "register it")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class OneOf:
    """Mark of a section whose `kind` names an entry of a registry, for `Annotated[Base, OneOf(registry, config_of)]`.

    A name alone is a kind with its defaults: `objective: rectified_flow`. No kind means the first entry. The registry
    is read when a value is checked, so entries that were registered later count.

    Args:
        registry: of the kinds.
        config_of: the pydantic class of an entry's settings.
    """

    def __init__(self, registry: Registry[Any], config_of: Callable[[Any], type[BaseModel]]) -> None:
        self.registry, self.config_of = registry, config_of

    def classes(self) -> list[type[BaseModel]]:
        """The settings of every kind that there is now."""
        return [self.config_of(entry) for entry in self.registry.values()]

    def check(self, value: Any) -> BaseModel:
        """A value as the settings of its kind.

        Raises:
            InputError: no such kind, or nothing that has a kind.
        """
        if isinstance(value, BaseModel):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        noun, key, first = self.registry.noun, self.registry.key, next(iter(self.registry))
        if not isinstance(value, dict):
            article = "an" if noun[0] in "aeiou" else "a"
            rule, remedy = (
                f"{article} {noun} is a kind, or a mapping with a kind",
                f"{key}={first}, or {key}.kind and its other keys",
            )
            raise InputError(rule, repr(value), remedy)
        return self.config_of(self.registry[value.get("kind", first)]).model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(_dumped, info_arg=True)
        return core_schema.no_info_plain_validator_function(self.check, serialization=shown)


def _dumped(section: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
    """All fields of the section's own class, whatever class the field was declared with."""
    return section.model_dump(mode=info.mode, exclude_unset=info.exclude_unset, exclude_defaults=info.exclude_defaults)
