"""`longreel eval`: how many questions a run's model answers right, by kind; with a control that shuffles the frames.

    {"id": ..., "video": "a.mp4", "about": "colour", "question": "What colour?", "answer": "red"}
    {..., "choices": ["red", "green"], "answer": "red"}        the likeliest choice counts, by log p per token
    any conversation                                           its last answer is the right one

An answer is right if it is the expected one but for capitals, spaces at the ends and a full stop.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.chat.formats import conversation_of
from data.chat.record_fields import HARMLESS, Fields
from data.chat.records import records_of, refuse_unread
from data.chat.turns import Conversation, Kind, Turn, Visual
from data.dataset.index import Index
from data.streams.clip_reader import ClipReader
from data.streams.visual_lookup import FrameIndexer
from launcher.generation.answers import AnswerGenerator
from parallel.errors import InputError
from parallel.random import key_of

KINDS: tuple[Kind, ...] = ("video", "image")
OWN = ("question", "answer", "choices", "about")  # keys of questions
Ints = npt.NDArray[np.int64]
ALL = "all"  # questions, whatever they are about


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        uid: of the record.
        kind: what it is about, to be counted with others; empty if the record does not say.
        conversation: that ends with the right answer.
        choices: to choose from; empty for an answer in words.
    """

    uid: str
    kind: str
    conversation: Conversation
    choices: tuple[str, ...]

    @property
    def expected(self) -> str:
        """The right answer."""
        return "".join(part for part in self.conversation.turns[-1].parts if isinstance(part, str))


@dataclass(frozen=True)
class Answered:
    """What the model said to one."""

    id: str
    kind: str
    expected: str
    said: str
    right: bool


@dataclass(frozen=True)
class Score:
    """Of one kind of question.

    Attributes:
        kind: which; "all" for every question, "no kind" for those that name none where others do.
        questions: how many.
        right: of them.
        choices: mean number to choose from; 0 if some answers are in words.
        chance: share that is right by guessing; 0 if some answers are in words.
    """

    kind: str
    questions: int
    right: int
    choices: float
    chance: float

    @property
    def accuracy(self) -> float:
        """Share that is right."""
        return self.right / self.questions


def question_of(record: Mapping[str, Any], where: str, ignored: Collection[str] = ()) -> Question:
    """The question of a record; keys that are `ignored` are passed over, whatever they say.

    Raises:
        InputError: of no known form, nobody answers last, or the answer is none of the choices.
    """
    rule, remedy = "a question has an answer", "see docs/video-language.md for the forms"
    refuse_unread(record, where)
    uid, kind = str(record.get("id", where)), str(record.get("about") or "")
    kind = "" if kind == ALL else kind
    if not isinstance(record.get("choices") or [], (list, tuple)):
        raise InputError("choices are a list", f"{where}: choices: {record['choices']!r}"[:200], remedy)
    choices = tuple(str(choice) for choice in record.get("choices") or ())
    if "choices" in record and (len(set(choices)) < 2 or len(set(choices)) < len(choices) or "" in choices):
        rule_there = "choices are two or more, different and not empty"
        raise InputError(rule_there, f"{where}: {record['choices']!r}"[:200], remedy)
    if not isinstance(record.get("about", ""), str):
        raise InputError("about is a word", f"{where}: {record['about']!r}"[:200], remedy)
    if "question" in record and not str(record["question"]).strip():
        raise InputError("a question has words", f"{where}: {record['question']!r}", remedy)
    if "question" in record:
        answer = record.get("answer")
        if isinstance(answer, int) and not isinstance(answer, bool) and choices and 0 <= answer < len(choices):
            answer = choices[answer]
        if not isinstance(answer, str):
            raise InputError(rule, f"{where}: answer: {answer!r}", remedy)
        fields = Fields(record, where, ignored=ignored)
        parts: list[str | Visual] = [
            Visual(what, name) for what in KINDS for name in _several({what: fields.get(what, f"{what}s")}, what, where)
        ]
        turns = (Turn("user", (*parts, str(record["question"]))), Turn("assistant", (answer,)))
        conversation = Conversation(uid, turns)
        fields.refuse_rest({*HARMLESS, *OWN})
        if not parts:
            fields.refuse_hidden_media(OWN)
    else:
        conversation = conversation_of(record, where, (*OWN, *ignored))
    if conversation.turns[-1].role != "assistant":
        raise InputError(rule, f"{where}: the last turn is of the {conversation.turns[-1].role}", remedy)
    if any(v.watched or v.begin is not None or v.end is not None for v in conversation.visuals):
        found_there = f"{where}: a stream, or a moment of one"
        raise InputError("a question is about whole videos", found_there, 'ask {"question": ..., "answer": ...}')
    found = Question(uid, kind, conversation, choices)
    if choices and found.expected not in choices:
        raise InputError("the right answer is one of the choices", f"{where}: {found.expected!r} of {choices}", remedy)
    return found


def evaluate(
    answerer: AnswerGenerator,
    questions: Sequence[Question],
    indexer: FrameIndexer,
    shuffle: bool = False,
    most: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answered]:
    """What the model says to each question.

    Args:
        answerer: the model.
        questions: any number.
        indexer: finds their videos.
        shuffle: show the frames of each clip in an order drawn from the question's id.
        most: words of an answer.
        on_progress: called with (done, total).
    """
    found = []
    for number, question in enumerate(questions, 1):
        order = _order(question.uid) if shuffle else None
        asked = answerer.asked(
            *answerer.layout(
                question.conversation, _look(indexer, question.uid), order, _timelines(indexer, question.uid)
            )
        )
        if question.choices:
            scores = [answerer.likelihood(asked, choice) for choice in question.choices]
            said = question.choices[int(np.argmax(scores))]
        else:
            said = answerer.answer(asked, most)
        right = plain(said) == plain(question.expected)
        found.append(Answered(question.uid, question.kind, question.expected, said, right))
        if on_progress is not None:
            on_progress(number, len(questions))
    return found


def scores_of(questions: Sequence[Question], answered: Sequence[Answered]) -> list[Score]:
    """By kind, in the order in which they first come, and of all questions last; of all alone if none has a kind."""
    of_kind: dict[str, list[tuple[Question, Answered]]] = defaultdict(list)
    pairs = list(zip(questions, answered, strict=True))
    for pair in pairs:
        of_kind[pair[0].kind].append(pair)
    kinds = [] if set(of_kind) <= {""} else [_score(kind or "no kind", mine) for kind, mine in of_kind.items()]
    return [*kinds, _score(ALL, pairs)] if pairs else []


def _score(kind: str, pairs: Sequence[tuple[Question, Answered]]) -> Score:
    right, choices = sum(a.right for _, a in pairs), [len(q.choices) for q, _ in pairs]
    if not all(choices):
        return Score(kind, len(pairs), right, 0.0, 0.0)
    return Score(kind, len(pairs), right, sum(choices) / len(pairs), sum(1 / n for n in choices) / len(pairs))


def questions_of(
    path: Path,
    limit: int | None = None,
    ignored: Collection[str] = (),
    left_out: list[tuple[str, str]] | None = None,
) -> list[Question]:
    """Of a file, at most so many.

    Args:
        path: of a JSON list, or of a file with a JSON object a line.
        limit: of questions.
        ignored: keys of records that are passed over, whatever they say.
        left_out: takes (where, reason) of those that cannot be used; None refuses the first of them.

    Raises:
        InputError: it has none, or one that cannot be used.
    """
    found = []
    for where, record in records_of(path):
        try:
            found.append(question_of(record, where, ignored))
        except InputError as error:
            if left_out is None:
                remedy = f"{error.remedy}; or --leave-out to go on without such"
                raise InputError(error.rule, error.value, remedy) from None
            left_out.append((where, f"{error.rule}; found: {error.value.removeprefix(f'{where}: ')}"))
    if not found:
        raise InputError("a file of questions has some", f"{path}: none", "see docs/video-language.md for the forms")
    twice = next((question for question, times in Counter(found).items() if times > 1), None)
    if twice is not None:
        raise InputError("a question stands once", f"{path}: {twice.uid} again, the same", "leave one of them out")
    return found[:limit]


def indexer_for(answerer: AnswerGenerator, clips: Path | None, folder: Path) -> FrameIndexer:
    """Finds videos in a dataset, or as files in a folder."""
    if clips is None:
        return FrameIndexer(answerer.sampling, None, folder)
    return FrameIndexer(answerer.sampling, ClipReader(Index.open(clips), answerer.sampling, 0))


def as_record(
    scores: Sequence[Score], answered: Sequence[Answered], left_out: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """For a script."""
    return {
        "scores": [{**asdict(score), "accuracy": score.accuracy} for score in scores],
        "answers": [asdict(one) for one in answered],
        **({"left_out": [{"record": where, "reason": why} for where, why in left_out]} if left_out else {}),
    }


def plain(text: str) -> str:
    """Without what does not matter."""
    return text.strip().rstrip(".").strip().casefold()


def _look(indexer: FrameIndexer, uid: str) -> Callable[[str], Any]:
    return lambda name: indexer.frames(name, uid)


def _timelines(indexer: FrameIndexer, uid: str) -> Callable[[str], Any]:
    return lambda name: indexer.timelines(name, uid)


def _order(uid: str) -> Callable[[int], Ints]:
    def order(frames: int) -> Ints:
        generator = np.random.Generator(np.random.Philox(key=np.array([key_of(uid, "shuffle"), 0], np.uint64)))
        return generator.permutation(frames)

    return order


def _several(record: Mapping[str, Any], what: str, where: str) -> list[str]:
    """Names of files."""
    value = record.get(what)
    names = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(name, str) for name in names):
        raise InputError(
            "videos and images are named", f"{where}: {what}: {value!r}"[:200], "a name, or a list of them"
        )
    return names
