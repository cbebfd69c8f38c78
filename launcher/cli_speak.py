"""The commands of models that speak: `longreel eval`, `longreel sample`. Heavy imports wait for a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from launcher.config import RunConfig

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text for a person.")]
Checkpoint = Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest if not given.")]


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder of a video_lm.")],
    questions: Annotated[Path, typer.Argument(help="A JSON list, or a JSON object a line: question, answer, video.")],
    clips: Annotated[
        Path | None, typer.Option(help="The dataset of their videos; if not given, files beside the questions.")
    ] = None,
    shuffle_frames: Annotated[
        bool, typer.Option("--shuffle-frames", help="A control: what depends on time should fall to chance.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many questions.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Words of an answer.")] = 64,
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file; in the run folder if not given.")] = None,
    json_: Json = False,
) -> None:
    """Count how many questions a run's model answers right, by kind: exact match, or the likeliest of the choices.

    Example: longreel eval runs/mine questions.jsonl --clips datasets/held-out --shuffle-frames
    """
    from launcher.bars import Bar
    from launcher.evaluating import as_record, looker_for, questions_of, scores_of
    from launcher.evaluating import evaluate as answer
    from launcher.folder import write_whole
    from launcher.speaking import open_speaker

    asked = questions_of(questions, limit)
    speaker = open_speaker(run, checkpoint)
    looker = looker_for(speaker, clips, questions.parent)
    console = Console(stderr=json_)
    with Bar(console, "questions") as bar:
        found = answer(speaker, asked, looker, shuffle_frames, most, lambda d, t: bar.update(d, t, ""))
    scores = scores_of(asked, found)
    name = f"{questions.stem}-step-{speaker.step}{'-shuffled' if shuffle_frames else ''}.json"
    path = out or run / "eval" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(as_record(scores, found), indent=1).encode())
    if json_:
        print(json.dumps({**as_record(scores, []), "file": str(path)}))
        return
    shuffled = ", frames shuffled" if shuffle_frames else ""
    table = Table(title=f"step {speaker.step}{shuffled}", title_justify="left")
    table.add_column("kind")
    for column in ("questions", "right", "accuracy", "chance"):
        table.add_column(column, justify="right")
    for score in scores:
        chance = f"{1 / score.choices:.0%}" if score.choices else ""
        table.add_row(score.kind, f"{score.questions:,}", f"{score.right:,}", f"{score.accuracy:.1%}", chance)
    console.print(table)
    console.print(f"{path}  every answer", highlight=False, markup=False, soft_wrap=True)


def speaks(config: RunConfig) -> bool:
    """Whether a run's model answers, rather than draws."""
    return config.model.kind == "video_lm"


def tell_answers(
    run: Path, prompts: Sequence[str], videos: Sequence[Path], checkpoint: int | None, as_json: bool
) -> None:
    """Print what a run's model says to each prompt about these videos.

    Raises:
        InputError: there is no prompt, or a video cannot be read.
    """
    from data.looking import Looker
    from launcher.speaking import conversation_about, open_speaker

    speaker = open_speaker(run, checkpoint)
    looker = Looker(speaker.sampling)
    console = Console(stderr=as_json)
    for prompt in prompts or speaker.prompts:
        conversation = conversation_about(videos, prompt)
        said = speaker.answer(speaker.asked(*speaker.lay(conversation, looker.frames)))
        if as_json:
            print(
                json.dumps({"prompt": prompt, "videos": list(map(str, videos)), "answer": said, "step": speaker.step})
            )
        else:
            console.print(f"{prompt}\n  {said}", highlight=False, markup=False, soft_wrap=True)
