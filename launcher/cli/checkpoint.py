"""`longreel checkpoint`: list, verify, show and export what a run has saved; import what DeepSpeed has."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from launcher.cli.options import Json
from launcher.config.overrides import RunCommand
from launcher.core.terminal import Console
from parallel.errors import InputError

if TYPE_CHECKING:
    from launcher.checkpoints.pruning import Entry
    from launcher.checkpoints.reading import Checkpoint
    from launcher.checkpoints.storage import Storage

app = typer.Typer(
    help="List, verify, show, prune, export and import checkpoints.", no_args_is_help=True, rich_markup_mode="rich"
)

Run = Annotated[str, typer.Argument(help="Run folder, or folder or URL of checkpoints.")]
Step = Annotated[int | None, typer.Option(help="Checkpoint step; the newest if not given.")]


@app.command("list")
def list_(run: Run, json_: Json = False) -> None:
    """List the checkpoints of a run: loss, size, layout, and whether the files are there (verify compares hashes).

    Example: longreel checkpoint list runs/mine
    """
    from launcher.checkpoints.reading import trusting

    rows = _looked_at(_storage(run), trusting, _metrics(run))
    if json_:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        Console().print("no checkpoints", highlight=False)
        return
    _print(rows)


@app.command()
def verify(run: Run, json_: Json = False) -> None:
    """Verify the hash of every file of every checkpoint. Exit code 1 if one is broken.

    Example: longreel checkpoint verify runs/mine
    """
    from launcher.checkpoints.reading import by_hash

    rows = _looked_at(_storage(run), by_hash, _metrics(run))
    if json_:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


@app.command()
def prune(
    run: Run,
    keep: Annotated[int, typer.Option(min=1, help="Number of newest whole checkpoints to keep.")],
    keep_best: Annotated[bool, typer.Option("--keep-best", help="Keep the one of the lowest loss too.")] = False,
    keep_every: Annotated[
        int | None, typer.Option(min=0, help="Keep those of every N-th step; as in the run if not given, 0 for none.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    json_: Json = False,
) -> None:
    """Remove old checkpoints, after a confirmation. The newest whole checkpoint always stays.

    Broken checkpoints are listed and not touched: longreel checkpoint verify says what is wrong with them.

    Example: longreel checkpoint prune runs/mine --keep 2 --keep-best --dry-run
    """
    from contextlib import nullcontext

    from launcher.checkpoints.pruning import entries, pruning
    from launcher.checkpoints.reading import newest, trusting
    from launcher.core.run_folder import RunFolder
    from launcher.supervision.run import only_launcher

    storage, console = _storage(run), Console(stderr=json_)
    folder = RunFolder(Path(run))
    of_run = "://" not in run and folder.config.is_file()
    with only_launcher(folder) if of_run and not dry_run else nullcontext():
        whole, _ = newest(storage)
        if whole is None:
            raise InputError("a run has saved something", f"{run} has no checkpoint", "train at least checkpoint.every")
        every = whole.manifest.config["checkpoint"].get("keep_every") if keep_every is None else keep_every
        found = pruning(entries(storage, trusting, _metrics(run)), whole.name, keep, keep_best, every)
        for one, why in found.stay:
            console.print(f"{one.name}  stays: {why}", markup=False, highlight=False, soft_wrap=True)
        names = [one.name for one in found.remove]
        for name in names:
            console.print(f"{name}  {'would go' if dry_run else 'goes'}", markup=False, highlight=False)
        size = f"{found.bytes / 1e6:,.1f} MB"
        if names and not dry_run:
            if not yes:
                _ask(f"Remove {len(names)} of {len(names) + len(found.stay)} checkpoints, {size}?")
            for name in names:
                storage.remove(name)
        if json_:
            gone = {"removed": [] if dry_run else names, "would_remove": names if dry_run else []}
            print(json.dumps({**gone, "stay": {one.name: why for one, why in found.stay}, "bytes": found.bytes}))
            return
        done = "nothing to remove" if not names else f"{size} would be free" if dry_run else f"{size} are free"
        console.print(done, highlight=False)


def _ask(question: str) -> None:
    """Go on only if a person says so."""
    if not sys.stdin.isatty():
        found = "no terminal to ask at"
        raise InputError("checkpoints are removed after a question", found, "--yes to remove, --dry-run to look")
    typer.confirm(question, abort=True)


@app.command()
def show(run: Run, step: Step = None, json_: Json = False) -> None:
    """Show what a checkpoint holds: step, versions, layout, parameters and their sizes.

    Example: longreel checkpoint show runs/mine --step 200
    """
    found = _open(run, step)
    manifest = found.manifest
    numel = sum(math.prod(shape) for shape in manifest.shapes.values())
    told: dict[str, Any] = {
        "step": manifest.state.step,
        "where": found.where,
        "layout": manifest.layout,
        "parameters": len(manifest.shapes),
        "elements": numel,
        "of each": list(manifest.keys),
        "parts": len(manifest.parts),
        "bytes": manifest.size,
        "versions": manifest.versions,
        "machine": dict(manifest.machine),
        "beside it": dict(manifest.outside),
        "epoch": manifest.state.position.cursor.epoch,
        "last losses": [line["loss"] for line in manifest.recent],
    }
    if json_:
        print(json.dumps({**told, "shapes": manifest.shapes}, indent=1))
        return
    table = Table(show_header=False)
    for name, value in told.items():
        table.add_row(name, _text(value))
    Console().print(table)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="File to write, such as model.safetensors; for a video_lm also a folder.")],
    step: Step = None,
    averaged: Annotated[
        bool | None, typer.Option("--ema/--no-ema", help="Export the moving average; by default if the run kept one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the tensors: float32 or bf16.")] = "float32",
    json_: Json = False,
) -> None:
    """Export the weights as one safetensors file: a third of a checkpoint or less.

    A video_lm may be exported as a folder, which transformers opens: from_pretrained(FOLDER).

    Example: longreel checkpoint export runs/mine --out model.safetensors --dtype bf16
    """
    from launcher.checkpoints.export import export, export_folder

    found = _open(run, step)
    told = (export if out.suffix == ".safetensors" else export_folder)(found, out, averaged, dtype)
    if json_:
        print(json.dumps(told))
        return
    what = "moving average" if told["tensor"] == "ema" else "weights"
    size = f"{told['bytes'] / 1e6:,.1f} MB"
    left = f", without {told['frozen']} that are frozen: --out FOLDER writes all" if told["frozen"] else ""
    Console().print(
        f"{out}: {what} of step {told['step']}, {told['tensors']} tensors, {size}{left}", markup=False, highlight=False
    )


@app.command("import", cls=RunCommand)
def import_(
    source: Annotated[Path, typer.Argument(help="Universal checkpoint of DeepSpeed: a folder that has zero/.")],
    run: Annotated[Path, typer.Argument(help="Run that continues from it, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, such as out=runs/mine.")] = None,
    updates: Annotated[
        int | None, typer.Option(min=0, help="Number of optimizer updates; read from the checkpoint if stored.")
    ] = None,
    json_: Json = False,
) -> None:
    """Import weights and optimizer state that DeepSpeed saved as the first checkpoint of a run.

    Example: longreel checkpoint import converted/ run.yaml out=runs/mine
    """
    from launcher.batches.datasets import geometry_of
    from launcher.checkpoints.deepspeed_universal import import_universal
    from launcher.config.loading import load
    from launcher.supervision.run import absolute
    from models.registry import DTYPES, build

    config = absolute(load(run, overrides or []))
    channels = geometry_of(config).channels
    model = build(config.model, channels, config.seed, DTYPES[config.dtype], config.objective)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    told = import_universal(source, config, shapes, updates)
    if json_:
        print(json.dumps(asdict(told)))
        return
    size = f"{told.parameters:,} parameters of {told.elements:,} numbers, after {told.updates:,} updates"
    Console().print(f"{told.where}: {size}", markup=False, highlight=False, soft_wrap=True)


def _storage(run: str) -> Storage:
    """The checkpoints of a run folder, or those that lie in this folder or at this URL themselves."""
    from launcher.checkpoints.storage import open_storage
    from launcher.config.loading import load_stored
    from launcher.core.run_folder import RunFolder

    if "://" in run:
        return open_storage(Path(), run)
    path = Path(run)
    if RunFolder(path).config.is_file():
        return open_storage(RunFolder(path).checkpoints, load_stored(RunFolder(path).config).checkpoint.location)
    storage = open_storage(path)
    if not path.is_dir() or not storage.names():
        found = f"{run} is no {'run folder, and holds no checkpoints' if path.is_dir() else 'folder'}"
        raise InputError("checkpoints lie in a run folder", found, "give the run's out")
    return storage


def _open(run: str, step: int | None) -> Checkpoint:
    from launcher.checkpoints.checkpoint_manifest import name_of
    from launcher.checkpoints.reading import newest, one

    storage = _storage(run)
    if step is not None:
        return one(storage, name_of(step))
    found, broken = newest(storage)
    for name, reason in broken:
        Console(stderr=True).print(
            f"[yellow]{escape(name)} is broken: {escape(reason)}[/]", highlight=False, soft_wrap=True
        )
    if found is None:
        raise InputError("a run has saved something", f"{run} has no checkpoint yet", "train at least checkpoint.every")
    return found


def _metrics(run: str) -> Path | None:
    """The losses of a run folder."""
    from launcher.core.run_folder import RunFolder

    return None if "://" in run else RunFolder(Path(run)).metrics


def _looked_at(storage: Storage, check: Any, metrics: Path | None) -> list[dict[str, Any]]:
    """One row a checkpoint, oldest first."""
    from launcher.checkpoints.pruning import best, entries

    there = entries(storage, check, metrics)
    lowest = best(there)
    return [_row(one, lowest is not None and one.name == lowest.name) for one in there]


def _row(one: Entry, is_best: bool) -> dict[str, Any]:
    if one.manifest is None:
        return {"name": one.name, "problem": one.problem}
    row = {"name": one.name, "step": one.step, "bytes": one.manifest.size, "parts": len(one.manifest.parts)}
    return {**row, "loss": one.loss, "best": is_best, "layout": one.manifest.layout, "problem": one.problem}


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table()
    for column in ("checkpoint", "loss", "MB", "parts"):
        table.add_column(column, justify="left" if column == "checkpoint" else "right", no_wrap=True)
    table.add_column("written on")
    table.add_column("problem", overflow="fold")
    for row in rows:
        size = f"{row['bytes'] / 1e6:,.1f}" if "bytes" in row else ""
        loss = f"{row['loss']:.4f}{' best' if row['best'] else ''}" if row.get("loss") is not None else ""
        problem = f"[red]{row['problem']}[/]" if row["problem"] else "none"
        table.add_row(row["name"], loss, size, str(row.get("parts", "")), row.get("layout", ""), problem)
    Console().print(table)
    if any(row.get("best") for row in rows):
        Console().print("loss: the mean of the last steps before it, of what is trained on", highlight=False)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if isinstance(value, list):
        return ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:,}" if isinstance(value, int) else str(value)
