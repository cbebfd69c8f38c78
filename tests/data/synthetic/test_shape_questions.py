"""Clips show what their answers say, and their frames without order do not say where to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data.chat.formats import conversation_of
from data.media import video
from data.synthetic.shape_questions import (
    COLOUR,
    GROUND,
    NUMBERS,
    WAYS,
    Scene,
    film,
    glimpse,
    glimpses,
    questions,
    scene,
)
from data.synthetic.shapes import COLOURS, DIRECTIONS
from parallel.errors import InputError

CLIPS = 48


def lit(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.linalg.norm(frames.astype(float) - GROUND, axis=-1) > 70
    return found


def shapes_in(frame: np.ndarray[Any, Any]) -> int:
    core = cv2.erode(frame.astype(np.uint8), np.ones((3, 3), np.uint8))  # the codec joins what is near
    areas = cv2.connectedComponentsWithStats(core, connectivity=4)[2][1:, cv2.CC_STAT_AREA]
    return int((areas > 2).sum())


def colour_of(frames: np.ndarray[Any, Any]) -> str:
    known = np.array(list(COLOURS.values()), float) - GROUND
    found = (frames.astype(float) - GROUND)[lit(frames)].mean(axis=0)
    return list(COLOURS)[int((known @ found / np.linalg.norm(known, axis=1)).argmax())]


def seen_in(frames: np.ndarray[Any, Any]) -> dict[str, str]:
    """The answers, from pixels alone."""
    shown = lit(frames)
    counts = [shapes_in(frame) for frame in shown]
    rows, columns = (shown.any(axis=axis).argmax(axis=1) for axis in (2, 1))  # the first lit one of each frame
    time = np.arange(len(frames))
    by_axis = np.array([np.cov(time, columns)[0, 1], np.cov(time, rows)[0, 1]])
    axis = int(np.abs(by_axis).argmax())
    names = (("left", "right"), ("up", "down"))[axis]
    return {
        "colour": colour_of(frames),
        "direction": names[int(by_axis[axis] > 0)],
        "count": NUMBERS[int(np.median(counts)) - 1],
    }


@pytest.mark.parametrize("shaken", [False, True])
def test_clips_show_what_their_answers_say(tmp_path: Path, shaken: bool) -> None:
    seen: list[tuple[int, int]] = []
    questions(tmp_path / "a", CLIPS, seed=3, shaken=shaken, on_progress=lambda done, total: seen.append((done, total)))
    questions(tmp_path / "b", CLIPS, seed=3, shaken=shaken)
    questions(tmp_path / "c", CLIPS, seed=4, shaken=shaken)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "abc")
    assert a == b
    assert not set(a.values()) & set(c.values()), "another seed has a clip of this one"
    assert seen[-1] == (CLIPS, CLIPS)
    asked = [conversation_of(record) for record in json.loads(a["questions.json"])]
    said = [{turn.parts[-1] for turn in conversation.turns} for conversation in asked]
    kinds = set()
    for number, record in enumerate(json.loads(a["conversations.json"])):
        assert record["id"] == f"clip-{number:05d}"
        turns = conversation_of(record).turns
        answers = {str(q.parts[-1]): str(w.parts[-1]) for q, w in zip(turns[::2], turns[1::2], strict=True)}
        found = seen_in(video.decode(a[record["video"]]))
        asked_for = {"colour": COLOUR, "direction": WAYS[found["direction"]], "count": "How many?"}
        assert answers == {asked_for[what]: answer for what, answer in found.items()}, number
        assert said[3 * number : 3 * number + 3] == [{text, found[what]} for what, text in asked_for.items()]
        assert conversation_of(record).visuals[0].name == record["video"]
        kinds.add(tuple(sorted(answers.values())))
        words = json.loads(a["captions.json"])[record["video"]].split()
        assert (words[0], words[1], words[-1]) == (found["count"], found["colour"], found["direction"])
    assert len(kinds) == 48


@pytest.mark.parametrize("shaken", [False, True])
def test_shapes_stay_apart_and_in_the_frame(shaken: bool) -> None:
    for number in range(100):
        shown = scene(0, number, 8, shaken)
        clip = film(shown, 32)
        assert clip.shape == (8, 32, 32, 3)
        areas = lit(clip).sum(axis=(1, 2))
        assert areas.min() > 0.7 * areas.max(), "a part of a shape left the frame"
        assert {shapes_in(frame) for frame in lit(film(shown, 128))} == {len(shown.shapes)}


def test_a_clip_backwards_is_one_of_the_opposite_direction() -> None:
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for number in range(12):
        shown = scene(0, number, 8)
        back = Scene(shown.colour, opposite[shown.direction], shown.shapes, shown.starts, shown.order)
        assert np.array_equal(film(back, 32), film(shown, 32)[::-1])


def test_shaken_frames_without_their_order_tell_no_direction() -> None:
    """To each clip there is one of every other direction with the very same frames, which is as likely."""
    for number in range(24):
        shown = scene(0, number, 8, shaken=True)
        order = np.array(shown.order)
        places = order if shown.direction in ("right", "down") else order[::-1]  # across, by place along
        expected = sorted(frame.tobytes() for frame in film(shown, 32))
        for direction, (dx, dy) in DIRECTIONS.items():
            turned = bool(dx) != bool(DIRECTIONS[shown.direction][0])
            across = np.argsort(places) if turned else places
            steps = across if dx + dy > 0 else across[::-1]
            assert abs(np.corrcoef(np.arange(8), steps)[0, 1]) <= 0.7, "it is not one that is drawn"
            starts = shown.starts[:, ::-1] if turned else shown.starts
            other = Scene(shown.colour, direction, shown.shapes, starts, tuple(steps.tolist()), shaken=True)
            assert sorted(frame.tobytes() for frame in film(other, 32)) == expected
    orders = {scene(0, number, 4, shaken=True).order for number in range(2000)}
    assert orders == {o[::-1] for o in orders} == {tuple(np.argsort(o).tolist()) for o in orders}


def test_a_glimpse_is_in_one_frame(tmp_path: Path) -> None:
    glimpses(tmp_path, 40, seed=1, frames=16)
    spots = set()
    for record in json.loads((tmp_path / "conversations.json").read_text()):
        frames = video.decode((tmp_path / record["video"]).read_bytes())
        shown = lit(frames).any(axis=(1, 2))
        assert shown.sum() == 1
        assert record["conversations"][1]["value"] == colour_of(frames)
        spots.add(int(shown.argmax()))
    assert len(spots) > 10
    for depth, place in ((0.0, 0), (0.5, 8), (1.0, 16)):
        assert np.flatnonzero(lit(glimpse(5, 17, 32, depth)[0]).any(axis=(1, 2))).tolist() == [place]


def test_wrong_arguments_and_other_files(tmp_path: Path) -> None:
    wrong: dict[str, int]
    writers: tuple[Callable[..., None], ...] = (questions, glimpses)
    for wrong in [{"clips": 0}, {"clips": 1, "size": 33}, {"clips": 1, "size": 8}, {"clips": 1, "frames": 3}]:
        for write in writers:
            with pytest.raises(InputError):
                write(tmp_path / "new", **{"seed": 0, **wrong})
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine.txt").write_text("x")
    for write in writers:
        with pytest.raises(InputError, match=r"mine\.txt"):
            write(tmp_path, 1, seed=0)
