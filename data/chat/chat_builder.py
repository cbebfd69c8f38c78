"""From records of conversations to a chat dataset: chat template, tokens, and the clips that visuals stand for.

    records  --chat_rows.py-->  rows, up to 32,768 a part  -->  parts/*.arrow, tokenizer/, codes/, then the manifest

A record that cannot be used is left out and listed with its line, the reason and what to do, or stops the work, as the
person decides.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from blake3 import blake3

from data.chat import chat_index
from data.chat.chat_rows import Coder, RowBuilder
from data.chat.chat_template import DEFAULT_PLACES
from data.chat.clip_names import ClipNames
from data.chat.tokenizers import silence_of
from data.chat.turns import Kind
from data.dataset.index import Index
from data.dataset.shards import digest_file, make_folder, publish_file, temporary_of, write_bytes, write_json
from parallel.errors import InputError
from parallel.sequence.packed import ASSISTANT, VISUAL_CODE

ROWS_A_PART = 1 << 15
TOKENS_A_PART = 1 << 24  # as lists of Python they take 36 bytes each


@dataclass(frozen=True)
class ChatBuildOptions:
    """How records become a chat dataset.

    Attributes:
        places: words of the tokenizer that stand for visuals.
        leave_out: go on without records that cannot be used, and list them.
        coder: visuals are as many tokens as they have codes, and the dataset needs no clips any more; None: each is one
            token, in whose place a model puts what its tower sees.
        ignored: keys of records that are passed over, whatever they say.
    """

    places: Mapping[Kind, str] = field(default_factory=lambda: DEFAULT_PLACES)
    leave_out: bool = False
    coder: Coder | None = None
    ignored: Collection[str] = ()


@dataclass
class ChatBuildSummary:
    """What came of it.

    Attributes:
        kept: conversations.
        tokens: of them, visuals not counted.
        answers: tokens that the assistant says.
        visuals: places of videos and images.
        left_out: (record, reason).
        codes: tokens of visuals, where these are words of the vocabulary.
    """

    kept: int
    tokens: int
    answers: int
    visuals: int
    left_out: list[tuple[str, str]]
    codes: int = 0

    def add(self, row: Mapping[str, Any], visuals: int) -> None:
        """One conversation more, with so many visuals."""
        codes = row["kinds"].count(VISUAL_CODE)
        self.kept += 1
        self.codes += codes
        self.tokens += len(row["tokens"]) - len(row["spots"]) - codes
        self.answers += row["kinds"].count(ASSISTANT)
        self.visuals += visuals


def write(
    records: Iterable[tuple[str, Any]],
    tokenizer: Any,
    out: Path,
    clips: Path | None = None,
    options: ChatBuildOptions | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ChatBuildSummary:
    """Write a chat dataset; the same arguments write the same bytes.

    Args:
        records: (where it stands, record) in any form that `conversation_of` knows.
        tokenizer: of transformers, with a chat template.
        out: a new folder, or one of a chat dataset, which is replaced.
        clips: the dataset that visuals are looked for in.
        options: None for those of no argument.
        on_progress: told how many records are done, now and then.

    Raises:
        InputError: a record cannot be used (the first of them), or none can.
    """
    options = options or ChatBuildOptions()
    _refuse_other_folder(out)
    index = Index.open(clips) if clips else None
    builder = RowBuilder(tokenizer, ClipNames(index), options.places, options.coder, options.ignored)
    summary = ChatBuildSummary(0, 0, 0, 0, [])
    for name in (chat_index.MANIFEST, chat_index.FORMER, chat_index.LEFT_OUT):  # a dataset is there once the first is
        (out / name).unlink(missing_ok=True)
    parts: list[dict[str, Any]] = []
    for chunk in _chunks(_rows(records, builder, summary, options.leave_out, on_progress)):
        parts.append(_write_part(out, len(parts), pa.Table.from_pylist(chunk, schema=chat_index.SCHEMA)))
    for old in set((out / chat_index.PARTS).glob("*.arrow")) - {out / part["path"] for part in parts}:
        old.unlink()
    if summary.left_out:
        lines = "".join(json.dumps({"record": where, "reason": why}) + "\n" for where, why in summary.left_out)
        write_bytes(out / chat_index.LEFT_OUT, lines.encode())
    if not parts:
        first = f"; {summary.left_out[0][0]}: {summary.left_out[0][1]}" if summary.left_out else ""
        raise InputError("a chat dataset has conversations", f"none{first}", "give a file with conversations")
    tokenizer.save_pretrained(out / chat_index.TOKENIZER)
    coder = options.coder
    _keep(coder.files if coder else (), out / chat_index.CODES)
    named = [{"folder": _relative(clips, out), "digest": index.digest}] if clips and index and not coder else []
    write_json(out / chat_index.MANIFEST, chat_index.manifest_record(parts, _about(tokenizer, options), named))
    return summary


def _about(tokenizer: Any, options: ChatBuildOptions) -> dict[str, Any]:
    """What the manifest says of the tokenizer: see `ChatIndex.tokenizer`."""
    about = {
        "digest": tokenizer_digest(tokenizer),
        "tokens": len(tokenizer),
        "silence": silence_of(tokenizer),
        "places": {kind: int(found) for kind, found in _ids(tokenizer, options.places).items()},
    }
    if options.coder is not None:
        told, first = options.coder.about, len(tokenizer)
        mask = first + int(told["words"])
        about |= {"codes": {**told, "first": first}, "mask": mask, "tokens": mask + 1}
    return about


def _rows(
    records: Iterable[tuple[str, Any]],
    builder: RowBuilder,
    summary: ChatBuildSummary,
    leave_out: bool,
    on_progress: Callable[[int], None] | None,
) -> Iterator[dict[str, Any]]:
    """Rows of the records that can be used, each counted in `summary` before it is given."""
    seen: set[str] = set()
    for number, (where, record) in enumerate(records, 1):
        try:
            conversation = builder.conversation(record, where)
            row = builder.row(conversation)
            if row["uid"] in seen:
                raise InputError("a conversation stands once", f"{where}: the same stood before", "leave one out")
        except InputError as error:
            if not leave_out:
                found = error.value if where in error.value else f"{where}: {error.value}"
                raise InputError(error.rule, found, f"{error.remedy}; or --leave-out to go on without such") from error
            found = error.value.removeprefix(f"{where}: ")
            summary.left_out.append((where, f"{error.rule}; found: {found}; {error.remedy}"))
            continue
        seen.add(row["uid"])
        summary.add(row, len(conversation.visuals))
        if on_progress is not None and number % 100 == 0:
            on_progress(number)
        yield row


def tokenizer_digest(tokenizer: Any) -> str:
    """Identity of a fast tokenizer and its chat template."""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return str(blake3(text.encode()).hexdigest(length=16))


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """As many as make up a part."""
    chunk: list[dict[str, Any]] = []
    tokens = 0
    for row in rows:
        chunk.append(row)
        tokens += len(row["tokens"])
        if len(chunk) == ROWS_A_PART or tokens >= TOKENS_A_PART:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def _keep(files: Sequence[Path], folder: Path) -> None:
    """Copies of these, and no others, in the folder."""
    if files and folder.is_dir() and files[0].parent.samefile(folder):
        return
    if folder.is_dir():
        shutil.rmtree(folder)
    for file in files:
        make_folder(folder)
        temporary = temporary_of(folder / file.name)
        shutil.copyfile(file, temporary)
        publish_file(temporary, folder / file.name)


def _write_part(out: Path, number: int, table: pa.Table) -> dict[str, Any]:
    path = out / chat_index.PARTS / f"{number:05d}.arrow"
    make_folder(path.parent)
    temporary = temporary_of(path)
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, chat_index.SCHEMA) as writer:
        writer.write_table(table)
    publish_file(temporary, path)
    size = path.stat().st_size
    return {"path": f"{chat_index.PARTS}/{path.name}", "size": size, "hash": digest_file(path), "rows": len(table)}


def _ids(tokenizer: Any, places: Mapping[Kind, str]) -> dict[str, int]:
    """Of those places that the tokenizer has."""
    found = {kind: tokenizer.convert_tokens_to_ids(word) for kind, word in places.items()}
    return {kind: id_ for kind, id_ in found.items() if id_ is not None and id_ != tokenizer.unk_token_id}


def _relative(clips: Path, out: Path) -> str:
    """So that a folder with both in it can move."""
    import os

    return os.path.relpath(clips.resolve(), out.resolve())


def _refuse_other_folder(out: Path) -> None:
    own = {
        chat_index.MANIFEST,
        chat_index.FORMER,
        chat_index.PARTS,
        chat_index.TOKENIZER,
        chat_index.LEFT_OUT,
        chat_index.CODES,
    }
    others = sorted(path.name for path in out.iterdir() if path.name not in own) if out.is_dir() else []
    if others or (out.exists() and not out.is_dir()):
        found = f"{out} has: {', '.join(others[:5])}" if others else f"{out} is a file"
        raise InputError(
            "a chat dataset is written into a new folder, or one of a chat dataset", found, "give another --out"
        )
