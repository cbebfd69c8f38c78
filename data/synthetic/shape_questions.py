"""Clips with questions: conversations whose answers can be judged, for a model from scratch.

    questions   one to three shapes of one colour drift one way      What colour? Left or right? How many?
    glimpses    a long clip, empty but for one frame                 What colour?

A clip backwards is a clip of the opposite direction, and as likely: so its frames without their order, and any one of
them, tell the axis, which the question names, and not which way: a model that sees frames shuffled is right once in
two, which is chance. Of shaken clips not even the axis is seen, and they are much harder to learn:

    along    0 1 2 3 4 5 6 7      the way a shape goes, in order: this is the direction
    across   3 0 6 1 7 4 2 5      the same steps in a random order; nowhere, if it is not shaken

The ground is grey, nearly 0 once pixels are normalised: on synth's dark one a tower from scratch learnt colours and was
far slower to count. About 200 clips a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset.shards import write_json
from data.media import video
from data.media.video import Frames
from data.sources.caption_files import FILE_NAME
from data.synthetic.shapes import COLOURS, CRF, DIRECTIONS, FPS, SHAPES, Floats, cover, paint, refuse_others
from parallel.errors import InputError
from parallel.random import key_of, uniform

COLOUR = "What colour?"
WAYS = {"left": "Left or right?", "right": "Left or right?", "up": "Up or down?", "down": "Up or down?"}
NUMBERS = ("one", "two", "three")
GROUND = (124, 120, 112)
SIDE_PART = 0.2  # of the frame's side
TRAVEL_PART, SHAKEN_TRAVEL_PART = 0.5, 0.375
GAP_PART = 0.06  # between two shapes, at least
STRAIGHTEST = 0.7  # correlation of the steps across with time, at most: else both ways would look like directions
TALKS, ASKED = "conversations.json", "questions.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Scene:
    """What a clip shows.

    Attributes:
        colour: of all shapes.
        direction: of all shapes.
        shapes: what each is.
        starts: [shapes, 2], from 0 to 1 of the room there is: along the direction and across it.
        order: [frames], the steps across.
        shaken: it makes these steps.
    """

    colour: str
    direction: str
    shapes: tuple[str, ...]
    starts: Floats
    order: tuple[int, ...]
    shaken: bool = False

    @property
    def travel(self) -> float:
        """From the first frame to the last, as part of the frame's side."""
        return SHAKEN_TRAVEL_PART if self.shaken else TRAVEL_PART

    @property
    def answers(self) -> dict[str, str]:
        """To each question."""
        return {"colour": self.colour, "direction": self.direction, "count": NUMBERS[len(self.shapes) - 1]}

    @property
    def questions(self) -> dict[str, str]:
        """What is asked about each."""
        return {"colour": COLOUR, "direction": WAYS[self.direction], "count": "How many?"}

    @property
    def caption(self) -> str:
        """In words."""
        return f"{self.answers['count']} {self.colour} {' and '.join(self.shapes)} moving {self.direction}"


def questions(
    out: Path,
    clips: int,
    seed: int,
    frames: int = 8,
    size: int = 32,
    shaken: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Writes `clip-00000.mp4` ..., captions, and their questions; the same arguments write the same bytes.

    `conversations.json` has a conversation a clip, all questions in a random order: to train on. `questions.json` has
    one for each question: to ask a model. Each of the 48 sets of answers comes equally often.

    Args:
        out: a new or empty folder, or one that an equal call wrote.
        clips: how many.
        seed: of everything random; clips of another seed are other clips.
        frames: of each clip.
        size: height and width in pixels, even.
        shaken: see above.
        on_progress: called with (done, total) after each clip.

    Raises:
        InputError: an argument that cannot work, or `out` holds other files.
    """
    _refuse({"clips": (clips, 1), "frames": (frames, 4), "size": (size, 16)}, size)
    names = _names(clips)
    refuse_others(out, {*names, FILE_NAME, TALKS, ASKED})
    out.mkdir(parents=True, exist_ok=True)
    captions, chats, asked = {}, [], []
    for number, name in enumerate(names):
        seen, uid = scene(seed, number, frames, shaken), name.removesuffix(".mp4")
        captions[name] = seen.caption
        turns = {what: _said(text, seen.answers[what]) for what, text in seen.questions.items()}
        mixed = sorted(turns, key=lambda what: key_of(seed, number, "turn", what))
        chats.append(_record(uid, name, [said for what in mixed for said in turns[what]]))
        asked += [{**_record(f"{uid}-{what}", name, turns[what]), "about": what} for what in turns]
        (out / name).write_bytes(video.encode(film(seen, size), FPS, crf=CRF))
        if on_progress:
            on_progress(number + 1, clips)
    write_json(out / FILE_NAME, captions)
    write_json(out / TALKS, chats)
    write_json(out / ASKED, asked)


def glimpses(
    out: Path, clips: int, seed: int, frames: int = 64, size: int = 32, on_progress: Progress | None = None
) -> None:
    """Writes clips that are empty but for one frame, where a shape is, and `conversations.json` with its colour.

    Args:
        out: a new or empty folder, or one that an equal call wrote.
        clips: how many.
        seed: of everything random; the frames that show the shapes are drawn evenly.
        frames: of each clip.
        size: height and width in pixels, even.
        on_progress: called with (done, total) after each clip.

    Raises:
        InputError: an argument that cannot work, or `out` holds other files.
    """
    _refuse({"clips": (clips, 1), "frames": (frames, 4), "size": (size, 16)}, size)
    names = _names(clips)
    refuse_others(out, {*names, TALKS})
    out.mkdir(parents=True, exist_ok=True)
    chats = []
    for number, name in enumerate(names):
        key = key_of(seed, number)
        shown, colour = glimpse(key, frames, size, uniform(key_of(key, "depth")))
        chats.append(_record(name.removesuffix(".mp4"), name, _said(COLOUR, colour)))
        (out / name).write_bytes(video.encode(shown, FPS, crf=CRF))
        if on_progress:
            on_progress(number + 1, clips)
    write_json(out / TALKS, chats)


def glimpse(key: int, frames: int, size: int, depth: float) -> tuple[Frames, str]:
    """A clip of plain frames of which one shows shapes, and their colour.

    Args:
        key: 64 bits of all that is random.
        frames: of the clip.
        size: height and width in pixels.
        depth: of the frame that shows them: 0 for the first, 1 for the last.
    """
    seen = scene(key, 0, 4)
    shown = np.broadcast_to(np.array(GROUND, np.uint8), (frames, size, size, 3)).copy()
    shown[round(depth * (frames - 1))] = film(seen, size)[1]
    return shown, seen.colour


def scene(seed: int, number: int, frames: int, shaken: bool = False) -> Scene:
    """What clip `number` of a seed shows."""
    kind = (number + key_of(seed, "first")) % (len(COLOURS) * len(DIRECTIONS) * len(NUMBERS))
    key, shapes = key_of(seed, number), kind // 16 + 1
    return Scene(
        list(COLOURS)[kind % 4],
        list(DIRECTIONS)[kind // 4 % 4],
        tuple(SHAPES[key_of(key, "shape", n) % len(SHAPES)] for n in range(shapes)),
        _starts(key, shapes, shaken),
        _order(key, frames),
        shaken,
    )


def film(seen: Scene, size: int) -> Frames:
    """The clip, uint8 RGB [frames, size, size, 3]."""
    side, steps = size * SIDE_PART, np.linspace(0, size * seen.travel, len(seen.order))
    dx, dy = DIRECTIONS[seen.direction]
    along, across = steps if dx + dy > 0 else steps[::-1], steps[list(seen.order)] * seen.shaken
    filled = np.zeros((len(steps), size, size))
    for shape, start in zip(seen.shapes, seen.starts * size * _room(seen.shaken), strict=True):
        moving, shaking = start[0] + along, start[1] + across
        left, top = (moving, shaking) if dx else (shaking, moving)
        filled += cover(shape, left, top, side, size)  # they do not overlap
    return paint(filled, seen.colour, GROUND)


def _room(shaken: bool) -> Floats:
    """Where the near edge of a shape may start, along and across, as part of the frame's side."""
    free = 1 - SIDE_PART
    return np.array([free - SHAKEN_TRAVEL_PART] * 2 if shaken else [free - TRAVEL_PART, free])


def _starts(key: int, shapes: int, shaken: bool) -> Floats:
    """So that no two overlap: all move as one, so they never do."""
    room = _room(shaken)
    for attempt in count():
        at = np.array([[uniform(key_of(key, "start", attempt, n, axis)) for axis in (0, 1)] for n in range(shapes)])
        distance = np.abs((at[:, None] - at[None]) * room).max(axis=-1) + np.eye(shapes)
        if distance.min() >= SIDE_PART + GAP_PART:
            return at
    raise AssertionError


def _order(key: int, frames: int) -> tuple[int, ...]:
    """A random order, rising or falling no more than `STRAIGHTEST`; as likely as its mirror and as its inverse."""
    for attempt in count():
        order = sorted(range(frames), key=lambda step: key_of(key, "step", attempt, step))
        if abs(np.corrcoef(np.arange(frames), order)[0, 1]) <= STRAIGHTEST:
            return tuple(order)
    raise AssertionError


def _said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _record(uid: str, name: str, turns: list[dict[str, str]]) -> dict[str, Any]:
    """A conversation about a clip, in the form of LLaVA: the first thing said is the clip."""
    first = {**turns[0], "value": f"<video>\n{turns[0]['value']}"}
    return {"id": uid, "video": name, "conversations": [first, *turns[1:]]}


def _names(clips: int) -> list[str]:
    return [f"clip-{number:05d}.mp4" for number in range(clips)]


def _refuse(least: dict[str, tuple[int, int]], size: int = 16) -> None:
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise InputError(f"{name} is at least {smallest}", str(value), f"give {smallest} or more")
    if size % 2:
        raise InputError("size is even, as video needs", str(size), f"give {size + 1}")
