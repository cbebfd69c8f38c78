"""Options that come from dataclasses: in the order of their fields, with their defaults, and each declared once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from data.curation.clips import CutOptions
from data.curation.filters import Filters
from launcher.cli.options import with_options
from launcher.cli.prepare import CutArguments, FilterArguments, PrepareArguments


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, typer.Option(min=1, help="In pixels.")] = 8


@dataclass(frozen=True)
class Outer:
    colour: Annotated[str, typer.Option(help="Of it.")] = "red"
    inner: Inner = Inner()
    tiled: Annotated[bool, typer.Option("--tiled", help="In tiles.")] = False


def command_of(told: list[object]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_options
    def paint(where: Annotated[str, typer.Argument()], how: Outer = Outer(), times: int = 1) -> None:
        """Paint it."""
        told.append((where, how, times))

    return app


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["wall"], ("wall", Outer(), 1)),
        (["wall", "--size", "3", "--tiled", "--times", "2"], ("wall", Outer("red", Inner(3), True), 2)),
        (["wall", "--colour", "blue"], ("wall", Outer("blue"), 1)),
    ],
)
def test_fields_become_options_and_come_back_as_the_dataclass(typed, expected):
    told: list[object] = []
    assert CliRunner().invoke(command_of(told), typed).exit_code == 0
    assert told == [expected]


def test_options_stand_where_their_dataclass_stands():
    said = CliRunner().invoke(command_of([]), ["--help"]).output
    places = [said.index(name) for name in ("--colour", "--size", "--tiled", "--times")]
    assert places == sorted(places)
    assert "Paint it." in said
    assert CliRunner().invoke(command_of([]), ["wall", "--size", "0"]).exit_code == 2, "limits of an option hold"


def test_an_option_that_stands_twice_is_refused():
    def paint(how: Outer = Outer(), colour: str = "red") -> None:
        pass

    with pytest.raises(TypeError, match="paint: an option stands twice"):
        with_options(paint)


def test_options_of_prepare_are_those_of_the_data():
    assert FilterArguments().filters() == Filters()
    assert CutArguments().options() == CutOptions()
    assert [one.name for one in fields(FilterArguments)] == [one.name for one in fields(Filters)]
    assert [one.name for one in fields(CutArguments)] == [one.name for one in fields(CutOptions)]
    assert CutArguments(sizes="480x832, 832X480").options().sizes == ((480, 832), (832, 480))
    assert PrepareArguments(limit=3).options().limit == 3
