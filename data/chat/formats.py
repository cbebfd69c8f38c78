"""Conversations about videos and images, as people keep them: LLaVA, ShareGPT, OpenAI, Qwen, ms-swift, LLaMA-Factory.

    {"id": "a", "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat moves?"},
                                                     {"from": "gpt", "value": "A red square."}]}
    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]},
                  {"role": "assistant", "content": "A red square."}]}

    {"messages": [{"role": "user", "content": "<video>What?"}, ...], "videos": ["a.mp4"], "system": "Be short."}
    {"instruction": "<video>What?", "input": "", "output": "A red square.", "videos": ["a.mp4"]}
    {"query": "<video>What?", "response": "A red square.", "videos": ["a.mp4"], "start": 2.0, "end": 4.5}
    {"video": "a.mp4", "QA": [{"i": "Watch.", "q": "What?", "a": "A red square."}]}
    {"text": "Words alone, all of which are learned."}

A visual stands where its place is, `<video>` or `<image>`, or where its part is; places and files match in number.
LLaVA-Video writes `<image>` for videos, too. What a record has beside that is refused unless it is known to change
nothing (`data.chat.record_fields`).

Annotated video (`temporal_annotations.py`) becomes turns too: some seconds of video, what is said at their end,
the next seconds. Whatever the form, a conversation is turns of words and visuals, in the order in which a model sees
them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from data.chat.record_fields import DOCS, NAMES, Fields, seconds, wrong
from data.chat.temporal_annotations import FORMS, query_of, stream_of
from data.chat.turns import Conversation, Kind, Role, Turn, Visual
from data.remote.addresses import split_url
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json, shorter

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
SHOWN = ("video", "image", "video_url", "image_url")  # types of parts
PLACE = re.compile(r"<(video|image)>\n?")
OTHER_PLACE = re.compile(  # of other models: what stands there would be learned as words, and not be seen or heard
    r"<img>.*?</img>|</(video|image|audio)>|<audio>|<(video|image)_placeholder>|<ImageHere>"
    r"|<\|(vision_start|video_pad|image_pad|video|image|audio)\|>",
    re.DOTALL,
)
BEGINS, ENDS = ("start", "begin", "start_time", "video_start"), ("end", "end_time", "video_end")


@dataclass(frozen=True)
class _Place:
    """Where a visual of the record's own list stands."""

    kind: Kind


Part = str | Visual | _Place


def conversation_of(record: Mapping[str, Any], where: str = "", ignored: Collection[str] = ()) -> Conversation:
    """The conversation of a record in any of the known forms.

    Args:
        record: as read from JSON.
        where: it stands, for messages; its uid where it has none.
        ignored: keys of records, turns and parts that are passed over whatever they say.

    Raises:
        InputError: of no known form; places and files of visuals do not match; a key that nobody reads may matter;
            nobody answers.
    """
    fields = Fields(record, where, ignored=ignored)
    uid = str(next((record[key] for key in ("id", "uid") if key in record), where))
    where = where or uid
    fields.where = where
    reader = next((read for keys, read in READERS if all(_has(fields.value, key) for key in keys)), None)
    if reader is None:
        rule = "a conversation has conversations or messages (lists), a stream, or a text that is not empty"
        raise wrong(rule, where, f"keys: {', '.join(map(str, record))[:200]}")
    try:
        turns = reader(fields)
    except InputError as error:  # annotations know the id of their record alone
        found = error.value if error.value.startswith(where) else f"{where}: {error.value}"
        raise InputError(error.rule, found, error.remedy) from None
    if not any(turn.role == "assistant" and any(map(_says, turn.parts)) for turn in turns):
        raise wrong("somebody answers in a conversation", where, f"{len(turns)} turns, none of the assistant")
    made = Conversation(uid, turns)
    _refuse_other_places(made, where)
    fields.refuse_rest()
    if not made.visuals:
        fields.refuse_hidden_media()
    return made


def _says(part: str | Visual) -> bool:
    return not isinstance(part, str) or not part.isspace()


def _refuse_other_places(conversation: Conversation, where: str) -> None:
    for part in (part for turn in conversation.turns for part in turn.parts if isinstance(part, str)):
        found = OTHER_PLACE.search(part)
        if found is not None:
            raise InputError(
                "a video or an image stands at <video> or <image>, and its file in a key",
                f"{where}: {shorter(found[0])} in the text",
                f"write <video> or <image> there, the file into videos or images (sound is not learned); {DOCS}",
            )


def _has(record: Mapping[str, Any], key: str) -> bool:
    """Whether a key is there as a form needs it: lists and texts where these are meant."""
    value = record.get(key)
    kind = LISTS if key in ("conversations", "conversation", "messages", "QA") else object
    if key in ("text", "output", "response"):
        return isinstance(value, str) and (key != "text" or value != "")
    return key in record and isinstance(value, kind)


LISTS = (list, tuple)


def _watched(fields: Fields) -> tuple[Turn, ...]:
    """A stream: stretches of the video, and what is said at the end of each (`data.chat.temporal_annotations`)."""
    record, turns = dict(fields.value), list[Turn]()
    if fields.ignored and isinstance(record.get("stream"), LISTS):
        record["stream"] = [
            {key: value for key, value in one.items() if key not in fields.ignored} if isinstance(one, Mapping) else one
            for one in record["stream"]
        ]
    query = query_of(record, fields.where)
    for key in (*(key for keys in FORMS.values() if all(key in record for key in keys) for key in keys), "video"):
        fields.get(key)
    for part in stream_of(record, fields.where):
        if isinstance(part, str):
            turns.append(Turn("assistant", (part,)))
            continue
        seen = Visual("video", part.name, part.begin, part.end, watched=True)
        turns.append(Turn("user", (query, seen) if query and not turns else (seen,)))
    return tuple(turns)


def _words_alone(fields: Fields) -> tuple[Turn, ...]:
    return _placed(fields, [("assistant", _pieces(fields.get("text")))])


def _llava(fields: Fields) -> tuple[Turn, ...]:
    turns = []
    for number, value in enumerate(fields.get("conversations"), 1):
        said = fields.inside(value, f"turn {number}")
        role, text = _role(said.get("from", "role"), fields.where), said.get("value", "content")
        if not isinstance(text, str):
            raise wrong("a turn says something", fields.where, f"value: {shorter(text)}")
        _refuse_parts_as_text(text, fields.where)
        said.refuse_rest(NAMES)
        turns.append((role, _pieces(text)))
    return _placed(fields, turns)


def _pairs(fields: Fields) -> tuple[Turn, ...]:
    """ShareGPT as ms-swift has it: a question and its answer in one object."""
    turns: list[tuple[Role, list[Part]]] = []
    for number, value in enumerate(fields.get("conversation"), 1):
        said = fields.inside(value, f"turn {number}")
        turns += _asked(said.get("human", "user"), said.get("assistant", "gpt"), fields.where)
        said.refuse_rest(NAMES)
    return _placed(fields, turns)


def _questions(fields: Fields) -> tuple[Turn, ...]:
    """VideoChat2: questions and answers about the one video, which is seen before the first."""
    turns: list[tuple[Role, list[Part]]] = []
    for number, value in enumerate(fields.get("QA"), 1):
        said = fields.inside(value, f"QA {number}")
        asked = [text for text in (said.get("i"), said.get("q")) if text not in (None, "")]
        if not all(isinstance(text, str) for text in asked):
            raise wrong("a turn says something", fields.where, f"i, q: {shorter(asked)}")
        turns += _asked("\n".join(asked), said.get("a"), fields.where)
        said.refuse_rest(NAMES)
    kind: Kind = "image" if fields.has("image") else "video"
    first: list[Part] = [_Place(kind)]
    if any(isinstance(part, _Place) for _, parts in turns for part in parts) or not fields.has(kind):
        return _placed(fields, turns)
    if turns and turns[0][0] == "user":
        return _placed(fields, [("user", first + turns[0][1]), *turns[1:]])
    return _placed(fields, [("user", first), *turns])


def _instruction(fields: Fields) -> tuple[Turn, ...]:
    """Alpaca: what is asked, with or without an input to it, and the answer; turns before it in `history`."""
    asked = [text for text in (fields.get("instruction"), fields.get("input")) if text not in (None, "")]
    if not all(isinstance(text, str) for text in asked):
        raise wrong("a turn says something", fields.where, f"instruction, input: {shorter(asked)}")
    return _placed(fields, [*_history(fields), *_asked("\n".join(asked), fields.get("output"), fields.where)])


def _query(fields: Fields) -> tuple[Turn, ...]:
    """ms-swift: a query and a response; turns before it in `history`."""
    return _placed(fields, [*_history(fields), *_asked(fields.get("query"), fields.get("response"), fields.where)])


def _history(fields: Fields) -> Iterator[tuple[Role, list[Part]]]:
    for pair in _listed(fields.get("history")):
        if not isinstance(pair, LISTS) or len(pair) != 2:
            raise wrong("history is pairs of what is asked and answered", fields.where, shorter(pair))
        yield from _asked(pair[0], pair[1], fields.where)


def _asked(question: Any, answer: Any, where: str) -> list[tuple[Role, list[Part]]]:
    for text in (question, answer):
        if text is not None and not isinstance(text, str):
            raise wrong("a turn says something", where, shorter(text))
    asked: list[tuple[Role, list[Part]]] = [("user", _pieces(question))] if question else []
    return [*asked, ("assistant", _pieces(answer or ""))]


def _messages(fields: Fields) -> tuple[Turn, ...]:
    turns = []
    for number, value in enumerate(fields.get("messages"), 1):
        message = fields.inside(value, f"message {number}")
        content = message.get("content", "value")
        if isinstance(content, str):
            _refuse_parts_as_text(content, fields.where)
            content = [{"type": "text", "text": content}]
        if not isinstance(content, LISTS):
            raise wrong("a message has content", fields.where, f"content: {shorter(content)}")
        parts = [
            piece
            for at, part in enumerate(content, 1)
            for piece in _part(fields.inside(part, f"part {at} of message {number}"))
        ]
        turns.append((_role(message.get("role", "from"), fields.where), parts))
        message.refuse_rest(NAMES)
    return _placed(fields, turns)


def _refuse_parts_as_text(text: str, where: str) -> None:
    """Parts that somebody wrote as JSON within JSON would be learned as words, and their video not seen."""
    if not text.lstrip().startswith("["):
        return
    try:
        parts = parse_json(text.strip())
    except ParseError:
        return
    shown = [part for part in parts if isinstance(part, Mapping) and part.get("type") in SHOWN]
    if shown:
        raise wrong("the parts of a message are a list, not the text of one", where, shorter(text))


def _part(part: Fields) -> list[Part]:
    """Words, with places in them; or a visual, with its file and its moment, or of the record's own list."""
    kinds = [kind for kind in ("text", "video", "image") if part.has(kind)]
    kind = part.get("type") or (kinds[0] if len(kinds) == 1 else None)
    kind = {"input_text": "text", "output_text": "text", "input_image": "image_url"}.get(str(kind), kind)
    if kind == "text" and isinstance(part.value.get("text"), str):
        found = _pieces(part.get("text"))
        part.refuse_rest(())
        return found
    if kind not in SHOWN:
        rule = "a part is a text, a video or an image, with its words or file"
        raise wrong(rule, part.where, f"{part.what}: {shorter(dict(part.value))}")
    shown: Kind = "video" if kind.startswith("video") else "image"
    file = part.get(shown, f"{shown}_url", "url", "path")
    if isinstance(file, Mapping):
        inner = part.inside(file, part.what)
        file = inner.get("url", "path")
        inner.refuse_rest(())
    begin, end = _moment(part)
    part.refuse_rest(())
    if file is None and begin is None and end is None:
        return [_Place(shown)]
    return [Visual(shown, _name(file, shown, part.where), begin, end)]


def _placed(fields: Fields, turns: Sequence[tuple[Role, list[Part]]]) -> tuple[Turn, ...]:
    """Turns with the record's own videos and images in their places, and its system prompt."""
    where = fields.where
    files: dict[Kind, list[Visual]] = {
        "video": _files(fields.get("video", "videos"), "video", fields),
        "image": _files(fields.get("image", "images"), "image", fields),
    }
    begin, end = _moment(fields)
    if begin is not None or end is not None:
        if len(files["video"]) != 1:
            found = f"from {begin} to {end} s, {len(files['video'])} videos"
            raise wrong("a moment of a record is of its one video", where, found)
        files["video"] = [Visual("video", files["video"][0].name, begin, end)]
    places = [part.kind for _, parts in turns for part in parts if isinstance(part, _Place)]
    if not files["image"] and "video" not in places and len(places) == len(files["video"]):
        files = {"video": [], "image": files["video"]}  # LLaVA-Video's places
    for kind, visuals in files.items():
        if places.count(kind) != len(visuals):
            told = f"{places.count(kind)} times <{kind}> in the text, {len(visuals)} files"
            if unread := fields.left():
                told += f"; keys that are not read: {', '.join(map(shorter, unread))}"
            raise InputError(
                f"a conversation has a place <{kind}> for each {kind}",
                f"{where}: {told}",
                f"write <{kind}> in the text where each is shown; forms: {DOCS}",
            )
    left = {kind: iter(visuals) for kind, visuals in files.items()}
    made = [
        Turn(role, tuple(next(left[part.kind]) if isinstance(part, _Place) else part for part in parts))
        for role, parts in turns
    ]
    system = fields.get("system", "system_prompt")
    if system is None or system == "":
        return tuple(made)
    if not isinstance(system, str) or any(turn.role == "system" for turn in made):
        raise wrong("a conversation has one system prompt, a text", where, f"system: {shorter(system)}")
    return (Turn("system", (system,)), *made)


def _pieces(text: str) -> list[Part]:
    """Words, and places of visuals."""
    found: list[Part] = []
    at = 0
    for place in PLACE.finditer(text):
        found += [text[at : place.start()]] if place.start() > at else []
        found.append(_Place("video" if place[1] == "video" else "image"))
        at = place.end()
    return found + ([text[at:]] if text[at:] else [])


def _moment(fields: Fields) -> tuple[float | None, float | None]:
    """Seconds that are seen; None for those of the video."""
    begin, end = (
        None if (value := fields.get(*keys)) is None else seconds(value, fields.where, keys[0])
        for keys in (BEGINS, ENDS)
    )
    if end is not None and end <= (begin or 0.0):
        raise wrong("a moment ends after it begins", fields.where, f"{begin or 0:g} to {end:g} s in {fields.what}")
    return (None if begin == 0 else begin), end


def _files(value: Any, kind: Kind, fields: Fields) -> list[Visual]:
    return [Visual(kind, _name(one, kind, fields.where, fields.ignored)) for one in _listed(value)]


def _listed(value: Any) -> list[Any]:
    return [] if value is None or value == "" else list(value) if isinstance(value, LISTS) else [value]


def _name(file: Any, kind: Kind, where: str, ignored: Collection[str] = ()) -> str:
    """A file by the name that a dataset knows it by."""
    if isinstance(file, Mapping) and not file.get("bytes") and isinstance(file.get("path"), str):
        rest = {key: one for key, one in file.items() if key != "path"}
        Fields(rest, where, f"{kind} {file['path']}", ignored).refuse_rest(())
        file = file["path"]
    if isinstance(file, LISTS):
        remedy = f"make a film of the frames, prepare it, and name it here; forms: {DOCS}"
        raise InputError("a video is one file, not a list of frames", f"{where}: {kind}: {shorter(file)}", remedy)
    if not isinstance(file, str) or not file or file.startswith("data:"):
        raise wrong("videos and images are named", where, f"{kind}: {shorter(file)}")
    return unquote(split_url(file).path) if file.startswith("file://") else file


def _role(name: Any, where: str) -> Role:
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise wrong(f"a turn is of: {', '.join(ROLES)}", where, shorter(name))
    return ROLES[name.lower()]


READERS = (
    (("conversations",), _llava),
    (("messages",), _messages),
    (("conversation",), _pairs),
    (("QA",), _questions),
    (("instruction", "output"), _instruction),
    (("query", "response"), _query),
    *((keys, _watched) for keys in FORMS.values()),
    (("text",), _words_alone),
)
