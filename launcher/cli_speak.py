"""The commands of models that speak: `longreel eval`, `longreel sample`. Heavy imports wait for a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from launcher.console import Console
from parallel.errors import InputError

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
        chance = f"{score.chance:.0%}" if score.chance else ""
        table.add_row(score.kind, f"{score.questions:,}", f"{score.right:,}", f"{score.accuracy:.1%}", chance)
    console.print(table)
    console.print(f"{path}  every answer", highlight=False, markup=False, soft_wrap=True)


def speaks(config: RunConfig) -> bool:
    """Whether a run's model answers, rather than draws."""
    return config.model.kind == "video_lm"


def tell_answers(
    run: Path, prompts: Sequence[str], videos: Sequence[Path], checkpoint: int | None, as_json: bool
) -> None:
    """Print what a run's model says to each prompt about these videos; what it draws is in samples/ of the run.

    Raises:
        InputError: there is no prompt, or a video cannot be read.
    """
    from data.looking import Looker
    from launcher.coding import Drawn, write_drawn
    from launcher.folder import RunFolder
    from launcher.sampling import slug
    from launcher.speaking import MOST_WORDS, conversation_about, open_speaker
    from parallel.random import key_of

    speaker = open_speaker(run, checkpoint)
    if not (prompts or speaker.prompts):
        raise InputError("a sample has a prompt", "none, and the run has no sample.prompts", '--prompt "What is it?"')
    looker, coding = Looker(speaker.sampling), speaker.coding
    console = Console(stderr=as_json)
    for prompt in prompts or speaker.prompts:
        conversation = conversation_about(videos, prompt)
        words = speaker.said(
            speaker.asked(*speaker.lay(conversation, looker.frames, None, looker.timelines)),
            MOST_WORDS + (coding.most if coding else 0),
        )
        said, drawn = speaker.text(words), coding.drawn(words) if coding else Drawn((), 0)
        about = f"-{key_of(*map(str, videos)) % 0xFFFF:04x}" if videos else ""
        name = f"{slug(prompt)}{about}-step-{speaker.step}"
        files = [str(path) for path in write_drawn(drawn, RunFolder(run).samples, name, speaker.fps)]
        if as_json:
            record = {"prompt": prompt, "videos": list(map(str, videos)), "answer": said, "step": speaker.step}
            print(json.dumps({**record, **({"drawn": files, "codes_left": drawn.left} if coding else {})}))
            continue
        lost = [f"{drawn.left} codes that fill no whole frame"] if drawn.left else []
        told = "".join(f"\n  {line}" for line in (*([said] if said or not files else []), *files, *lost))
        console.print(f"{prompt}{told}", highlight=False, markup=False, soft_wrap=True)
