"""Records of conversations, from the files that people keep them in, or from the captions of a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.index import Index
from data.rows import json_rows
from parallel.errors import InputError
from parallel.parsing import ParseError, shorter

REMEDY = "see docs/video-language.md for the forms"
QUESTION = "Describe this video."


def records_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) of a JSON list, or of a file with a JSON object a line; see `data.rows`.

    A record that cannot be read is a `ParseError`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        for where, record in json_rows(path):
            yield f"{path}, {where}", record
    except (OSError, UnicodeDecodeError) as error:
        rule, remedy = (
            "conversations are a JSON list, or a JSON object a line",
            "see docs/video-language.md for the forms",
        )
        raise InputError(rule, f"{path}: {getattr(error, 'strerror', None) or error}", remedy) from None


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
