"""Records of conversations, from the files that people keep them in, or from the captions of a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.captions.table_rows import LONGEST_ROW, PEEKED, json_rows, opened
from data.dataset.index import Index
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json, shorter

REMEDY = "see docs/video-language.md for the forms"
QUESTION = "Describe this video."


def records_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) of a JSON list, or of a file with a JSON object a line; see `data.captions.table_rows`.

    An object of objects, as ActivityNet's annotations are, is a record for each video that its keys name. A record that
    cannot be read is a `ParseError`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        whole = _object_in(path)
        if whole is None:
            yield from ((f"{path}, {where}", record) for where, record in json_rows(path))
        elif _is_by_video(whole):
            yield from ((f"{path}, {shorter(key)}", {"video": key, **record}) for key, record in whole.items())
        else:
            yield f"{path}, record 1", whole
    except (OSError, UnicodeDecodeError) as error:
        rule, remedy = (
            "conversations are a JSON list, or a JSON object a line",
            "see docs/video-language.md for the forms",
        )
        raise InputError(rule, f"{path}: {getattr(error, 'strerror', None) or error}", remedy) from None


def _object_in(path: Path) -> dict[str, Any] | None:
    """The one object that a file is, over several lines, or by video; None if it is something else."""
    with opened(path, "\n") as text:
        head = text.readline(LONGEST_ROW)
        while head and not head.strip():
            head = text.readline(LONGEST_ROW)
        if not head.lstrip().startswith("{"):
            return None
        try:
            value = parse_json(head.strip())
        except ParseError:
            try:
                found: dict[str, Any] = parse_json(head + text.read())
            except ParseError:
                return None
            return found
        return value if _is_by_video(value) and not text.read(PEEKED).strip() else None


def _is_by_video(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(record, Mapping) for record in value.values())


def refuse_unread(record: Any, where: str) -> None:
    """Raise what kept a record from being read, or that it is no object.

    Raises:
        InputError: says where it stands.
    """
    if isinstance(record, ParseError):
        raise InputError("a record is JSON", f"{where}: {record}", "mend it there, or take it out")
    if not isinstance(record, Mapping):
        raise InputError("a record is an object", f"{where}: {shorter(record)}", REMEDY)


def captions_of(index: Index, question: str = QUESTION) -> Iterator[tuple[str, Any]]:
    """A question about each clip of a dataset, and its caption as the answer; clips without one are left out."""
    for row in range(len(index)):
        caption = index.caption(row)
        if caption:
            kind = "image" if index.frames[row] == 1 else "video"
            asked = {
                "role": "user",
                "content": [{"type": kind, kind: index.uid(row)}, {"type": "text", "text": question}],
            }
            said = {"role": "assistant", "content": caption}
            yield index.uid(row), {"id": index.uid(row), "messages": [asked, said]}


def as_lines(records: Iterable[Any]) -> bytes:
    """A JSON object a line."""
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()
