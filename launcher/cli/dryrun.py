"""The command `longreel dryrun`. Heavy imports wait until the command runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from launcher.core.terminal import Console
from parallel.errors import InputError


def dryrun(
    run: Annotated[Path, typer.Argument(help="A run, as for longreel train.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, for example mesh.ring=8")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Of the mesh; the busiest one if not given.")] = None,
    device: Annotated[str, typer.Option(help="Whose kernels: cuda, or cpu for what this machine would do.")] = "",
    documents: Annotated[
        int | None, typer.Option(min=1, help="Draw packs of so many equal clips or conversations, whatever the data.")
    ] = None,
    segment: Annotated[
        int | None, typer.Option(min=0, help="Of data.segments; the one with the longest packs if not given.")
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=1, help="GiB of a device, for the verdict.")] = 80.0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of a table.")] = False,
) -> None:
    """Run one training step of any rank on fake tensors: memory by kind, FLOPs, launches, waits, bytes sent.

    It needs no GPU, no weights and no data. The same model, ZeRO engine and attention run as in training, without
    numbers. A dataset that does not fill data.pack_tokens, or is not there, is drawn to that size.

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
