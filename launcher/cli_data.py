"""The commands `longreel data ...`. Heavy imports wait until a command needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="Datasets: make, look into, check and repair them.", no_args_is_help=True)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 256,
    seed: Annotated[int, typer.Option(help="Of everything random: the same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Of each clip.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 32,
) -> None:
    """Make captioned H.264 clips of moving coloured shapes ("a red square moving right").

    Example: longreel data synth --out clips --clips 256 --seed 0
    """
    from data.synth import synth as run
    from launcher.bars import Bar

    console = Console()
    with Bar(console, "clips") as bar:
        run(out, clips, seed, frames, size, lambda done, total: bar.update(done, total, ""))
    console.print(f"{clips} clips with captions.json in {out}", highlight=False, soft_wrap=True)
    console.print(f"next: longreel prepare {out} --out DATASET", highlight=False, soft_wrap=True)
