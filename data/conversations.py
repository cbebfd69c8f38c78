"""Conversations about videos and images, as people keep them: LLaVA, ShareGPT, OpenAI messages, captions.

    {"id": "a", "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat moves?"},
                                                     {"from": "gpt", "value": "A red square."}]}
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A red square."}]}

    {"text": "Words alone, all of which are learned."}

Streams of annotated video (`data.annotations`) become turns as well: some seconds of video, what is said at their end,
the next seconds. Whatever the form, a conversation is turns of words and visuals, in the order in which a model sees
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.annotations import FORMS, query_of, stream_of
from parallel.errors import InputError

Role = Literal["system", "user", "assistant"]
Kind = Literal["video", "image"]
ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
PLACE = re.compile(r"<(video|image)>\n?")
REMEDY = "see docs/video-language.md for the forms that are known"


@dataclass(frozen=True)
class Visual:
    """A video or an image in a conversation.

    Attributes:
        kind: which.
        name: of its file, as the record has it.
        begin, end: seconds of it that are seen here; None for its own.
        watched: after each view the model says that it has nothing to say, or begins to speak.
    """

    kind: Kind
    name: str
    begin: float | None = None
    end: float | None = None
    watched: bool = False


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: who.
        parts: words and visuals, in order.
    """

    role: Role
    parts: tuple[str | Visual, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns about visuals; the assistant's are what a model learns to say.

    Attributes:
        uid: of the record.
        turns: in order.
    """

    uid: str
    turns: tuple[Turn, ...]

    @property
    def visuals(self) -> tuple[Visual, ...]:
        """All of them, in order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Visual))


def conversation_of(record: Mapping[str, Any], uid: str = "") -> Conversation:
    """The conversation of a record in any of the known forms.

    Args:
        record: as read from JSON.
        uid: where it has none.

    Raises:
        InputError: of no known form; places and files of visuals do not match; nobody answers.
    """
    _object(record, uid)
    uid = str(record.get("id", record.get("uid", uid)))
    if isinstance(record.get("conversations"), list):
        turns = _llava(record, uid)
    elif isinstance(record.get("messages"), list):
        turns = _messages(record, uid)
    elif any(set(keys) & set(record) == set(keys) for keys in FORMS.values()):
        turns = _watched(record, uid)
    elif isinstance(record.get("text"), str) and record["text"]:
        turns = (Turn("assistant", (record["text"],)),)
    else:
        rule = "a conversation has conversations or messages (lists), a stream, or a text that is not empty"
        raise _wrong(rule, uid, f"keys: {', '.join(map(str, record))}")
    if not any(turn.role == "assistant" and any(turn.parts) for turn in turns):
        raise _wrong("somebody answers in a conversation", uid, f"{len(turns)} turns, none of the assistant")
    return Conversation(uid, turns)


def _watched(record: Mapping[str, Any], uid: str) -> tuple[Turn, ...]:
    """A stream: stretches of the video, and what is said at the end of each (`data.annotations`)."""
    turns: list[Turn] = []
    query = query_of(record, uid)
    for part in stream_of(record, uid):
        if isinstance(part, str):
            turns.append(Turn("assistant", (part,)))
            continue
        seen = Visual("video", part.name, part.begin, part.end, watched=True)
        turns.append(Turn("user", (query, seen) if query and not turns else (seen,)))
    return tuple(turns)


def _llava(record: Mapping[str, Any], uid: str) -> tuple[Turn, ...]:
    files = {kind: _files(record.get(kind), kind, uid) for kind in ("video", "image")}
    asked = dict.fromkeys(files, 0)
    turns = []
    for said in record["conversations"]:
        _object(said, uid)
        role, text = _role(said.get("from"), uid), said.get("value")
        if not isinstance(text, str):
            raise _wrong("a turn says something", uid, f"value: {text!r}")
        parts: list[str | Visual] = []
        for piece, kind in _pieces(text):
            if piece:
                parts.append(piece)
            if kind is not None:
                if asked[kind] < len(files[kind]):
                    parts.append(Visual(kind, files[kind][asked[kind]]))
                asked[kind] += 1
        turns.append(Turn(role, tuple(parts)))
    for name, names in files.items():
        if asked[name] != len(names):
            found = f"{asked[name]} times <{name}> in the text, {len(names)} files"
            raise _wrong(f"a conversation has a place <{name}> for each {name}", uid, found)
    return tuple(turns)


def _messages(record: Mapping[str, Any], uid: str) -> tuple[Turn, ...]:
    turns = []
    for message in record["messages"]:
        _object(message, uid)
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise _wrong("a message has content", uid, f"content: {content!r}")
        parts = tuple(_part(part, uid) for part in content)
        turns.append(Turn(_role(message.get("role"), uid), parts))
    return tuple(turns)


def _part(part: Mapping[str, Any], uid: str) -> str | Visual:
    _object(part, uid)
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("video", "image") and isinstance(part.get(kind), str):
        return Visual(kind, part[kind])
    raise _wrong("a part is a text, a video or an image, with its words or file", uid, repr(dict(part))[:120])


def _pieces(text: str) -> Iterator[tuple[str, Kind | None]]:
    """Words, and the kind of the visual after them; at the end words alone."""
    at = 0
    for found in PLACE.finditer(text):
        kind: Kind = "video" if found[1] == "video" else "image"
        yield text[at : found.start()], kind
        at = found.end()
    yield text[at:], None


def _files(value: Any, kind: str, uid: str) -> Sequence[str]:
    names = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(name, str) for name in names):
        raise _wrong("videos and images are named", uid, f"{kind}: {value!r}"[:120])
    return list(names)


def _role(name: Any, uid: str) -> Role:
    if not isinstance(name, str) or name not in ROLES:
        raise _wrong(f"a turn is of: {', '.join(ROLES)}", uid, repr(name))
    return ROLES[name]


def _object(value: Any, uid: str) -> None:
    if not isinstance(value, Mapping):
        raise _wrong("records, turns and parts are objects", uid, repr(value)[:120])


def _wrong(rule: str, uid: str, found: str) -> InputError:
    return InputError(rule, f"{uid or 'a record'}: {found}", REMEDY)
