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

from data.chat.chat_template import Encoded, encode
from data.chat.formats import conversation_of
from data.chat.turns import Conversation, Turn, Visual
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
    assert said(tokenizer, encoded, encoded.answers) == "A red square.<|end|>Nothing.<|end|>"
    assert said(tokenizer, encoded, ~encoded.answers) == (
        "<|user|><video>\nWhat moves?<|end|>\n<|assistant|>\n<|user|>And here? <image>\n<|end|>\n<|assistant|>\n"
    )
    assert said(tokenizer, encoded, encoded.visual_positions) == "<video><image>"
    assert not encoded.answers[encoded.visual_positions].any()


@given(st.lists(st.tuples(st.text(max_size=8), st.integers(0, 3)), min_size=1, max_size=5))
def test_any_words_and_any_visuals(tokenizer: Any, turns: list[tuple[str, int]]) -> None:
    """The words come back, whatever they are; each visual has its token, and none is a word that is said."""
    made = [
        Turn("user" if i % 2 == 0 else "assistant", (*[A] * n, t.replace("<", ""))) for i, (t, n) in enumerate(turns)
    ]
    encoded = encode(Conversation("x", tuple(made)), tokenizer)
    assert said(tokenizer, encoded, encoded.visual_positions) == "<video>" * sum(
        part == A for turn in made for part in turn.parts
    )
    answers = "".join(
        "\n" * (len(turn.parts) - 1) + f"{turn.parts[-1]}<|end|>" for turn in made if turn.role == "assistant"
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


TEMPLATES = {  # what stands around turns, and the words that end those of the assistant
    "ChatML": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_start|> <|im_end|>",
        "<|im_end|>",
    ),
    "Llama 3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
        "<|eot_id|>",
    ),
    "Mistral": (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}",
        "<s> </s> [INST] [/INST]",
        " </s>",
    ),
    "Gemma": (
        "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<bos> <start_of_turn> <end_of_turn>",
        "<end_of_turn>",
    ),
    "Qwen 3": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}",
        "<|im_start|> <|im_end|> <think> </think>",
        "<|im_end|>",
    ),
    "two marks": (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|><|stop|>\n\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|user|> <|assistant|> <|end|> <|stop|>",
        "<|end|><|stop|>",
    ),
    "no mark": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "",
        "\n",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["Nothing.", "end", "One\n\ntwo: <b> im_end", "think", "</s"])
def test_an_answer_ends_with_the_mark_of_its_turn(tokenizer: Any, name: str, answer: str) -> None:
    """Its words and that mark are learned, and not what separates turns, such as a line feed."""
    template, marks, end = TEMPLATES[name]
    alphabet = Model.from_str(tokenizer.backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=alphabet, chat_template=template)
    made.add_special_tokens({"additional_special_tokens": marks.split()})
    asked = [Turn("user", ("What moves?",)), Turn("assistant", (answer,))]
    encoded = encode(Conversation("a", (*asked, *asked)), made)
    before = " " if name == "Mistral" else ""
    assert said(made, encoded, encoded.answers) == f"{before}{answer}{end}" * 2


HOSTILE = {
    "two loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "for more than"),
    "a loop over words": (
        "{% for a in range(99999) %}{{ messages | string }}{% endfor %}",
        "for more than|than it may|and little more",
    ),
    "a power": ("{{ 9 ** (9 ** (9 ** 9)) }}", "for more than|memory"),
    "a long text": ("{{ 'x' * 99999999999 }}", "memory"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    "a type": ("{{ 1 + 'a' }}", "TypeError"),
    "its own error": ("{{ raise_exception('no system prompt') }}", "TemplateError: no system prompt"),
    "no template": ("{% for %}", "TemplateSyntaxError"),
    "our attributes": ("{{ messages.__class__.__mro__ }}", "SecurityError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(tokenizer: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does, and the next one works."""
    monkeypatch.setattr("data.chat.chat_template.SECONDS", 0.3)
    template, reason = HOSTILE[name]
    for number in range(1 + (name == "two loops")):
        with pytest.raises(InputError, match=rf"(?s)a chat template .*a: .*({reason})|{reason}") as error:
            encode(conversation_of(LLAVA), templated(tokenizer, template + " " * number))
        assert error.value.remedy
    assert encode(conversation_of(LLAVA), tokenizer).answers.any()


def test_a_template_that_hangs_is_not_tried_for_ever(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million records are not a million times the limit."""
    monkeypatch.setattr("data.chat.chat_template.SECONDS", 0.05)
    hangs = templated(tokenizer, HOSTILE["two loops"][0])
    told = []
    for _ in range(5):
        with pytest.raises(InputError) as error:
            encode(conversation_of(LLAVA), hangs)
        told.append(error.value.value)
    assert told[3] == told[4] == "a: it computed for more than 0.05 s, 3 times"


def test_a_template_that_writes_too_much(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"writes what is said, and little more\n.*a: 2,[0-9]{3},"):
        encode(conversation_of(LLAVA), templated(tokenizer, "{{ 'x' * 2000000 }}" + TEMPLATE))


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
