"""What a run's own data proposes where nobody says what to sample: captions, questions, and the usual length and size.

    dataset of the checkpoint's segment --> 4 captions, 16 frames of 32 x 32      longreel sample RUN
    DATASET-held-out beside it, if there is one: its captions, which nobody has trained on

Values in remedies come from here too: a size that is proposed is one that this dataset has and this model takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.chat.chat_index import ChatIndex
from data.dataset.index import Index
from data.planning.clip_sampling import Choice, Sampling, Size
from launcher.batches.datasets import geometry_of
from launcher.config.run_config import RunConfig
from launcher.config.sections import DataConfig
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

PROMPTS = 4  # that are taken where none are given
MOST_CHARACTERS = 600  # of a caption that is taken without being asked for, if there are others
MOST_WORDS = 24  # of a question that has no end
HELD_OUT = "-held-out"  # what a dataset is called that is not trained on


@dataclass(frozen=True)
class Shape:
    """Of a video.

    Attributes:
        frames: how many.
        size: (height, width).
    """

    frames: int
    size: Size

    def __str__(self) -> str:
        return f"--frames {self.frames} --size {self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class Question:
    """What is asked of a model that answers.

    Attributes:
        prompt: the words.
        clips: uids of the clips that it is about.
    """

    prompt: str
    clips: tuple[str, ...] = ()


def usual_shape(index: Index, sampling: Sampling) -> Shape | None:
    """The most frequent shape of what is trained on, the larger one of two; None if nothing fills a token."""
    shapes, counts = np.unique(
        np.stack((index.frames, index.height, index.width)), axis=1, return_counts=True
    )  # [3, shapes]
    found: dict[Shape, int] = {}
    for (frames, height, width), count in zip(shapes.T.tolist(), counts.tolist(), strict=True):
        if sampling.grid(frames, height, width) is not None:
            shape = Shape(sampling.frames_used(frames), sampling.crop(height, width))
            found[shape] = found.get(shape, 0) + count
    return max(found, key=lambda s: (found[s], s.frames, s.size), default=None)


def shape_of_run(config: RunConfig, data: DataConfig, geometry: Geometry | None = None) -> Shape | None:
    """The usual shape of a segment's samples; of its settings alone if the dataset is gone, None if they have none."""
    geometry = geometry or geometry_of(config)
    try:
        index = Index.join([Index.open(folder) for folder in data.folders])
        found = usual_shape(index, Sampling(geometry, data.frames, data.size, data.stride))
    except InputError:
        found = None
    if found is None and data.frames is not None and data.size is not None:
        frames = geometry.usable_frames(data.frames)
        return Shape(frames, data.size) if frames else None
    return found


def captions_of(folders: Sequence[Path], which: Choice) -> tuple[tuple[str, ...], Path]:
    """Captions to sample, evenly over a dataset, each once, and where they are from.

    A dataset beside the first one that is called as it and `-held-out` goes before.

    Raises:
        InputError: no dataset is there any more.
    """
    held_out = folders[0].with_name(f"{folders[0].name}{HELD_OUT}")
    for folder in (held_out, *folders):
        try:
            index = Index.open(folder)
        except InputError:
            if folder == folders[-1]:
                raise
            continue
        found = _spread(len(index), lambda row, index=index: index.caption(row, which))  # type: ignore[misc]
        if found:
            return found, folder
    return ("",), folders[0]  # nothing has words: as trained, the empty caption


def questions_of(chats: ChatIndex) -> tuple[Question, ...]:
    """How conversations of a folder begin, evenly over it, each words once, about the clips that they are about."""
    found: dict[str, Question] = {}
    for row in _evenly(len(chats), PROMPTS * 16):
        words = _question(chats.text(row))
        if words and words not in found and len(found) < PROMPTS:
            visuals = chats.visuals(row) if chats.clips else []
            found[words] = Question(words, tuple(uid for visual in visuals[:1] for uid in visual["clips"]))
    return tuple(found.values())


def _question(text: str) -> str:
    """The first sentence, or the first words of what has no end."""
    first = re.split(r"(?<=[?.!])\s|\n", text.strip(), maxsplit=1)[0]
    return " ".join(first.split()[:MOST_WORDS])


def _evenly(rows: int, most: int) -> list[int]:
    return [number * rows // min(rows, most) for number in range(min(rows, most))]


def _spread(rows: int, caption: Callable[[int], str]) -> tuple[str, ...]:
    """The first PROMPTS different texts of rows that lie evenly; short ones, where there are any."""
    some = [text for row in _evenly(rows, PROMPTS * 16) if (text := caption(row).strip())]
    short = [text for text in some if len(text) <= MOST_CHARACTERS]
    different = list(dict.fromkeys(short or some))
    return tuple(different[at] for at in _evenly(len(different), PROMPTS))
