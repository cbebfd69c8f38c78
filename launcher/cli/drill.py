"""The command `longreel drill`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.table import Table
from rich.text import Text

from launcher.cli.options import RUN_HELP, Json
from launcher.core.terminal import Console
from parallel import shell
from parallel.errors import InputError

if TYPE_CHECKING:
    from launcher.analysis.fault_drill import Result


def drill(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, such as mesh.ring=2.")] = None,
    faults: Annotated[
        str, typer.Option(help="Faults to inject, separated by commas; the usual ones if not given.")
    ] = "",
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 12,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs; OUT-drill beside the run's own if not given.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Start ranks as Ray actors, or as local processes.")
    ] = True,
    address: Annotated[str | None, typer.Option(help="host:port of a Ray head; a local Ray if not given.")] = None,
    json_: Json = False,
) -> None:
    """Rehearse failures on a short copy of a run; print which it survives, how fast it recovers, what it loses.

    The copy trains on the run's own data (read only), with its mesh and settings, for a few steps, in a folder of its
    own: once undisturbed, and once per fault. Exit code 1 if a fault was not survived.

    Faults: kill, pause (SIGSTOP), cut (a rank's connections), tear (kill within a checkpoint write), full (disk),
    driver (kills the command), terminate (SIGTERM), flip (a bit of a checkpoint); raise and slow only on request.

    Example: longreel drill recipes/quickstart.yaml --no-ray --faults kill,tear
    """
    from launcher.analysis.fault_drill import USUAL, plan
    from launcher.analysis.fault_drill import drill as go
    from launcher.config.loading import load
    from launcher.supervision.run import absolute

    if address is not None and not ray:
        raise InputError("--address is for Ray", f"--no-ray --address {address}", "leave one of them out")
    config = absolute(load(run, overrides or []))
    kinds = [kind.strip() for kind in faults.split(",")] if faults else list(USUAL)
    flags = ["--ray", "--address", address] if address is not None else ["--ray" if ray else "--no-ray"]
    folder = (out or config.out.with_name(f"{config.out.name}-drill")).absolute()
    planned = plan(config, folder, kinds, steps, flags)
    console = Console(stderr=json_)
    with DrillProgress(console, len(planned.faults), steps) as progress:
        seconds, results = go(planned, progress.step, progress.result)
    survived = sum(result.survived for result in results)
    if json_:
        told = {"out": str(folder), "undisturbed_seconds": seconds, "survived": survived, "of": len(results)}
        print(json.dumps({**told, "faults": [asdict(r) for r in results]}))
    else:
        console.print(table(results))
        console.print("seconds: from the strike to the next new step; again: steps that were done again", style="dim")
        console.print(notes(results))
        took = f"undisturbed, {steps} steps took {seconds:.1f} s; runs: {folder}"
        console.print(f"{survived} of {len(results)} survived; {took}", markup=False, highlight=False, soft_wrap=True)
        for result in results:
            if not result.survived:
                console.print(
                    f"next: longreel why {shell.quote(str(folder / result.fault))}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    raise typer.Exit(0 if survived == len(results) else 1)


class DrillProgress:
    """What is being run: a line that changes on a terminal, a line for each result in a log."""

    def __init__(self, console: Console, faults: int, steps: int) -> None:
        self.console, self.faults, self.steps, self.done = console, faults, steps, 0
        self.status = console.status("undisturbed")

    def step(self, kind: str, step: int) -> None:
        """A run has done `step`."""
        self.status.update(f"{self.done} of {self.faults} faults done; {kind}: step {step} of {self.steps}")

    def result(self, result: Result) -> None:
        """A fault is done."""
        self.done += 1
        words = "survived" if result.survived else f"not survived: {result.note}"
        if not self.console.is_terminal:
            said = f"{self.done} of {self.faults}: {result.fault} {words}"
            self.console.print(said, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.stop()


def table(results: Sequence[Result]) -> Table:
    """For a person, in 80 columns."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("fault", "where", "survived"):
        made.add_column(name, no_wrap=True)
    made.add_column("seconds", justify="right", no_wrap=True)
    made.add_column("again", justify="right", no_wrap=True)
    made.add_column("losses", no_wrap=True)
    for result in results:
        made.add_row(
            result.fault,
            f"{who(result)}, step {result.step}, {result.phase}",
            Text("yes", style="green") if result.survived else Text("no", style="bold red"),
            "" if result.seconds is None else f"{result.seconds:.1f}",
            "" if result.steps_again is None else str(result.steps_again),
            _losses(result),
        )
    return made


def notes(results: Sequence[Result]) -> Table:
    """What was done, and what else there is to say."""
    from launcher.analysis.fault_drill import WORDS

    made = Table.grid(padding=(0, 2))
    for result in results:
        said = f"{WORDS[result.fault]}{': ' if result.note else ''}{result.note}"
        made.add_row(Text(result.fault, style="dim"), Text(said, style="dim"))
    return made


def who(result: Result) -> str:
    """Whom it struck."""
    if result.rank is not None:
        return f"rank {result.rank}"
    return "file" if result.fault == "flip" else "command"


def _losses(result: Result) -> Text:
    if result.identical:
        return Text("identical", style="green")
    if result.difference is None:
        return Text("incomplete", style="red")
    return Text(f"differ by {result.difference:.0e}", style="yellow")
