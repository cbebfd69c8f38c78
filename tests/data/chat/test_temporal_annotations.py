"""Annotations of three forms are stretches of video with words between them; each frame knows whether words follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.chat.temporal_annotations import Stretch, query_of, said, speaks, stream_of
from parallel.errors import InputError

NARRATION = {
    "id": "a",
    "video": "a.mp4",
    "duration": 9.0,
    "stream": [{"time": 2.0, "text": "He runs."}, {"time": 5.5, "text": " He falls. "}],
}
CAPTIONS = {"video": "a.mp4", "timestamps": [[0.0, 4.2], [4.2, 9.0]], "sentences": ["He runs.", "He falls."]}
GROUNDING = {"video": "a.mp4", "query": "When does he fall?", "start": 4.2, "end": 9}
EACH_SECOND = np.arange(9.0)


def test_forms() -> None:
    assert stream_of(NARRATION) == (
        Stretch("a.mp4", None, 2.0),
        "He runs.",
        Stretch("a.mp4", 2.0, 5.5),
        "He falls.",
        Stretch("a.mp4", 5.5, None),
    )
    assert stream_of(CAPTIONS) == (
        Stretch("a.mp4", None, 4.2),
        "He runs.",
        Stretch("a.mp4", 4.2, 9.0),
        "He falls.",
        Stretch("a.mp4", 9.0, None),
    )
    assert stream_of({**CAPTIONS, "duration": 9.0})[-1] == "He falls."  # nothing is left of the video
    assert stream_of(GROUNDING)[:2] == (Stretch("a.mp4", None, 9.0), "From 4.2 to 9.0 seconds.")
    assert query_of(GROUNDING) == "When does he fall?"
    assert query_of(CAPTIONS) == ""


def test_the_drawing() -> None:
    assert speaks(EACH_SECOND, NARRATION).nonzero()[0].tolist() == [2, 5]
    assert said(EACH_SECOND, NARRATION)[5] == "He falls."


def test_names_as_in_activitynet() -> None:
    record = {key: value for key, value in CAPTIONS.items() if key != "video"}
    assert stream_of(record, "v_QOlSCBRmfWY")[0] == Stretch("v_QOlSCBRmfWY", None, 4.2)


def test_order_and_overlap() -> None:
    """Any order in the record; what is said at one time is said together, what began first comes first."""
    record = {
        "video": "a.mp4",
        "timestamps": [[3, 8], [0, 8], [1, 2], [0, 2.5]],
        "sentences": ["late", "whole", "early", "begin"],
    }
    assert [part for part in stream_of(record) if isinstance(part, str)] == ["early", "begin", "whole late"]
    assert said([0, 4, 8], record) == ("early begin", "", "whole late")


def test_at_the_very_beginning_and_just_beyond_the_end() -> None:
    record = {"video": "a", "duration": 3.0, "stream": [{"time": 3.04, "text": "y"}, {"time": 0, "text": "x"}]}
    assert stream_of(record) == (Stretch("a", None, 0.0), "x", Stretch("a", 0.0, 3.0), "y")
    assert speaks([0, 1, 2], record).tolist() == [True, False, True]


times = st.lists(st.integers(0, 80).map(lambda n: n / 4), min_size=1, max_size=12)


@given(times, times)
def test_frames_are_silent_by_the_rule(frames: list[float], annotated: list[float]) -> None:
    """And those that speak are the last ones of their stretches."""
    frames = sorted({0.0, *frames})
    record = {"video": "a", "stream": [{"time": t, "text": f"at {t}"} for t in annotated]}
    wanted = [
        any(frame <= t and not any(frame < other <= t for other in frames) for t in annotated) for frame in frames
    ]
    assert speaks(frames, record).tolist() == wanted
    assert [bool(text) for text in said(frames, record)] == wanted
    assert sorted(" ".join(said(frames, record)).split()) == sorted(" ".join(f"at {t}" for t in annotated).split())

    stretches = [part for part in stream_of(record) if isinstance(part, Stretch)]
    held = np.array([stretch.holds(frames) for stretch in stretches])
    assert (held.sum(0) == 1).all()  # every frame is in one stretch
    last = {int(np.flatnonzero(row)[-1]) for row in held[:-1] if row.any()}
    assert last <= set(np.flatnonzero(wanted).tolist())


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({}, "annotations are of one form"),
        ([], "a record is an object"),
        ({**NARRATION, **CAPTIONS}, "stream and captions among keys"),
        ({"id": "a", "sentences": ["x"]}, "none of them among keys: id, sentences"),
        ({**NARRATION, "video": None}, "annotations are of a video"),
        ({**NARRATION, "stream": []}, "stream without any words"),
        ({**NARRATION, "stream": "x"}, "stream are a list"),
        ({**NARRATION, "stream": ["x"]}, "objects with time and text"),
        ({**NARRATION, "stream": [{"time": 1.0}]}, "text: None"),
        ({**NARRATION, "stream": [{"time": 1.0, "text": " \n"}]}, "annotations say something"),
        ({**NARRATION, "stream": [{"text": "x"}]}, "a time is a number of seconds"),
        ({**NARRATION, "stream": [{"time": "1.0", "text": "x"}]}, "found:  a: '1.0'"),
        ({**NARRATION, "stream": [{"time": True, "text": "x"}]}, "found:  a: True"),
        ({**NARRATION, "stream": [{"time": float("nan"), "text": "x"}]}, "found:  a: nan"),
        ({**NARRATION, "stream": [{"time": float("inf"), "text": "x"}]}, "found:  a: inf"),
        ({**NARRATION, "stream": [{"time": 10**400, "text": "x"}]}, "a time is a number of seconds"),
        ({**NARRATION, "stream": [{"time": -0.5, "text": "x"}]}, "found:  a: -0.5"),
        ({**NARRATION, "stream": [{"time": 9.1, "text": "x"}]}, r"a: 9.1 s, duration 9.0 s"),
        ({**NARRATION, "duration": 0}, "a video has a duration"),
        ({**NARRATION, "duration": float("nan")}, "a time is a number of seconds"),
        ({**CAPTIONS, "sentences": ["x"]}, "a.mp4: 2 timestamps, 1 sentences"),
        ({**CAPTIONS, "timestamps": [[0, 4.2], [9.0, 4.2]]}, "a.mp4: 9.0 to 4.2 s"),
        ({**CAPTIONS, "timestamps": [[0, 4.2], [9.0]]}, r"a stretch is \[begin, end\]"),
        ({**CAPTIONS, "timestamps": [[0, 4.2], 9.0]}, r"a stretch is \[begin, end\]"),
        ({**CAPTIONS, "timestamps": [[0, 4.2], [4.2, 9.0]], "duration": 8}, "lie within the video"),
        ({**GROUNDING, "query": ""}, "annotations say something"),
        ({**GROUNDING, "end": 1}, "does not end before it begins"),
        ({**GROUNDING, "end": None}, "a time is a number of seconds"),
    ],
)
def test_records_that_are_refused(record: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        stream_of(record)


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        ([3.0, 4.0], "a: 'He runs.' at 2.0 s, first frame at 3.0 s"),
        ([], "no frames"),
        ([0.0, 2.0, 1.0], "in rising order"),
        ([0.0, float("nan")], "in rising order"),
        (np.zeros((2, 2)), "in rising order"),
    ],
)
def test_frames_that_are_refused(frames: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        speaks(frames, NARRATION)
