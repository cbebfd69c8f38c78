"""From records of conversations to `Talks`: chat template, tokens, and the clips that visuals stand for.

    {"id": ..., "video": "a.mp4", "conversations": [...]}      --conversation_of, encode-->   tokens, kinds, spots
    "a.mp4"                    --index: file, name or uid-->   the clips that were cut from it, in order

A record that cannot be used stops the work with the reason, or is left out and listed, as the person decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from data import talks
from data.chat import DEFAULT_PLACES, encode
from data.conversations import Conversation, Kind, Visual, conversation_of
from data.index import Index
from data.shards import digest_file, digest_of, make_folder, publish_file, temporary_of, write_bytes, write_json
from data.tokenizers import silence_of
from parallel.errors import InputError
from parallel.packed import ANSWERED, ASKED

ROWS_A_PART = 1 << 15
TEXT_CHARACTERS = 120


@dataclass
class Told:
    """What came of it.

    Attributes:
        kept: conversations.
        tokens: of them, visuals not counted.
        answers: tokens that the assistant says.
        visuals: places of videos and images.
        left_out: (record, reason).
    """

    kept: int
    tokens: int
    answers: int
    visuals: int
    left_out: list[tuple[str, str]]


class Names:
    """Which clips a name stands for: a uid, the path of the source file, or the last part of it if only one has it."""

    def __init__(self, index: Index | None) -> None:
        self.by_name: dict[str, list[str]] = {}
        self.by_last: dict[str, set[str]] = {}
        if index is None:
            return
        files = index.table["file"].cast(pa.string()).to_pylist()
        uids, starts = (index.table[name].to_pylist() for name in ("uid", "start"))
        for _, file, uid in sorted(zip(starts, files, uids, strict=True), key=lambda one: (one[0] or 0, one[2])):
            self.by_name.setdefault(file, []).append(uid)
            self.by_last.setdefault(Path(file).name, set()).add(file)
        self.by_name.update({uid: [uid] for uid in uids})

    def clips(self, name: str, uid: str) -> list[str]:
        """Uids of the clips, in the order in which they were cut.

        Raises:
            InputError: no clip has this name, or files of several folders do.
        """
        if name in self.by_name:
            return self.by_name[name]
        files = self.by_last.get(Path(name).name, set())
        if len(files) == 1:
            return self.by_name[next(iter(files))]
        if files:
            found = f"{uid}: {name} may be {' or '.join(sorted(files)[:3])}"
            raise InputError("a visual is one file of the clips", found, "write the path as the dataset has it")
        known = f"{len(self.by_last):,} files" if self.by_last else "no clips were given"
        remedy = "prepare it into the dataset (was it rejected there?)" if self.by_last else "--clips DATASET"
        raise InputError(
            "the videos and images of a conversation are clips of a dataset", f"{uid}: {name}; {known}", remedy
        )


def write(
    records: Iterable[tuple[str, Any]],
    tokenizer: Any,
    out: Path,
    clips: Path | None = None,
    places: Mapping[Kind, str] = DEFAULT_PLACES,
    leave_out: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> Told:
    """Write talks; the same arguments write the same bytes.

    Args:
        records: (where it stands, record) in any form that `conversation_of` knows.
        tokenizer: of transformers, with a chat template.
        out: a new folder, or one of talks, which are replaced.
        clips: the dataset that visuals are looked for in.
        places: words of the tokenizer that stand for visuals.
        leave_out: go on without records that cannot be used, and list them.
        on_progress: told how many records are done, now and then.

    Raises:
        InputError: a record cannot be used (the first of them), or none can.
    """
    _refuse_other_folder(out)
    index = Index.open(clips) if clips else None
    names, told = Names(index), Told(0, 0, 0, 0, [])
    (out / talks.MANIFEST).unlink(missing_ok=True)  # talks are there once it is
    rows = _rows(records, tokenizer, names, places, leave_out, told, on_progress)
    parts: list[dict[str, Any]] = []
    while chunk := list(islice(rows, ROWS_A_PART)):
        parts.append(_write_part(out, len(parts), pa.Table.from_pylist(chunk, schema=talks.SCHEMA)))
    if told.left_out:
        lines = "".join(json.dumps({"record": where, "reason": why}) + "\n" for where, why in told.left_out)
        write_bytes(out / talks.LEFT_OUT, lines.encode())
    if not parts:
        first = f"; {told.left_out[0][0]}: {told.left_out[0][1]}" if told.left_out else ""
        raise InputError("talks have conversations", f"none{first}", "give a file with conversations")
    tokenizer.save_pretrained(out / talks.TOKENIZER)
    about = {
        "digest": tokenizer_digest(tokenizer),
        "tokens": len(tokenizer),
        "silence": silence_of(tokenizer),
        "places": {kind: int(found) for kind, found in _ids(tokenizer, places).items()},
    }
    named = [{"folder": _relative(clips, out), "digest": index.digest}] if clips and index else []
    write_json(out / talks.MANIFEST, talks.manifest_record(parts, about, named))
    return told


def tokenizer_digest(tokenizer: Any) -> str:
    """Identity of a fast tokenizer and its chat template."""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return str(blake3(text.encode()).hexdigest(length=16))


def _rows(
    records: Iterable[tuple[str, Any]],
    tokenizer: Any,
    names: Names,
    places: Mapping[Kind, str],
    leave_out: bool,
    told: Told,
    on_progress: Callable[[int], None] | None,
) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, (where, record) in enumerate(records, 1):
        try:
            row = _row(conversation_of(record, where), tokenizer, names, places)
            if row["uid"] in seen:
                raise InputError("a conversation stands once", f"{where}: the same stood before", "leave one out")
        except InputError as error:
            if not leave_out:
                raise InputError(
                    error.rule, error.value, f"{error.remedy}; or --leave-out to go on without such"
                ) from error
            told.left_out.append((where, f"{error.rule}; found: {error.value}"))
            continue
        seen.add(row["uid"])
        told.kept += 1
        told.tokens += len(row["tokens"]) - len(row["spots"])
        told.answers += row["kinds"].count(ANSWERED)
        told.visuals += len(row["spots"])
        if on_progress is not None and number % 100 == 0:
            on_progress(number)
        yield row


def _row(conversation: Conversation, tokenizer: Any, names: Names, places: Mapping[Kind, str]) -> dict[str, Any]:
    encoded = encode(conversation, tokenizer, lambda number, visual: [1], places)
    said = " ".join(part for turn in conversation.turns for part in turn.parts if isinstance(part, str))
    tokens, kinds = encoded.tokens.tolist(), np.where(encoded.answers, ANSWERED, ASKED).tolist()
    visuals = [_visual(visual, names, conversation.uid) for visual in conversation.visuals]
    return {
        "uid": digest_of(conversation.uid, tokens, kinds, visuals),
        "text": said[:TEXT_CHARACTERS],
        "tokens": tokens,
        "kinds": kinds,
        "spots": [place.start for place in encoded.places],
        "visuals": visuals,
    }


def _visual(visual: Visual, names: Names, uid: str) -> dict[str, Any]:
    clips = names.clips(visual.name, uid)
    seconds = {"begin": visual.begin, "end": visual.end}
    return {"name": visual.name, "clips": clips, **seconds, "watched": visual.watched}


def _write_part(out: Path, number: int, table: pa.Table) -> dict[str, Any]:
    path = out / talks.PARTS / f"{number:05d}.arrow"
    make_folder(path.parent)
    temporary = temporary_of(path)
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, talks.SCHEMA) as writer:
        writer.write_table(table)
    publish_file(temporary, path)
    size = path.stat().st_size
    return {"path": f"{talks.PARTS}/{path.name}", "size": size, "hash": digest_file(path), "rows": len(table)}


def _ids(tokenizer: Any, places: Mapping[Kind, str]) -> dict[str, int]:
    """Of those places that the tokenizer has."""
    found = {kind: tokenizer.convert_tokens_to_ids(word) for kind, word in places.items()}
    return {kind: id_ for kind, id_ in found.items() if id_ is not None and id_ != tokenizer.unk_token_id}


def _relative(clips: Path, out: Path) -> str:
    """So that a folder with both in it can move."""
    import os

    return os.path.relpath(clips.resolve(), out.resolve())


def _refuse_other_folder(out: Path) -> None:
    own = {talks.MANIFEST, talks.PARTS, talks.TOKENIZER, talks.LEFT_OUT}
    others = sorted(path.name for path in out.iterdir() if path.name not in own) if out.is_dir() else []
    if others or (out.exists() and not out.is_dir()):
        found = f"{out} has: {', '.join(others[:5])}" if others else f"{out} is a file"
        raise InputError("talks are written into a new folder, or one of talks", found, "give another --out")
