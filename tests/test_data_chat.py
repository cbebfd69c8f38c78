"""Conversations in every form that people keep, as the tokens of a model; with a tokenizer that is made here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Model
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.chat import Encoded, Place, encode, refuse_long, refuse_other_vocabulary
from data.conversations import Conversation, Turn, Visual, caption_of, conversation_of
from parallel.errors import InputError

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAVA = {
    "id": "a", "video": "a.mp4", "image": ["b.png"],
    "conversations": [
        {"from": "human", "value": "<video>\nWhat moves?"}, {"from": "gpt", "value": "A red square."},
        {"from": "human", "value": "And here? <image>"}, {"from": "gpt", "value": "Nothing."},
    ],
}  # fmt: skip
MESSAGES = {
    "uid": "a",
    "messages": [
        {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": "A red square."},
        {"role": "user", "content": [{"type": "text", "text": "And here? "}, {"type": "image", "image": "b.png"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Nothing."}]},
    ],
}
A, B = Visual("video", "a.mp4"), Visual("image", "b.png")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes, and a few special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Model(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=model, chat_template=TEMPLATE)
    made.add_special_tokens(
        {"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<video>", "<image>"]}
    )
    return made


def rows(number: int, visual: Visual) -> list[str | int]:
    """Two frames of three rows with their times, or an image of four."""
    return ["0s", 3, "1s", 3] if visual.kind == "video" else [4]


def said(tokenizer: Any, encoded: Encoded, what: np.ndarray[Any, Any]) -> str:
    text: str = tokenizer.decode(encoded.tokens[what])
    return text


@pytest.mark.parametrize("record", [LLAVA, MESSAGES], ids=["llava", "messages"])
def test_forms(record: dict[str, Any]) -> None:
    found = conversation_of(record)
    assert found == Conversation(
        "a",
        (
            Turn("user", (A, "What moves?")),
            Turn("assistant", ("A red square.",)),
            Turn("user", ("And here? ", B)),
            Turn("assistant", ("Nothing.",)),
        ),
    )
    assert found.visuals == (A, B)


def test_tokens_places_and_answers(tokenizer: Any) -> None:
    encoded = encode(conversation_of(LLAVA), tokenizer, rows)
    assert said(tokenizer, encoded, encoded.answers) == "A red square.<|end|>\nNothing.<|end|>\n"
    assert said(tokenizer, encoded, ~encoded.answers & ~encoded.visual) == (
        "<|user|>0s1s\nWhat moves?<|end|>\n<|assistant|><|user|>And here? \n<|end|>\n<|assistant|>"
    )
    assert [(p.visual, p.first, p.rows) for p in encoded.places] == [(0, 0, 3), (0, 3, 3), (1, 0, 4)]
    for place in encoded.places:
        assert encoded.visual[place.start : place.start + place.rows].all()
    assert encoded.visual.sum() == 10
    assert not (encoded.visual & encoded.answers).any()
    assert encoded.weights().sum() == encoded.answers.sum()
    assert encoded.weights(answers=0.5, words=0.25)[encoded.visual].sum() == 0


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 3)), min_size=1, max_size=5))
def test_any_words_and_any_visuals(tokenizer: Any, turns: list[tuple[str, int]]) -> None:
    """The words come back, whatever they are; visuals have their rows, in order."""
    made = [
        Turn("user" if i % 2 == 0 else "assistant", (*[A] * (n if i % 2 == 0 else 0), text.replace("<", "")))
        for i, (text, n) in enumerate(turns)
    ]
    encoded = encode(Conversation("x", tuple(made)), tokenizer, lambda number, visual: [number + 1])
    assert [place.rows for place in encoded.places] == list(range(1, len(encoded.places) + 1))
    assert len(encoded.places) == sum(part == A for turn in made for part in turn.parts)
    answers = "".join(f"{turn.parts[-1]}<|end|>\n" for turn in made if turn.role == "assistant")
    assert said(tokenizer, encoded, encoded.answers) == answers


def test_a_caption_is_a_conversation(tokenizer: Any) -> None:
    encoded = encode(caption_of("c", A, "A cat."), tokenizer, rows)
    assert said(tokenizer, encoded, encoded.answers) == "A cat.<|end|>\n"
    assert encoded.places[0] == Place(3, 0, 0, 3)


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"id": "a", "talk": "x"}, "has conversations or messages"),
        ({**LLAVA, "video": None}, "a place <video> for each video"),
        ({**LLAVA, "image": ["b.png", "c.png"]}, "a place <image> for each image"),
        ({"id": "a", "conversations": [{"from": "human", "value": "?"}]}, "somebody answers"),
        ({"id": "a", "conversations": [{"from": "cat", "value": "?"}]}, "a turn is of"),
        ({"id": "a", "conversations": [{"from": "human", "value": 3}]}, "says something"),
        ({"id": "a", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a text, a video or an image"),
        ({"id": "a", "messages": [{"role": "user", "content": None}]}, "a message has content"),
    ],
)
def test_records_that_are_refused(record: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        conversation_of(record)


def templated(tokenizer: Any, template: str) -> Any:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, chat_template=template)
    return made


def test_templates_and_tokenizers_that_are_refused(tokenizer: Any) -> None:
    conversation = conversation_of(LLAVA)
    drops = templated(tokenizer, TEMPLATE.replace("m['content']", "m['content'].replace('<video>', '')"))
    with pytest.raises(InputError, match=r"one place for each video\n.*0 times '<video>' in what it makes of 1"):
        encode(conversation, drops, rows)
    forgets = templated(tokenizer, TEMPLATE.replace("m['content']", "(m['content'] if loop.last else '')"))
    with pytest.raises(InputError, match="leaves earlier turns as they are"):
        encode(conversation, forgets, rows)
    with pytest.raises(InputError, match=r"is one token of the tokenizer\n.*'<film>' is 6 tokens"):
        encode(conversation, tokenizer, rows, {"video": "<film>", "image": "<image>"})
    typed = Conversation("t", (Turn("user", (A, "what is <video>?")), Turn("assistant", ("?",))))
    with pytest.raises(InputError, match="no such word in the text itself"):
        encode(typed, tokenizer, rows)


def test_models_that_are_too_small(tokenizer: Any) -> None:
    refuse_other_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(InputError, match="262 tokens, 100 rows"):
        refuse_other_vocabulary(tokenizer, 100)
    encoded = encode(conversation_of(LLAVA), tokenizer, rows)
    refuse_long(encoded, len(encoded.tokens), "a")
    with pytest.raises(InputError, match="positions that the model knows"):
        refuse_long(encoded, 20, "a")
