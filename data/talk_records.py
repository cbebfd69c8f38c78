"""Records of conversations, from the files that people keep them in, or from the captions of a dataset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.index import Index
from parallel.errors import InputError

QUESTION = "Describe this video."


def records_of(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, record) of a JSON list, or of a file with a JSON object a line.

    Raises:
        InputError: it cannot be read, or is neither.
    """
    rule, remedy = "conversations are a JSON list, or a JSON object a line", "see docs/video-language.md for the forms"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(rule, f"{path}: {getattr(error, 'strerror', None) or error}", remedy) from None
    if text.lstrip()[:1] == "[":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(rule, f"{path}: {error}", remedy) from None
        yield from ((f"{path}, record {number}", record) for number, record in enumerate(found, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other separators of Unicode
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(rule, f"{path}, line {number}: {error}", remedy) from None


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
