"""The commands `longreel data synth`, `questions` and `needles`: data that are made up, to try things out with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.core.terminal import Console
from parallel import shell


def synth(
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 256,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Frames per clip.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width (pixels).")] = 32,
) -> None:
    """Make captioned H.264 clips of moving colored shapes ("a red square moving right").

    Example: longreel data synth --out clips --clips 256 --seed 0
    """
    from data.synthetic.shapes import synth as run
    from launcher.core.progress_bar import Bar

    console = Console()
    with Bar(console, "clips") as bar:
        run(out, clips, seed, frames, size, lambda done, total: bar.update(done, total, ""))
    console.print(f"{clips} clips with captions.json in {out}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"next: longreel prepare {shell.quote(str(out))} --out DATASET", markup=False, highlight=False, soft_wrap=True
    )


def questions(
    out: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 3072,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Frames per clip.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width (pixels).")] = 32,
    glimpses: Annotated[
        bool, typer.Option("--glimpses", help="Make clips whose answer shows in a single frame.")
    ] = False,
) -> None:
    """Make clips with questions and answers: what color, left or right, how many.

    Train on conversations.json (longreel data chat); evaluate with questions.json (longreel eval).

    Example: longreel data questions --out clips --clips 3072
    """
    from data.synthetic.shape_questions import glimpses as show_once
    from data.synthetic.shape_questions import questions as ask
    from launcher.core.progress_bar import Bar

    console = Console()
    with Bar(console, "clips") as bar:
        make = show_once if glimpses else ask
        make(out, clips, seed, frames, size, on_progress=lambda done, total: bar.update(done, total, ""))
    console.print(f"{clips} clips with conversations.json in {out}", markup=False, highlight=False, soft_wrap=True)


def needles(
    out: Annotated[Path, typer.Option(help="JSON lines file to write, one conversation per line.")],
    records: Annotated[int, typer.Option(help="Number of haystacks.")] = 4096,
    length: Annotated[int, typer.Option(help="Length of a haystack (bytes).")] = 256,
    secrets: Annotated[int, typer.Option(help="Secrets per haystack; the question asks for one of them.")] = 1,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same bytes.")] = 0,
) -> None:
    """Make needle-in-a-haystack training conversations: text with a secret in it and a question at its end.

    Example: longreel data needles --out needles-1024.jsonl --length 1024
    """
    from data.synthetic.needle_in_haystack import needles as make
    from launcher.core.progress_bar import Bar

    console = Console()
    with Bar(console, "haystacks") as bar:
        make(out, records, seed, length, secrets, lambda done: bar.update(done, records, ""))
    console.print(
        f"{records} haystacks of up to {length:,} bytes in {out}", markup=False, highlight=False, soft_wrap=True
    )
