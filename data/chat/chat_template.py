"""A conversation as the tokens of a model: its chat template, places for visuals, and which tokens are answers.

    turns --chat template--> "<user> <video> What moves? <end> <bot> A red square. <end>"
          --tokenizer------>  [  u    v     13  88   e     b    4  9  27     e  ]
                                                               [ answers ]

A visual is one token; `data.streams.chat_layout` makes as many of it as a model has rows for it.

Which tokens are answers is found by rendering: what the template adds for a turn of the assistant, after what it says
to make one speak, is that turn, up to the mark that ends it. So any template works that leaves earlier turns as they
are; others are refused. A template is code of others, and is rendered behind a fence (`data.workers.sandbox`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from data.chat.turns import Conversation, Kind
from data.workers.sandbox import Fence, FenceError
from parallel.errors import InputError

SECONDS = 5.0  # of computing that a template may take for a conversation
LONG = 500  # messages from which on it may take notably more: it is rendered for each of them
LARGEST, TIMES = 1 << 20, 16  # characters of a text, beside so many times what is said in it
DEFAULT_PLACES: Mapping[Kind, str] = {"video": "<video>", "image": "<image>"}


class Tokenizer(Protocol):
    """What is asked of a fast tokenizer of transformers."""

    def __call__(self, text: str, **options: Any) -> Any:
        """Token ids and their offsets in the text."""

    def __len__(self) -> int:
        """Of the vocabulary, added tokens included."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """The text of a conversation."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A conversation as tokens.

    Attributes:
        tokens: [tokens] int64; a visual is one of them.
        answers: [tokens], whether it is a word that the assistant says.
        visual_positions: [visuals] which tokens stand for the visuals, in order.
    """

    tokens: npt.NDArray[np.int64]
    answers: npt.NDArray[np.bool_]
    visual_positions: npt.NDArray[np.int64]


def encode(conversation: Conversation, tokenizer: Tokenizer, words: Mapping[Kind, str] = DEFAULT_PLACES) -> Encoded:
    """The tokens of a conversation.

    Args:
        conversation: what is said.
        tokenizer: with a chat template.
        words: of the tokenizer, which stand for a visual; each is one token.

    Raises:
        InputError: the template drops visuals or changes earlier turns, or the tokenizer has no place for a visual.
    """
    ids = {kind: _id_of(tokenizer, words[kind]) for kind in {v.kind for v in conversation.visuals}}
    messages = [
        {
            "role": turn.role,
            "content": "".join(part if isinstance(part, str) else words[part.kind] + "\n" for part in turn.parts),
        }
        for turn in conversation.turns
    ]
    try:
        fence = _fence_of(cast(Hashable, tokenizer), str(getattr(tokenizer, "chat_template", "")))
        text, spans = fence(messages, conversation.uid, scale=(1 + len(messages) / LONG) ** 2)
    except FenceError as error:
        remedy = "a template without such rules, such as that of the base model, or mend the record"
        raise InputError("a chat template renders a conversation", f"{conversation.uid}: {error}", remedy) from error
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, said = np.asarray(found["input_ids"], dtype=np.int64), np.asarray(found["offset_mapping"]).reshape(-1, 2)
    _refuse_other_count(conversation, tokenizer, tokens, ids, words)
    answers = np.zeros(len(tokens), dtype=bool)
    for start, stop in spans:
        answers |= (said[:, 0] >= start) & (said[:, 0] < stop) & (said[:, 1] > said[:, 0])
    visual_positions = np.flatnonzero(np.isin(tokens, list(ids.values())))
    answers[visual_positions] = False
    return Encoded(tokens, answers, visual_positions)


@lru_cache(maxsize=4)
def _fence_of(tokenizer: Any, template: str) -> Fence:
    """Where a template is rendered: it is code of somebody else."""
    return Fence(partial(_rendered, tokenizer, _marks(tokenizer)), SECONDS)


def _marks(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The words that are no text: one of them ends a turn."""
    added = [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
    named = [str(token) for token in getattr(tokenizer, "all_special_tokens", ())]
    return tuple({token for token in (*added, *named) if token.strip()})


def control_mark(text: str, tokenizer: Tokenizer) -> str | None:
    """A word of the tokenizer that begins or ends turns, in what somebody says: it would be no text there."""
    return next((mark for mark in _special(cast(Hashable, tokenizer)) if mark in text), None)


@lru_cache(maxsize=4)
def _special(tokenizer: Any) -> tuple[str, ...]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if getattr(token, "special", False)}
    found.update(map(str, getattr(tokenizer, "all_special_tokens", ())))
    return tuple(sorted(mark for mark in found if mark.strip()))


def _rendered(
    tokenizer: Tokenizer, marks: Sequence[str], messages: list[dict[str, str]], uid: str
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it the assistant speaks."""
    render = tokenizer.apply_chat_template
    text = str(render(messages, tokenize=False))
    said = sum(len(message["content"]) for message in messages)
    if len(text) > LARGEST + TIMES * said:
        found = f"{uid}: {len(text):,} characters of {said:,} that are said"
        raise InputError("a chat template writes what is said, and little more", found, "mend the template")
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _before(render, messages, number)
            after = str(render(messages[: number + 1], tokenize=False))
            if not (text.startswith(before) and text.startswith(after) and after.startswith(before)):
                raise InputError(
                    "a chat template leaves earlier turns as they are when turns are added",
                    f"{uid}: turn {number} begins otherwise in the whole: {text[: len(before)][-60:]!r}",
                    "a template without such rules, such as that of the base model",
                )
            spans.append((len(before), len(before) + _spoken(after[len(before) :], message["content"], marks)))
    return text, spans


def _spoken(turn: str, words: str, marks: Sequence[str]) -> int:
    """How much of a turn the assistant says: its words, and the marks that end it, not what separates it from the next.

    It.<|im_end|>\\n         ChatML, Gemma       It.</s>     Mistral       It.\\n\\n     no mark: all of it
    ~~~~~~~~~~~~~                               ~~~~~~~                   ~~~~~~~
    """
    said = words.strip()
    start = _after(turn, said, marks)
    ends = [at for mark in marks if (at := turn.find(mark, start)) >= 0]
    if not ends:
        return len(turn)
    at = min(ends)
    while at < len(turn):
        mark = max((mark for mark in marks if turn.startswith(mark, at)), key=len, default="")
        if not mark:
            break
        at += len(mark)
    return at


def _after(turn: str, said: str, marks: Sequence[str]) -> int:
    """Where what is said in a turn ends; the word "end" is not that of the mark <|end|>. 0 if it is not found."""
    inside = [
        range(at, at + len(mark) - len(said) + 1)
        for mark in marks
        if said in mark and said != mark
        for at in (found.start() for found in re.finditer(re.escape(mark), turn))
    ]
    at = turn.find(said)
    while at >= 0 and any(at in one for one in inside):
        at = turn.find(said, at + 1)
    return at + len(said) if at >= 0 and said else 0


def _before(render: Callable[..., Any], messages: list[dict[str, str]], number: int) -> str:
    """The text up to where the assistant begins to speak."""
    if number:
        return str(render(messages[:number], tokenize=False, add_generation_prompt=True))
    first = str(render(messages[:1], tokenize=False))  # no template renders nothing, so see what it adds after a turn
    prompt = str(render(messages[:1], tokenize=False, add_generation_prompt=True)).removeprefix(first)
    head, found, _ = first.partition(prompt) if prompt else ("", "", "")
    return head + found if found else ""


def _id_of(tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or tokenizer.convert_tokens_to_ids(word) != ids[0]:
        raise InputError(
            "the place of a visual is one token of the tokenizer",
            f"{word!r} is {len(ids)} tokens",
            f"the word that this tokenizer has for it, or tokenizer.add_special_tokens of {word!r}",
        )
    return int(ids[0])


def _refuse_other_count(
    conversation: Conversation,
    tokenizer: Tokenizer,
    tokens: npt.NDArray[np.int64],
    ids: Mapping[Kind, int],
    words: Mapping[Kind, str],
) -> None:
    """A place without a visual in the text is refused as well, if it is a token of its own."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    for kind, word in words.items():
        id_ = ids.get(kind, tokenizer.convert_tokens_to_ids(word))
        if id_ is None or id_ == unknown:
            continue
        asked = sum(v.kind == kind or ids[v.kind] == id_ for v in conversation.visuals)
        found = int((tokens == id_).sum())
        if found != asked:
            raise InputError(
                f"a chat template keeps one place for each {kind}",
                f"{conversation.uid}: {found} times {words[kind]!r} in what it makes of {asked}",
                "a template that writes content as it is; and no such word in the text itself",
            )
