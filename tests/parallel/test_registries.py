"""Registries: one call adds an entry, names are checked, sections of a run take the class that their kind names."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from parallel.errors import InputError
from parallel.registries import OneOf, Registry


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Disc(Section):
    kind: Literal["disc"] = "disc"
    radius: int = 3


class Box(Section):
    kind: Literal["box"] = "box"
    sides: tuple[int, int]


SHAPES: Registry[type[Section]] = Registry("shape")
SHAPES.register("disc", Disc)


class Run(Section):
    shape: Annotated[Section, OneOf(SHAPES, lambda config: config)] = Disc()


def test_what_is_registered_later_can_be_chosen() -> None:
    SHAPES.register("box", Box) if "box" not in SHAPES else None
    run = Run.model_validate({"shape": {"kind": "box", "sides": [1, 2]}})
    assert run.shape == Box(sides=(1, 2))
    assert run.model_dump(mode="json") == {"shape": {"kind": "box", "sides": [1, 2]}}
    assert Run.model_validate(run.model_dump(mode="json")) == run
    assert OneOf(SHAPES, lambda config: config).classes() == [Disc, Box]


def test_no_kind_is_the_first_and_a_name_alone_has_its_defaults() -> None:
    assert Run.model_validate({"shape": {"radius": 5}}).shape == Disc(radius=5)
    assert Run.model_validate({"shape": "disc"}).shape == Disc()
    assert Run().shape == Disc()


@pytest.mark.parametrize("kind", ["disk", "dics", 5, None, ["disc"], ""])
def test_an_unknown_kind_names_the_nearest(kind: object) -> None:
    with pytest.raises(ValidationError, match=r"(?s)a shape is one of: disc.*did you mean (disc|box)\?"):
        Run.model_validate({"shape": {"kind": kind}})


def test_what_has_no_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"a shape is a kind, or a mapping with a kind"):
        Run.model_validate({"shape": 5})


def test_a_name_is_given_once() -> None:
    with pytest.raises(InputError, match=r"(?s)each shape has a name of its own.*'disc' twice"):
        SHAPES.register("disc", Box)
