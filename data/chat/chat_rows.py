"""`RowBuilder`: a record of a conversation becomes a row of a chat dataset (`data.chat.chat_index.SCHEMA`).

{"id": ..., "video": "a.mp4", "conversations": [...]}      --conversation_of, encode-->   tokens, their kinds
"a.mp4"                    --index: file, name or uid-->   the clips that were cut from it, in order
                           --coder, if there is one-->     codes, as tokens of the same vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.chat.chat_template import control_mark, encode
from data.chat.clip_names import ClipNames
from data.chat.formats import conversation_of
from data.chat.record_fields import HARMLESS
from data.chat.records import refuse_unread
from data.chat.turns import Conversation, Kind, Visual
from data.dataset.shards import digest_of
from parallel.errors import InputError
from parallel.parsing import shorter
from parallel.sequence.packed import ASSISTANT, USER, VISUAL_CODE

Ints = npt.NDArray[np.int64]
SLACK = 1.0  # seconds that a moment may end after its video: times are rounded, last frames are cut
TEXT_CHARACTERS = 120


@dataclass(frozen=True)
class Coder:
    """Makes visuals words of the vocabulary: all that `data` knows of a quantiser of `models.codecs.vq`.

    Attributes:
        about: for the manifest: `words`, how many codes there are; and what it takes to code other visuals alike.
        code: codes [n] from 0 to words - 1 of clips, by their uids in order, frame after frame, row by row.
        files: kept beside the conversations, so that a run needs nothing else.
    """

    about: Mapping[str, Any]
    code: Callable[[Sequence[str]], Ints]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class RowBuilder:
    """Makes rows of records.

    Attributes:
        tokenizer: of transformers, with a chat template.
        names: of the clips that visuals are looked for in.
        places: words of the tokenizer that stand for visuals.
        coder: of visuals; None: each is one token.
        ignored: keys of records that are passed over, whatever they say.
    """

    tokenizer: Any
    names: ClipNames
    places: Mapping[Kind, str]
    coder: Coder | None
    ignored: Collection[str]

    def conversation(self, record: Any, where: str) -> Conversation:
        """What a record says.

        Raises:
            InputError: it is in none of the known forms (`conversation_of`), or a clip is in a key that nobody reads.
        """
        refuse_unread(record, where)
        conversation = conversation_of(record, where, self.ignored)
        if not conversation.visuals:
            _refuse_hidden_clip(record, where, self.names, self.ignored)
        return conversation

    def row(self, conversation: Conversation) -> dict[str, Any]:
        """The row of a conversation.

        Raises:
            InputError: its words are no text of this tokenizer, a visual is no clip, or shows no frame.
        """
        parts = [part for turn in conversation.turns for part in turn.parts]
        _refuse_half_characters(conversation.uid, parts)
        _refuse_control_marks(conversation.uid, parts, self.tokenizer)
        encoded = encode(conversation, self.tokenizer, self.places)
        tokens, kinds = encoded.tokens, np.where(encoded.answers, ASSISTANT, USER)
        visual_positions, visuals = encoded.visual_positions.tolist(), []
        if self.coder is None:
            said = " ".join(part for part in parts if isinstance(part, str))
            visuals = [_visual(visual, self.names, conversation.uid) for visual in conversation.visuals]
        else:
            said = " ".join(part if isinstance(part, str) else f"[{part.name}]" for part in parts)
            codes = [self._codes(visual, conversation.uid) for visual in conversation.visuals]
            tokens, kinds = with_codes(tokens, kinds, np.array(visual_positions, np.int64), codes)
            visual_positions = []
        as_lists = tokens.tolist(), kinds.tolist()
        return {
            "uid": digest_of(conversation.uid, *as_lists, visuals),
            "text": said[:TEXT_CHARACTERS],
            "tokens": as_lists[0],
            "kinds": as_lists[1],
            "spots": visual_positions,
            "visuals": visuals,
        }

    def _codes(self, visual: Visual, uid: str) -> Ints:
        assert self.coder is not None, "visuals are not coded"
        if visual.watched or visual.begin is not None or visual.end is not None:
            found = f"{uid}: {visual.name}, from {visual.begin} to {visual.end} s"
            raise InputError(
                "a visual that is coded is seen whole", found, "leave out --codes, for streams and moments"
            )
        return self.coder.code(self.names.clips(visual.name, uid)) + len(self.tokenizer)


def with_codes(tokens: Ints, kinds: Ints, visual_positions: Ints, codes: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Tokens and their kinds with codes in the places of visuals.

    Args:
        tokens, kinds: of a conversation, each visual one of them.
        visual_positions: which of them stand for visuals.
        codes: [n] of each visual, as tokens.
    """
    sizes, coded = np.ones(len(tokens), np.int64), np.zeros(len(tokens), bool)
    sizes[visual_positions], coded[visual_positions] = [len(one) for one in codes], True
    coded, found, of_kind = (np.repeat(values, sizes) for values in (coded, tokens, kinds))
    found[coded], of_kind[coded] = np.concatenate([tokens[:0], *codes]), VISUAL_CODE
    return found, of_kind


def _refuse_hidden_clip(record: Mapping[str, Any], where: str, names: ClipNames, ignored: Collection[str]) -> None:
    """A record that shows nothing names no clip of the dataset in a key that nobody reads, as its name or id."""
    for key in HARMLESS & record.keys() - set(ignored):
        for text in _texts_in(record[key], ignored):
            if text in names.by_name or text in names.stems:
                raise InputError(
                    "a video or an image of a record is in a key that is read",
                    f"{where}: {key}: {shorter(text)}, which is {names.stems.get(text, text)} of the clips; "
                    "the record shows nothing",
                    f"name it in video or image, with a place in the text; if it is about words alone: --ignore {key}",
                )


def _texts_in(value: Any, ignored: Collection[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ignored:
                yield from _texts_in(inner, ignored)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner, ignored)


def _refuse_half_characters(uid: str, parts: Sequence[str | Visual]) -> None:
    """JSON can tell of half a character, which no tokenizer takes."""
    for part in parts:
        text = part if isinstance(part, str) else part.name
        try:
            text.encode()
        except UnicodeEncodeError as error:
            rule, remedy = "words are whole characters of Unicode", "mend the record, or leave it out"
            raise InputError(rule, f"{uid}: {text[error.start : error.end]!a}", remedy) from None


def _refuse_control_marks(uid: str, parts: Sequence[str | Visual], tokenizer: Any) -> None:
    """Words with <|im_end|> in them would end their turn, and go on as somebody else."""
    for part in parts:
        mark = control_mark(part, tokenizer) if isinstance(part, str) else None
        if mark is not None:
            rule = "what is said holds no mark of the tokenizer's turns"
            raise InputError(rule, f"{uid}: {shorter(mark)} in {shorter(part)}", "mend the record, or leave it out")


def _visual(visual: Visual, names: ClipNames, uid: str) -> dict[str, Any]:
    clips = names.clips(visual.name, uid)
    rows = np.array([names.rows[clip] for clip in clips], np.int64)
    end = float(names.ends[rows].max())
    if (visual.begin or 0.0) > end or (visual.end is not None and visual.end > end + SLACK):
        found = f"{uid}: {visual.begin or 0:g} to {visual.end or end:g} s of {visual.name}, which has {end:.1f} s"
        raise InputError("a moment lies within its video", found, "mend the record or leave it out")
    if not visual.watched and not names.frames_shown(
        rows, visual.begin, visual.end
    ):  # words of a stream may follow each other at once
        found = f"{uid}: {visual.begin or 0:g} to {visual.end or end:g} s of {visual.name}, of which no frame is kept"
        remedy = "mend the record or leave it out; a clip or a pause of the video may have been left out of the dataset"
        raise InputError("a visual shows a frame at least", found, remedy)
    seconds = {"begin": visual.begin, "end": visual.end}
    return {"name": visual.name, "clips": clips, **seconds, "watched": visual.watched}
