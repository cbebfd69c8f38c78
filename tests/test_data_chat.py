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

from data.chat import Encoded, encode
from data.conversations import Conversation, Turn, Visual, conversation_of
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
    encoded = encode(conversation_of(LLAVA), tokenizer)
    assert said(tokenizer, encoded, encoded.answers) == "A red square.<|end|>\nNothing.<|end|>\n"
    assert said(tokenizer, encoded, ~encoded.answers) == (
        "<|user|><video>\nWhat moves?<|end|>\n<|assistant|><|user|>And here? <image>\n<|end|>\n<|assistant|>"
    )
    assert said(tokenizer, encoded, encoded.spots) == "<video><image>"
    assert not encoded.answers[encoded.spots].any()


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 3)), min_size=1, max_size=5))
def test_any_words_and_any_visuals(tokenizer: Any, turns: list[tuple[str, int]]) -> None:
    """The words come back, whatever they are; each visual has its token, and none is a word that is said."""
    made = [
        Turn("user" if i % 2 == 0 else "assistant", (*[A] * n, t.replace("<", ""))) for i, (t, n) in enumerate(turns)
    ]
    encoded = encode(Conversation("x", tuple(made)), tokenizer)
    assert said(tokenizer, encoded, encoded.spots) == "<video>" * sum(part == A for turn in made for part in turn.parts)
    answers = "".join(
        "\n" * (len(turn.parts) - 1) + f"{turn.parts[-1]}<|end|>\n" for turn in made if turn.role == "assistant"
    )
    assert said(tokenizer, encoded, encoded.answers) == answers


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
        encode(conversation, drops)
    forgets = templated(tokenizer, TEMPLATE.replace("m['content']", "(m['content'] if loop.last else '')"))
    with pytest.raises(InputError, match="leaves earlier turns as they are"):
        encode(conversation, forgets)
    with pytest.raises(InputError, match=r"is one token of the tokenizer\n.*'<film>' is 6 tokens"):
        encode(conversation, tokenizer, {"video": "<film>", "image": "<image>"})
    typed = Conversation("t", (Turn("user", (A, "what is <video>?")), Turn("assistant", ("?",))))
    with pytest.raises(InputError, match="no such word in the text itself"):
        encode(typed, tokenizer)
