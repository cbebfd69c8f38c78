"""The command `longreel dryrun`. Heavy imports wait until the command runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import RUN_HELP, Json
from launcher.core.terminal import Console
from parallel.errors import InputError


def dryrun(
    run: Annotated[Path, typer.Argument(help=RUN_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value, such as mesh.ring=8.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Rank of the mesh; the busiest if not given.")] = None,
    device: Annotated[
        str, typer.Option(help="Device whose kernels are counted: cuda or cpu; the run's own if not given.")
    ] = "",
    documents: Annotated[
        int | None, typer.Option(min=1, help="Use packs of N equal clips or conversations, whatever the data.")
    ] = None,
    segment: Annotated[
        int | None, typer.Option(min=0, help="Segment of data.segments; the one with the longest packs if not given.")
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Memory of a GPU [GiB], for the verdict.")] = 80.0,
    json_: Json = False,
) -> None:
    """Run one step of any rank on fake tensors; print memory by kind, FLOPs, launches, waits, bytes sent.

    Needs no GPU, no weights and no data. The same model, ZeRO engine and attention run as in training, without
    numbers. A dataset that is missing or does not fill data.pack_tokens is replaced by a synthetic one.

    Example: longreel dryrun run.yaml mesh.ring=8 data.pack_tokens=1048576 --rank 7 --gpu-memory 139
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its groups have no backend, and torch says so
    from launcher.batches.datasets import with_own_codec
    from launcher.batches.idle_replicas import idle_notes
    from launcher.config.loading import load
    from launcher.dryrun.dry_step import dry_run
    from launcher.tables.dryrun_tables import as_json, show

    config = with_own_codec(load(run, overrides or []))
    kind = device or ("cpu" if config.device == "cpu" else "cuda")
    if kind not in ("cuda", "cpu"):
        raise InputError("a dry run is of cuda or cpu", f"--device {device}", "--device cuda")
    found = dry_run(config, rank, kind, documents, segment)
    if json_:
        print(as_json(found))
        return
    console = Console()
    show(found, gpu_memory, console)
    for note in idle_notes(config):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
