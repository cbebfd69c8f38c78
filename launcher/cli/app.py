"""The command `longreel` (also `python -m launcher`). Heavy imports wait until a command needs them.

Exit codes: 0 done, 2 the input is wrong, 75 stopped by request with a checkpoint, 1 the run failed.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from launcher.cli.checkpoint import app as checkpoint_app
from launcher.cli.cluster import cluster, list_, logs, status, stop, submit
from launcher.cli.data import app as data_app
from launcher.cli.drill import drill
from launcher.cli.dryrun import dryrun
from launcher.cli.eval import evaluate
from launcher.cli.needle import needle
from launcher.cli.options import RUN_HELP, Json, reflow
from launcher.cli.plan import plan
from launcher.cli.prepare import prepare
from launcher.cli.sample import sample
from launcher.cli.why import why
from launcher.config.overrides import CONTEXT, RunCommand
from launcher.core.terminal import Console
from parallel import shell
from parallel.errors import InputError

app = typer.Typer(
    name="longreel",
    help="Train video transformers on very long contexts. Start with `longreel doctor`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
START, DATA, TRAIN, BEFORE = "Start here", "Prepare data", "Train", "Plan and rehearse"
LOOK, MODEL, CLUSTER = "Understand a run", "Use a model", "Run on a cluster"

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = (
    *FULL,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
)


def main() -> None:
    """Entry point: an InputError becomes three lines and exit code 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        _leave_if_head_is_gone(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        full = error.errno in FULL
        at_fault = error.filename2 if full and error.filename2 else error.filename  # of a copy
        found = f"{at_fault or 'a file'}: {error.strerror}"
        remedy = "make room" if full else "give a place that you may write to"
        told = InputError("files can be written where they are asked for", found, remedy)
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(told))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except MemoryError as error:
        from launcher.core.address_space import memory_told

        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(memory_told(error)))}", highlight=False)
        sys.exit(1)


def _leave_if_head_is_gone(error: InputError) -> None:
    """Without Ray's farewell, which would end this process by SIGSEGV; nothing is wrong with the input, so with 1."""
    ranks = sys.modules.get(
        "launcher.supervision.rank_group"
    )  # which loads torch: nobody who was refused before should wait for it
    if ranks is not None and isinstance(error, ranks.HeadGoneError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


@app.command(rich_help_panel=START)
def doctor(
    path: Annotated[Path, typer.Option(help="Folder of the runs, whose free disk space is checked.")] = Path("."),
    json_: Json = False,
) -> None:
    """Check this machine: devices, packages, network, disk. Suggest a fix for each problem."""
    from launcher.doctor.doctor import as_json, examine, render

    findings = examine(path)
    if json_:
        print(as_json(findings))
    else:
        Console().print(render(findings))
    raise typer.Exit(1 if any(f.status == "problem" for f in findings) else 0)


app.command(rich_help_panel=DATA)(prepare)
app.add_typer(data_app, name="data", rich_help_panel=DATA)


@app.command(cls=RunCommand, context_settings=CONTEXT, rich_help_panel=TRAIN)
def train(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as steps=20 mesh.ring=2.")
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="Start ranks as Ray actors, or as local processes.")
    ] = True,
    address: Annotated[str | None, typer.Option(help="host:port of a Ray head; a local Ray if not given.")] = None,
) -> None:
    """Train a run. Resumes from the newest checkpoint if the run folder holds one.

    Ctrl-C or SIGTERM saves a checkpoint after the current step and exits with 75; a second one stops at once.

    Example: longreel train recipes/quickstart.yaml data.dataset=datasets/mine steps=20
    """
    console = Console()
    if run.is_file():  # what is imported now takes seconds
        console.print(f"checking {run}: settings, data, mesh, memory", markup=False, highlight=False, soft_wrap=True)
    from launcher.core import address_space

    if note := address_space.refuse_little():
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    from launcher.core.hardware import ranks_here
    from launcher.supervision.fork_server import context, loading

    if not ray and address is not None:
        raise InputError("--address is for Ray", f"--no-ray --address {address}", "leave one of them out")
    with nullcontext() if ray else loading(run, overrides or []):
        from launcher.config.loading import load
        from launcher.supervision.run import absolute
        from launcher.supervision.run import train as go
        from models.registry import objective_spec_of

        config = absolute(load(run, overrides or []))
    mesh = config.mesh.mesh()
    if not ray:
        from launcher.supervision.local_ranks import ProcessRanks

        processes = context(config.zero.stage, config.device)
        code = go(config, lambda: ProcessRanks(processes), console, ranks_here(config.device))
    else:
        from launcher.cluster.connection import asks_for_token, check_address
        from launcher.cluster.ray_ranks import ActorRanks
        from launcher.cluster.ray_token import OPEN_CLUSTER

        if address is not None:
            check_address(address)
            if not asks_for_token(address):
                note = f"{address} asks nobody for a token: {OPEN_CLUSTER} (longreel doctor on its head)"
                console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        available = 0 if address else ranks_here(config.device)
        code = go(config, lambda: ActorRanks(address, mesh.ranks, config.device), console, available)
    if code == 0:
        console.print(f"run folder: {config.out}", markup=False, highlight=False, soft_wrap=True)
        out = shell.quote(str(config.out))
        generates = objective_spec_of(config.objective).generates  # others are learned to go on from
        first = f"longreel sample {out}   " if generates else ""
        console.print(f"next: {first}longreel report {out}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


app.add_typer(checkpoint_app, name="checkpoint", rich_help_panel=TRAIN)
app.command(cls=RunCommand, rich_help_panel=BEFORE)(plan)
app.command(rich_help_panel=MODEL)(sample)
app.command("eval", rich_help_panel=MODEL)(evaluate)
app.command(rich_help_panel=MODEL)(needle)


@app.command(rich_help_panel=LOOK)
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write one self-contained HTML page of a run: curves, samples, events."""
    from launcher.reports.recorded_run import read_run
    from launcher.reports.run_report import write_page

    told = read_run(run)
    page, losses = write_page(told), told.steps.known("loss")
    console = Console()
    if len(losses):
        share = f": {100 * losses[-1] / losses[0]:.1f} % of the first" if losses[0] > 0 else ""
        console.print(f"{len(losses)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}{share}", highlight=False)
    for name, count in told.broken.items():
        if count:
            console.print(f"{name}: {count:,} lines are no record and were left out", style="yellow", highlight=False)
    console.print(f"{page}", markup=False, highlight=False, soft_wrap=True)


for command, panel in (
    (dryrun, BEFORE), (why, LOOK), (drill, BEFORE), (submit, CLUSTER), (status, CLUSTER), (logs, CLUSTER),
    (stop, CLUSTER), (cluster, CLUSTER),
):  # fmt: skip
    takes_settings = command in (dryrun, drill, submit, cluster)
    app.command(cls=RunCommand if takes_settings else None, context_settings=CONTEXT, rich_help_panel=panel)(command)
app.command("list", rich_help_panel=CLUSTER)(list_)
for each in (app, data_app, checkpoint_app):
    reflow(each)
