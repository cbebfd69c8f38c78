"""`longreel sample`: videos of a diffusion model, answers of a video_lm. Heavy imports wait for the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from launcher.cli.eval import Weights, speaks, tell_answers
from launcher.cli.options import Json, with_options
from launcher.core.terminal import Console
from parallel import shell
from parallel.errors import InputError


@dataclass(frozen=True)
class Words:
    """What videos are sampled from, beside the weights."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompt; may be repeated. sample.prompts, else captions of the dataset, if not given."),
    ] = None
    first_frame: Annotated[
        list[Path] | None,
        typer.Option(
            help="Image that the video begins with: one for all prompts, or one for each. For a run that trained "
            "objective.conditioning.first_frame."
        ),
    ] = None
    given: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=FILE",
            help="Input of another conditioning task: an image, or a folder with one per frame.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option(help="Random seed of the noise; the same seed and prompt give the same bytes.")
    ] = 0


@dataclass(frozen=True)
class Sampling:
    """How."""

    steps: Annotated[int | None, typer.Option(help="Sampler steps.")] = None
    sampler: Annotated[
        str | None, typer.Option(help="Sampler: euler, or heun (second order, two evaluations per step).")
    ] = None
    guidance: Annotated[float | None, typer.Option("--guidance", "--cfg", help="Guidance scale; 1 for none.")] = None
    frames: Annotated[int | None, typer.Option(help="Frames per video; as trained if not given.")] = None
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the videos; as trained if not given.")] = None


@with_options
def sample(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    words: Words = Words(),
    how: Sampling = Sampling(),
    weights: Weights = Weights(),
    out: Annotated[Path | None, typer.Option(help="Folder for the files; samples/ of the run if not given.")] = None,
    video: Annotated[
        list[Path] | None, typer.Option(help="video_lm only: video or image to ask about; may be repeated.")
    ] = None,
    json_: Json = False,
) -> None:
    """Sample videos from a checkpoint: mp4 files and a contact sheet. With a video_lm: answer prompts.

    Settings that are not given are those of the training. Files are named by all settings, and
    none is ever overwritten.

    Example: longreel sample runs/quickstart --prompt "a red square moving right" --guidance 4 --steps 50

    Example: longreel sample runs/mine --first-frame cat.png --prompt "the cat runs away"

    Example: longreel sample runs/mine --video clip.mp4 --prompt "What colour?"
    """
    from launcher.core.progress_bar import Bar
    from launcher.generation.sample_request import Request
    from launcher.generation.trained_model import open_run
    from launcher.generation.videos import long_prompts, sample_videos

    prompts, given, name = tuple(words.prompt or ()), tuple(_given(words)), shell.quote(str(run))
    if speaks(open_run(run, weights.checkpoint)[0].model):
        if given:
            found = f"--first-frame or --given {given[0][0]}={given[0][1]}"
            raise InputError(
                "frames are given to a diffusion model", found, f"longreel sample {name} --video FILE, to ask"
            )
        tell_answers(run, prompts, video or [], weights.checkpoint, json_, weights.averaged)
        return
    if video:
        found = f"--video {video[0]}"
        raise InputError(
            "questions are for a video_lm", found, f"longreel sample {name} --first-frame PICTURE, to begin with"
        )
    request = Request(
        prompts, words.seed, how.steps, how.guidance, how.frames, _size(how.size, run), weights.checkpoint,
        weights.averaged, how.sampler, given,
    )  # fmt: skip
    console = Console(stderr=json_)
    for note in long_prompts(run, request):
        console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True)

    def tell(note: str) -> None:
        console.print(note, highlight=False, markup=False, soft_wrap=True)

    with Bar(console, "videos") as bar:
        made, sheet = sample_videos(run, request, out, lambda done, total: bar.update(done, total, ""), tell)
    if json_:
        print(json.dumps({"samples": [asdict(m) for m in made], "sheet": str(sheet)}))
        return
    for one in made:
        console.print(f"{sheet.parent / one.file}  {one.prompt}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{sheet}  all of them, frame by frame", markup=False, highlight=False, soft_wrap=True)


def _given(words: Words) -> Iterator[tuple[str, Path]]:
    """Conditioning tasks with their files."""
    for path in words.first_frame or ():
        yield "first_frame", path
    for text in words.given or ():
        task, equals, file = text.partition("=")
        if not (task and equals and file):
            raise InputError("what is given is TASK=FILE", f"--given {text}", "--given first_frame=PICTURE")
        yield task, Path(file)


def _size(text: str | None, run: Path) -> tuple[int, int] | None:
    from launcher.generation.sample_prompts import shape_of_run
    from launcher.generation.trained_model import open_run

    if text is None:
        return None
    height, x, width = text.lower().partition("x")
    if not (x and height.isdigit() and width.isdigit()):
        config, found = open_run(run)
        usual = shape_of_run(config, config.data_of(found.state.step))
        remedy = f"--size {usual.size[0]}x{usual.size[1]}" if usual else "leave it out"
        raise InputError("a size is HEIGHTxWIDTH", f"--size {text}", remedy)
    return int(height), int(width)
