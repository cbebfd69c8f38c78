"""Options of a command from dataclasses: `with_options` spells out the fields of each parameter that is one.

    @with_options
    def needle(run: ..., haystacks: Haystacks, json_: Json = False)     -->     RUN --lengths --depths ... --json

A field is declared as a parameter of a command is, `Annotated` with its `typer.Option`, and stands in the help where
the parameter stands. So options that belong together are named, checked and handed on as one value, and declared once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from parallel.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text.")]
DATASET_HELP = "Dataset folder, as longreel prepare or longreel data import wrote it."
RUN_HELP = "Run, a YAML file; see recipes/."


def reflow(app: typer.Typer) -> None:
    """Take the line breaks inside paragraphs out of the help of every command: a terminal has its own width."""
    for command in app.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(one.split()) for one in paragraphs)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one parameter for each field of its parameters that are dataclasses.

    Args:
        command: whose parameters that are no dataclass stay as they are.

    Raises:
        TypeError: two fields, or a field and a parameter, have one name.
    """
    hints = get_type_hints(command, include_extras=True)
    shown = [one for given in inspect.signature(command).parameters.values() for one in _spelled(given, hints)]
    names = [one.name for one in shown]
    if len(set(names)) < len(names):
        raise TypeError(f"{command.__name__}: an option stands twice: {sorted(names)}")

    @wraps(command)
    def spelled(**given: Any) -> None:
        command(**{name: _made(hints[name], name, given) for name in inspect.signature(command).parameters})

    del spelled.__wrapped__  # typer would look at its parameters
    spelled.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    spelled.__annotations__ = {one.name: one.annotation for one in shown}
    return spelled


def _spelled(given: inspect.Parameter, hints: Mapping[str, Any]) -> Iterator[inspect.Parameter]:
    """The parameter, or one for each field of its dataclass and of those in it."""
    kind = hints[given.name]
    if not is_dataclass(kind):
        yield given.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        return
    inside = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        one = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
        yield from _spelled(one, inside)


def _made(kind: Any, name: str, given: Mapping[str, Any]) -> Any:
    """The value of a parameter, or its dataclass from the values of its fields."""
    if not is_dataclass(kind):
        return given[name]
    inside = get_type_hints(kind, include_extras=True)
    assert isinstance(kind, type)
    return kind(**{field.name: _made(inside[field.name], field.name, given) for field in fields(kind)})


def frame_size(text: str, dataset: Path | None = None) -> tuple[int, int]:
    """Pixels; `dataset` has sizes that may be proposed."""
    from data.dataset.index import Index

    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        usual = Index.open(dataset).usual_size if dataset is not None else None
        remedy = f"--size {usual[0]}x{usual[1]}" if usual else "--size 256x256"
        raise InputError("a size is HEIGHTxWIDTH", f"--size {text}", remedy)
    return int(height), int(width)
