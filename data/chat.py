"""A conversation as the tokens of a model: its chat template, places for visuals, and which tokens are answers.

    turns --chat template--> "<user> <video> What moves? <end> <bot> A red square. <end>"
          --tokenizer------>  [  u    v     13  88   e     b    4  9  27     e  ]
          --layout--------->  [  u    v v v v v v  13 88 e b 4 9 27 e ]      a visual is as many places as it has rows
                                                         [ answers ]

Which tokens are answers is found by rendering: what the template adds for a turn of the assistant, after what it says
to make one speak, is that turn. So any template works that leaves earlier turns as they are; others are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from data.conversations import Conversation, Kind, Visual
from parallel.errors import InputError

Layout = Callable[[int, Visual], Sequence[str | int]]  # rows of a visual, and words between them (such as timestamps)
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


@dataclass(frozen=True)
class Place:
    """Consecutive rows of a visual among the tokens.

    Attributes:
        start: of them, in the tokens.
        visual: number of it in the conversation.
        first: row of the visual that is at `start`.
        rows: how many.
    """

    start: int
    visual: int
    first: int
    rows: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """A conversation as tokens.

    Attributes:
        tokens: [tokens] int64; the id of the place where a row of a visual stands.
        answers: [tokens], whether the assistant says it.
        visual: [tokens], whether it is a row of a visual.
        places: of the rows.
    """

    tokens: npt.NDArray[np.int64]
    answers: npt.NDArray[np.bool_]
    visual: npt.NDArray[np.bool_]
    places: tuple[Place, ...]

    def weights(self, answers: float = 1.0, words: float = 0.0) -> npt.NDArray[np.float32]:
        """Of the loss of saying each token; rows of visuals are not said."""
        return np.where(self.visual, 0.0, np.where(self.answers, answers, words)).astype(np.float32)


def encode(
    conversation: Conversation, tokenizer: Tokenizer, layout: Layout, words: Mapping[Kind, str] = DEFAULT_PLACES
) -> Encoded:
    """The tokens of a conversation.

    Args:
        conversation: what is said.
        tokenizer: with a chat template.
        layout: rows of each visual.
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
        text, spans = _rendered(tokenizer, messages, conversation.uid)
    except TemplateError as error:
        found = f"{conversation.uid}: {type(error).__name__}: {error}"
        remedy = "a template without such rules, such as that of the base model, or mend the record"
        raise InputError("a chat template renders a conversation", found, remedy) from error
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, said = np.asarray(found["input_ids"], dtype=np.int64), np.asarray(found["offset_mapping"]).reshape(-1, 2)
    _refuse_other_count(conversation, tokens, ids, words)
    answers = np.zeros(len(tokens), dtype=bool)
    for start, stop in spans:
        answers |= (said[:, 0] >= start) & (said[:, 0] < stop) & (said[:, 1] > said[:, 0])
    return _laid_out(conversation, tokens, answers, set(ids.values()), tokenizer, layout)


def refuse_other_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    """A model has a row for every token.

    Raises:
        InputError: it has fewer.
    """
    if len(tokenizer) > vocabulary:
        raise InputError(
            "a model has a row of its vocabulary for every token of its tokenizer",
            f"{len(tokenizer):,} tokens, {vocabulary:,} rows",
            "the tokenizer of this model, or model.resize_token_embeddings before training",
        )


def refuse_long(encoded: Encoded, positions: int, uid: str) -> None:
    """A conversation fits into the positions that a model knows.

    Raises:
        InputError: it does not.
    """
    if len(encoded.tokens) > positions:
        raise InputError(
            "a conversation is no longer than the positions that the model knows",
            f"{uid}: {len(encoded.tokens):,} tokens, {positions:,} positions",
            "fewer frames or fewer rows a frame, or a longer context (rope scaling)",
        )


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, str]], uid: str) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it the assistant speaks."""
    render = tokenizer.apply_chat_template
    text = str(render(messages, tokenize=False))
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
            spans.append((len(before), len(after)))
    return text, spans


def _before(render: Callable[..., Any], messages: list[dict[str, str]], number: int) -> str:
    """The text up to where the assistant begins to speak."""
    if number:
        return str(render(messages[:number], tokenize=False, add_generation_prompt=True))
    first = str(render(messages[:1], tokenize=False))  # no template renders nothing, so see what it adds after a turn
    prompt = str(render(messages[:1], tokenize=False, add_generation_prompt=True)).removeprefix(first)
    head, found, _ = first.partition(prompt) if prompt else ("", "", "")
    return head + found if found else ""


def _laid_out(
    conversation: Conversation,
    tokens: npt.NDArray[np.int64],
    answers: npt.NDArray[np.bool_],
    ids: set[int],
    tokenizer: Tokenizer,
    layout: Layout,
) -> Encoded:
    """With as many places for each visual as it has rows."""
    pieces: list[npt.NDArray[np.int64]] = []
    kinds: list[tuple[bool, bool]] = []  # (answer, visual) of each piece
    places: list[Place] = []
    at = before = 0
    spots = [index for index, token in enumerate(tokens.tolist()) if token in ids]
    for number, (spot, visual) in enumerate(zip(spots, conversation.visuals, strict=True)):
        for is_answer, run in _runs(tokens[before:spot], answers[before:spot]):
            pieces.append(run)
            kinds.append((is_answer, False))
            at += len(run)
        first = 0
        for piece in layout(number, visual):
            if isinstance(piece, int):
                places.append(Place(at, number, first, piece))
                run, first = np.full(piece, tokens[spot]), first + piece
            else:
                run = np.asarray(tokenizer(piece, add_special_tokens=False)["input_ids"], dtype=np.int64)
            pieces.append(run)
            kinds.append((False, isinstance(piece, int)))
            at += len(run)
        before = spot + 1
    for is_answer, run in _runs(tokens[before:], answers[before:]):
        pieces.append(run)
        kinds.append((is_answer, False))
    sizes = [len(piece) for piece in pieces]
    flags = np.repeat(np.array(kinds, dtype=bool).reshape(-1, 2), sizes, axis=0)
    return Encoded(np.concatenate([tokens[:0], *pieces]), flags[:, 0], flags[:, 1], tuple(places))


def _runs(tokens: npt.NDArray[np.int64], answers: npt.NDArray[np.bool_]) -> list[tuple[bool, npt.NDArray[np.int64]]]:
    """Stretches that are answers, or are not."""
    edges = np.flatnonzero(np.diff(answers)) + 1
    return [
        (bool(flags[0]), run)
        for run, flags in zip(np.split(tokens, edges), np.split(answers, edges), strict=True)
        if len(run)
    ]


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
    conversation: Conversation, tokens: npt.NDArray[np.int64], ids: Mapping[Kind, int], words: Mapping[Kind, str]
) -> None:
    for kind, id_ in ids.items():
        asked = sum(v.kind == kind or ids[v.kind] == id_ for v in conversation.visuals)
        found = int((tokens == id_).sum())
        if found != asked:
            raise InputError(
                f"a chat template keeps one place for each {kind}",
                f"{conversation.uid}: {found} times {words[kind]!r} in what it makes of {asked}",
                "a template that writes content as it is; and no such word in the text itself",
            )
