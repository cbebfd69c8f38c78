"""The commands `longreel data synth`, `questions` and `needles`: data that are made up, to try things out with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.core.terminal import Console
from parallel import shell


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
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    clips: Annotated[int, typer.Option(help="How many clips.")] = 3072,
    seed: Annotated[int, typer.Option(help="Of everything random: the same seed gives the same bytes.")] = 0,
    frames: Annotated[int, typer.Option(help="Of each clip.")] = 8,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 32,
    glimpses: Annotated[bool, typer.Option("--glimpses", help="Clips that are plain but for one frame.")] = False,
) -> None:
    """Make clips with conversations whose answers can be judged: what colour, left or right, how many.

    conversations.json is to train on (longreel data talks), questions.json to ask a model (longreel eval).

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
    out: Annotated[Path, typer.Option(help="The file, a conversation a line.")],
    records: Annotated[int, typer.Option(help="How many haystacks.")] = 4096,
    length: Annotated[int, typer.Option(help="Of a haystack, in bytes.")] = 256,
    secrets: Annotated[int, typer.Option(help="In each; one of them is asked for.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything random: the same seed gives the same bytes.")] = 0,
) -> None:
    """Make haystacks of words with a secret in them and a question at the end, to learn to find it from.

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
