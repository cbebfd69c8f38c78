"""The commands of models that speak: `longreel eval`, `longreel sample`. Heavy imports wait for a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from launcher.cli.options import Json, with_options
from launcher.core.terminal import Console

Checkpoint = Annotated[int | None, typer.Option(help="Checkpoint step; the newest if not given.")]
Averaged = Annotated[
    bool | None,
    typer.Option("--ema/--no-ema", help="Use the moving average of the weights; by default if the run kept one."),
]


@dataclass(frozen=True)
class Weights:
    """Which weights of a run."""

    checkpoint: Checkpoint = None
    averaged: Averaged = None


@dataclass(frozen=True)
class Asking:
    """How questions are asked."""

    shuffle_frames: Annotated[
        bool,
        typer.Option(
            "--shuffle-frames", help="Shuffle frames, as a control: answers about time should fall to chance."
        ),
    ] = False
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first N questions.")] = None
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 64


@dataclass(frozen=True)
class Records:
    """What becomes of records that are not as they should be."""

    leave_out: Annotated[bool, typer.Option("--leave-out", help="List unusable questions and continue.")] = False
    ignore: Annotated[list[str] | None, typer.Option(help="Record key to ignore; may be repeated.")] = None


@with_options
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder of a video_lm.")],
    questions: Annotated[Path, typer.Argument(help="Questions, a JSON list or JSON lines: question, answer, video.")],
    clips: Annotated[
        Path | None, typer.Option(help="Dataset folder of their videos; files beside the questions if not given.")
    ] = None,
    asking: Asking = Asking(),
    weights: Weights = Weights(),
    out: Annotated[Path | None, typer.Option(help="JSON file to write; in the run folder if not given.")] = None,
    records: Records = Records(),
    json_: Json = False,
) -> None:
    """Evaluate a video_lm on questions; print the accuracy by kind: exact match, or the likeliest choice.

    Example: longreel eval runs/mine questions.jsonl --clips datasets/held-out --shuffle-frames
    """
    from launcher.core.progress_bar import Bar
    from launcher.core.run_folder import keep, write_whole
    from launcher.generation.answers import open_answer_generator
    from launcher.generation.evaluation import as_record, indexer_for, questions_of, scores_of
    from launcher.generation.evaluation import evaluate as answer

    left_out: list[tuple[str, str]] = []
    limit, shuffled, most = asking.limit, asking.shuffle_frames, asking.max_new_tokens
    asked = questions_of(questions, limit, records.ignore or (), left_out if records.leave_out else None)
    answerer = open_answer_generator(run, weights.checkpoint, weights.averaged)
    indexer = indexer_for(answerer, clips, questions.parent)
    console = Console(stderr=json_)
    with Bar(console, "questions") as bar:
        found = answer(answerer, asked, indexer, shuffled, most, lambda d, t: bar.update(d, t, ""))
    scores = scores_of(asked, found)
    name = f"{questions.stem}-step-{answerer.step}{'-shuffled' if shuffled else ''}{answerer.weights}"
    how = {"questions": str(questions), "clips": clips and str(clips), "limit": limit, "max_new_tokens": most}
    written = json.dumps({"asked": how, **as_record(scores, found, left_out)}, indent=1).encode()
    path = out or run / "eval" / f"{keep(run / 'eval', name, {'.json': written})}.json"
    if out is not None:
        write_whole(path, written)
    if json_:
        print(json.dumps({**as_record(scores, [], left_out), "file": str(path)}))
        return
    note = ", frames shuffled" if shuffled else ""
    table = Table(title=f"step {answerer.step}{note}", title_justify="left")
    table.add_column("kind")
    for column in ("questions", "right", "accuracy", "chance"):
        table.add_column(column, justify="right")
    for score in scores:
        chance = f"{score.chance:.0%}" if score.chance else ""
        table.add_row(score.kind, f"{score.questions:,}", f"{score.right:,}", f"{score.accuracy:.1%}", chance)
    console.print(table)
    for where, why in left_out:
        console.print(f"left out: {where}: {why}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{path}  every answer", highlight=False, markup=False, soft_wrap=True)


def speaks(model: Any) -> bool:
    """Whether a model of these settings answers, rather than samples videos."""
    from models.registry import spec_of

    return spec_of(model).family == "language"


def tell_answers(
    run: Path,
    prompts: Sequence[str],
    videos: Sequence[Path],
    checkpoint: int | None,
    as_json: bool,
    averaged: bool | None = None,
) -> None:
    """Print what a run's model says to each prompt about these videos; what it generates is in samples/ of the run.

    Without prompts these are how its conversations begin, about the clips of these where no video is given.

    Raises:
        InputError: there is no prompt, or a video cannot be read.
    """
    from data.streams.visual_lookup import FrameIndexer
    from launcher.batches.visual_codes import Drawn, write_drawn
    from launcher.core.run_folder import RunFolder
    from launcher.generation.answers import MOST_WORDS, conversation_about, open_answer_generator
    from launcher.generation.evaluation import indexer_for
    from launcher.generation.sample_prompts import Question, questions_of
    from launcher.generation.videos import slug
    from parallel.random import key_of

    answerer = open_answer_generator(run, checkpoint, averaged)
    console = Console(stderr=as_json)
    asked = [Question(prompt, tuple(map(str, videos))) for prompt in prompts or answerer.prompts]
    indexer, coding = FrameIndexer(answerer.sampling), answerer.coding
    if not asked:
        chats = answerer.chats
        assert chats is not None, "a answerer of a run has a chat dataset"
        told = f'no --prompt: questions of {chats.folders[0]}; your own: --prompt "..."'
        console.print(told, highlight=False, markup=False, soft_wrap=True)
        asked = list(questions_of(chats))
        if videos:
            asked = [Question(one.prompt, tuple(map(str, videos))) for one in asked]
        elif chats.clips:
            indexer = indexer_for(answerer, chats.clips[0][0], run)
    for prompt, seen in ((one.prompt, one.clips) for one in asked):
        conversation = conversation_about([Path(name) for name in seen], prompt)
        words = answerer.said(
            answerer.asked(*answerer.layout(conversation, indexer.frames, None, indexer.timelines)),
            MOST_WORDS + (coding.most if coding else 0),
        )
        said, drawn = answerer.text(words), coding.drawn(words) if coding else Drawn((), 0)
        about = f"-{key_of(*seen) & 0xFFFFFFFF:08x}" if seen else ""
        name = f"{slug(prompt)}{about}-step-{answerer.step}{answerer.weights}"
        files = [str(path) for path in write_drawn(drawn, RunFolder(run).samples, name, answerer.fps)]
        if as_json:
            record = {"prompt": prompt, "videos": list(seen), "answer": said, "step": answerer.step}
            print(json.dumps({**record, **({"drawn": files, "codes_left": drawn.left} if coding else {})}))
            continue
        lost = [f"{drawn.left} codes that fill no whole frame"] if drawn.left else []
        lines = "".join(f"\n  {line}" for line in (*([said] if said or not files else []), *files, *lost))
        console.print(f"{prompt}{lines}", highlight=False, markup=False, soft_wrap=True)
