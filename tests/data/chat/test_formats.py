"""Records in the forms that the field publishes: seen, only their moment, in their place; or refused, and why."""

from __future__ import annotations

from typing import Any

import pytest

from data.chat.formats import conversation_of
from data.chat.record_fields import HARMLESS
from data.chat.turns import Turn, Visual
from parallel.errors import InputError

A, B, C = Visual("video", "a.mp4"), Visual("video", "b.mp4"), Visual("image", "i.png")
ASK = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "It."}]
SAY = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "It."}]


def part(*parts: dict[str, Any]) -> dict[str, Any]:
    """Messages whose user says these parts and a word."""
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}
    return {"messages": [asked, {"role": "assistant", "content": [{"type": "text", "text": "It."}]}]}


def turns(*said: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Of user and assistant, in turn."""
    return [(("user", "assistant")[n % 2], one if isinstance(one, tuple) else (one,)) for n, one in enumerate(said)]


PLAIN = turns((A, "What?"), "It.")
FORMS: dict[str, tuple[dict[str, Any], list[tuple[str, tuple[Any, ...]]]]] = {
    "LLaVA": ({"id": "1", "video": "a.mp4", "conversations": ASK}, PLAIN),
    "LLaVA, an image": (
        {"id": "1", "image": "i.png", "model": "", "conversations": [{**ASK[0], "value": "<image>\nWhat?"}, ASK[1]]},
        turns((C, "What?"), "It."),
    ),
    "LLaVA-Video-178K": (
        {
            "id": "1",
            "data_source": "0_30_s_youtube",
            "video": "a.mp4",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}],
        },
        PLAIN,
    ),
    "LLaVA-NeXT, two videos": (
        {"video": ["a.mp4", "b.mp4"], "conversations": [{**ASK[0], "value": "<video>\n<video>\nWhat?"}, ASK[1]]},
        turns((A, B, "What?"), "It."),
    ),
    "ShareGPT with a system prompt": (
        {"system": "Be short.", "videos": ["a.mp4"], "conversations": ASK, "tools": "[]"},
        [("system", ("Be short.",)), *PLAIN],
    ),
    "ShareGPT in pairs": (
        {
            "system": "",
            "conversation": [{"human": "<video>What?", "assistant": "It."}, {"human": "?", "assistant": "!"}],
            "videos": ["a.mp4"],
        },
        turns((A, "What?"), "It.", "?", "!"),
    ),
    "LLaMA-Factory": ({"messages": SAY, "videos": ["a.mp4"]}, PLAIN),
    "LLaMA-Factory, conversations": ({"conversations": ASK, "videos": ["a.mp4"], "images": [], "audios": None}, PLAIN),
    "LLaMA-Factory, Alpaca": (
        {
            "instruction": "<video>What?",
            "input": "Now.",
            "output": "It.",
            "videos": ["a.mp4"],
            "system": "Hm.",
            "history": [["Ready?", "Yes."]],
        },
        [("system", ("Hm.",)), *turns("Ready?", "Yes.", (A, "What?\nNow."), "It.")],
    ),
    "ms-swift": (
        {
            "messages": [
                {"role": "system", "content": "Hm."},
                {"role": "user", "content": "<image>one, <video>other?"},
                SAY[1],
            ],
            "images": ["i.png"],
            "videos": ["a.mp4"],
        },
        [("system", ("Hm.",)), *turns((C, "one, ", A, "other?"), "It.")],
    ),
    "ms-swift, before training": (
        {"messages": [{"role": "assistant", "content": "<video>is a dog"}], "videos": ["a.mp4"]},
        [("assistant", (A, "is a dog"))],
    ),
    "ms-swift, query and response": (
        {
            "query": "<video>What?",
            "response": "It.",
            "history": [["<image>?", "No."]],
            "videos": "a.mp4",
            "images": [{"bytes": None, "path": "i.png"}],
        },
        turns((C, "?"), "No.", (A, "What?"), "It."),
    ),
    "Qwen-VL": (part({"type": "video", "video": "a.mp4"}), PLAIN),
    "Qwen-VL, a moment": (
        part({"type": "video", "video": "file:///d/a%20b.mp4", "video_start": 2, "video_end": 4.5}),
        turns((Visual("video", "/d/a b.mp4", 2.0, 4.5), "What?"), "It."),
    ),
    "Qwen-VL, without types": (part({"video": "a.mp4"}, {"image": "i.png"}), turns((A, C, "What?"), "It.")),
    "OpenAI": (
        part(
            {"type": "video_url", "video_url": {"url": "a.mp4"}},
            {"type": "image_url", "image_url": {"url": "i.png", "detail": "auto"}},
        ),
        turns((A, C, "What?"), "It."),
    ),
    "OpenAI, responses": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "i.png"}, {"type": "input_text", "text": "What?"}],
                },
                {"role": "assistant", "content": [{"type": "output_text", "text": "It."}], "refusal": None},
            ]
        },
        turns((C, "What?"), "It."),
    ),
    "TRL, parts of the record's list": (
        {**part({"type": "video"}), "videos": ["a.mp4"]},
        PLAIN,
    ),
    "transformers, a part with a path": (part({"type": "video", "path": "a.mp4"}), PLAIN),
    "a moment beside a conversation": (
        {"conversations": ASK, "video": "a.mp4", "start": 0.5, "end": 3, "duration": 9, "split": "train"},
        turns((Visual("video", "a.mp4", 0.5, 3.0), "What?"), "It."),
    ),
    "a moment from the beginning": (
        {"messages": SAY, "videos": ["a.mp4"], "start": 0, "end": 3},
        turns((Visual("video", "a.mp4", None, 3.0), "What?"), "It."),
    ),
    "VideoChat2": (
        {"video": "a.mp4", "QA": [{"i": "Watch.", "q": "What?", "a": "It."}, {"i": "", "q": "And?", "a": "No."}]},
        turns((A, "Watch.\nWhat?"), "It.", "And?", "No."),
    ),
    "VideoChat2, a moment described": (
        {"video": "a.mp4", "start": 1, "end": 3, "QA": [{"q": "", "a": "It."}]},
        turns((Visual("video", "a.mp4", 1.0, 3.0),), "It."),
    ),
    "roles in capitals": (
        {"video": "a.mp4", "conversations": [{**ASK[0], "from": "Human"}, {**ASK[1], "from": "ChatGPT"}]},
        PLAIN,
    ),
    "words alone": ({"text": "Words.", "source": "web"}, [("assistant", ("Words.",))]),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_published_form(name: str) -> None:
    record, expected = FORMS[name]
    assert conversation_of(record).turns == tuple(Turn(role, parts) for role, parts in expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_a_harmless_key_changes_nothing(key: str) -> None:
    record, _ = FORMS["LLaVA"]
    assert conversation_of({**record, key: 3}).turns == conversation_of(record).turns


LOST: dict[str, tuple[dict[str, Any], str]] = {  # record, and what its refusal tells
    "videos twice": ({"conversations": ASK, "video": "a.mp4", "videos": ["a.mp4"]}, "video and videos in the record"),
    "videos without a place": (
        {"conversations": [{"from": "human", "value": "What?"}, ASK[1]], "videos": ["a.mp4"]},
        "0 times <video> in the text, 1 files",
    ),
    "a place without videos": ({"messages": SAY}, "1 times <video> in the text, 0 files"),
    "a place in words alone": ({"text": "a <video>"}, "1 times <video> in the text, 0 files"),
    "a caption beside its video": ({"text": "A dog.", "video": "a.mp4"}, "0 times <video> in the text, 1 files"),
    "places of both kinds": (
        {"conversations": [{"from": "human", "value": "<video><image>?"}, ASK[1]], "video": ["a.mp4", "b.mp4"]},
        "1 times <video> in the text, 2 files",
    ),
    "a place, and another key for its video": (
        {"conversations": ASK, "video_file": "a.mp4"},
        "1 times <video> in the text, 0 files; keys that are not read: 'video_file'",
    ),
    "another key for the video": ({"conversations": ASK[1:], "clip": "a.mp4"}, "'clip' in the record: 'a.mp4'"),
    "parts as text": (
        {"messages": [{"role": "user", "content": '[{"type": "video", "video": "a.mp4"}]'}, SAY[-1]]},
        "the parts of a message are a list, not the text of one",
    ),
    "a video in a harmless key": (
        {"conversations": ASK[1:], "metadata": {"clip": ["x/a.mp4"]}},
        "'x/a.mp4' in 'metadata' of the record",
    ),
    "audios": ({"messages": SAY, "videos": ["a.mp4"], "audios": ["a.wav"]}, "'audios' in the record: .'a.wav'.*sound"),
    "a part of sound": (part({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), "input_audio"),
    "frames as files": (part({"type": "video", "video": ["file:///1.jpg", "file:///2.jpg"]}), "not a list of frames"),
    "frames in a list of videos": ({"messages": SAY, "videos": [["1.jpg", "2.jpg"]]}, "not a list of frames"),
    "bytes": (part({"type": "image", "image": "data:image;base64,/9j/"}), "videos and images are named"),
    "bytes of a column": ({"messages": SAY, "videos": [{"bytes": "x", "path": None}]}, "videos and images are named"),
    "fps of a part": (
        part({"type": "video", "video": "a.mp4", "fps": 2.0}),
        "'fps' in part 1 of message 1: 2.0.*data.stride",
    ),
    "pixels of a part": (part({"type": "video", "video": "a.mp4", "max_pixels": 50176}), "'max_pixels' in part 1"),
    "detail of a part": (
        part({"type": "image_url", "image_url": {"url": "i.png", "detail": "low"}}),
        "'detail' in part 1",
    ),
    "a moment of two videos": (
        {"conversations": [{"from": "human", "value": "<video><video>?"}, ASK[1]], "video": ["a", "b"], "start": 1},
        "from 1.0 to None s, 2 videos",
    ),
    "a moment of none": ({"conversations": ASK[1:], "start": 1, "end": 2}, "from 1.0 to 2.0 s, 0 videos"),
    "a moment backwards": ({"conversations": ASK, "video": "a.mp4", "start": 4, "end": 2}, "4 to 2 s"),
    "a moment as a text": ({"conversations": ASK, "video": "a.mp4", "start": "00:01"}, "start: '00:01'"),
    "a moment that is none": ({"conversations": ASK, "video": "a.mp4", "end": float("inf")}, "end: inf"),
    "a moment in frames": (
        {"conversations": ASK, "video": "a.mp4", "start_frame": 3},
        "'start_frame' in the record: 3",
    ),
    "two system prompts": (
        {"system": "a", "videos": ["a.mp4"], "messages": [{"role": "system", "content": "b"}, *SAY]},
        "one system prompt",
    ),
    "tools": (
        {"messages": SAY, "videos": ["a.mp4"], "tools": '[{"name": "f"}]'},
        "'tools' in the record.*calls of tools",
    ),
    "a call of a tool": (
        {"conversations": [{"from": "function_call", "value": "{}"}, *ASK], "video": "a.mp4"},
        "function_call",
    ),
    "calls in a message": (
        {"messages": [*SAY, {"role": "assistant", "content": "", "tool_calls": [1]}], "videos": ["a.mp4"]},
        "'tool_calls' in message 3",
    ),
    "a preference": (
        {"messages": SAY, "videos": ["a.mp4"], "rejected_response": "No."},
        "'rejected_response' in the record",
    ),
    "a label": ({"messages": SAY, "videos": ["a.mp4"], "label": False}, "'label' in the record: False"),
    "boxes": ({"messages": SAY, "videos": ["a.mp4"], "objects": {"bbox": [[1, 2]]}}, "'objects' in the record"),
    "a turn that is not learned": (
        {"messages": [SAY[0], {**SAY[1], "loss": False}], "videos": ["a.mp4"]},
        "'loss' in message 2: False",
    ),
    "thoughts": (
        {"messages": [SAY[0], {**SAY[1], "reasoning_content": "Hm."}], "videos": ["a.mp4"]},
        "'reasoning_content'",
    ),
    "an image in the text": (
        {"query": "Picture 1: <img>i.png</img>\nWhat?", "response": "It."},
        "'<img>i.png</img>' in the text",
    ),
    "a place of another model": (
        {"messages": [{"role": "user", "content": "<|video_pad|>?"}, SAY[1]], "source": "web"},
        r"'<\|video_pad\|>' in the text",
    ),
    "a place of sound": ({"messages": [{"role": "user", "content": "<audio>?"}, SAY[1]]}, "'<audio>' in the text"),
    "the end of a place": (
        {"video": "a.mp4", "conversations": [{**ASK[0], "value": "<video></video>?"}, ASK[1]]},
        "'</video>' in the text",
    ),
    "a moment in the list of videos": (
        {"messages": SAY, "videos": [{"path": "a.mp4", "start": 1}]},
        "'start' in video a.mp4: 1",
    ),
    "an answer of spaces": (
        {"messages": [SAY[0], {**SAY[1], "content": " \n"}], "videos": ["a.mp4"]},
        "somebody answers",
    ),
    "an answer of VideoChat2 that is none": ({"video": "a.mp4", "QA": [{"q": "?", "a": ["x"]}]}, "says something"),
    "both lists": ({"messages": SAY, "conversations": ASK, "video": "a.mp4"}, "'messages' in the record"),
    "a file in a message": (
        {"messages": [{**SAY[0], "video": "a.mp4"}, SAY[1]], "videos": ["b.mp4"]},
        "'video' in message 1",
    ),
    "a stream with more": (
        {"video": "a.mp4", "stream": [{"time": 1, "text": "x"}], "system": "?"},
        "'system' in the record",
    ),
    "a stream with more in it": (
        {"video": "a.mp4", "stream": [{"time": 1, "text": "x", "end": 2}]},
        "'end' in its stream",
    ),
    "a query with a moment": (
        {"video": "a.mp4", "query": "When?", "start": 1, "end": 2, "response": "It."},
        "0 times <video> in the text, 1 files",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_refused(name: str) -> None:
    """With the place in the file, the key, and what can be done."""
    record, found = LOST[name]
    with pytest.raises(InputError, match=f"(?s){found}") as error:
        conversation_of({"id": "x", **record}, "r.json, line 7")
    assert error.value.value.startswith("r.json, line 7: ")
    assert "docs/video-language.md" in error.value.remedy


@pytest.mark.parametrize(
    ("record", "key"),
    [
        (part({"type": "video", "video": "a.mp4", "fps": 2.0}), "fps"),
        ({"messages": SAY, "videos": ["a.mp4"], "rejected_response": "No."}, "rejected_response"),
        ({"messages": SAY, "videos": [{"path": "a.mp4", "start": 1}]}, "start"),
        ({"messages": [SAY[0], {**SAY[1], "name": "x"}], "videos": ["a.mp4"]}, "name"),
        ({"messages": SAY, "videos": ["a.mp4"], "metadata": {"fps": 2}, "clip": "x"}, "clip"),
    ],
)
def test_the_remedy_works(record: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as error:
        conversation_of(record)
    assert f"--ignore {key} " in error.value.remedy
    assert conversation_of(record, ignored=[key]).turns == tuple(Turn(r, p) for r, p in PLAIN)  # type: ignore[arg-type]


def test_any_key_can_be_passed_over() -> None:
    """One that is read, too."""
    record = {"messages": SAY, "videos": ["a.mp4"], "start": "00:01", "images": ["i.png"]}
    with pytest.raises(InputError, match="start: '00:01'"):
        conversation_of(record)
    assert conversation_of(record, ignored=["start", "images"]).visuals == (A,)
