"""The command `longreel needle`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from launcher.cli.eval import Weights
from launcher.cli.options import Json, with_options
from launcher.core.terminal import Console
from parallel.errors import InputError


@dataclass(frozen=True)
class Haystacks:
    """What is searched."""

    lengths: Annotated[str, typer.Option(help="Haystack lengths [bytes of text, or frames].")] = "256,1024,2048"
    depths: Annotated[int, typer.Option(min=1, help="Number of depths, from the beginning to the end.")] = 5
    each: Annotated[int, typer.Option(min=1, help="Needles per length and depth.")] = 8
    secrets: Annotated[
        int, typer.Option(min=1, help="Secrets per haystack of text; the question asks for one of them.")
    ] = 1
    frames: Annotated[bool, typer.Option("--frames", help="Use haystacks of frames instead of text.")] = False
    seed: Annotated[int, typer.Option(help="Random seed of the haystacks; use another than for training.")] = 1


@with_options
def needle(
    run: Annotated[Path, typer.Argument(help="Run folder of a video_lm.")],
    haystacks: Haystacks = Haystacks(),
    weights: Weights = Weights(),
    out: Annotated[Path | None, typer.Option(help="PNG heat map to write; in the run folder if not given.")] = None,
    json_: Json = False,
) -> None:
    """Run the needle-in-a-haystack test at several lengths and depths; print a table, write a heat map.

    Example: longreel needle runs/mine --lengths 1024,4096,16384 --depths 7
    """
    from launcher.core.progress_bar import Bar
    from launcher.core.run_folder import keep, write_whole
    from launcher.generation.answers import open_answer_generator
    from launcher.generation.needle_test import heat_map, of_length, search

    h = haystacks
    asked = _lengths(h.lengths)
    answerer = open_answer_generator(run, weights.checkpoint, weights.averaged)
    console = Console(stderr=json_)
    with Bar(console, "needles") as bar:
        cells = search(
            answerer, asked, h.depths, h.each, h.secrets, h.frames, h.seed, lambda d, t: bar.update(d, t, "")
        )
    what = "frames" if h.frames else "words"
    picture = io.BytesIO()
    heat_map(cells, f"needles found among {what}, step {answerer.step}").save(picture, "PNG")
    name = f"needle-{what}-step-{answerer.step}{answerer.weights}"
    path = out or run / "eval" / f"{keep(run / 'eval', name, {'.png': picture.getvalue()})}.png"
    if out is not None:
        write_whole(path, picture.getvalue())
    if json_:
        print(json.dumps({"cells": [asdict(cell) for cell in cells], "picture": str(path)}))
        return
    table = Table(title=f"needles among {what}, step {answerer.step}", title_justify="left")
    for column in ("length", "tokens", "asked", "found", "share"):
        table.add_column(column, justify="right")
    for length, tokens, found, total in of_length(cells):
        table.add_row(f"{length:,}", f"{tokens:,}", f"{total:,}", f"{found:,}", f"{found / total:.1%}")
    console.print(table)
    console.print(f"{path}  by depth", highlight=False, markup=False, soft_wrap=True)


def _lengths(text: str) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in numbers):
        raise InputError("lengths are numbers with commas", f"--lengths {text}", "--lengths 256,1024,2048")
    return [int(part) for part in numbers]
