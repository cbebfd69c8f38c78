"""From records of conversations to a chat dataset: chat template, tokens, and the clips that visuals stand for.

    {"id": ..., "video": "a.mp4", "conversations": [...]}      --conversation_of, encode-->   tokens, their kinds
    "a.mp4"                    --index: file, name or uid-->   the clips that were cut from it, in order
                               --coder, if there is one-->     codes, as tokens of the same vocabulary

A record that cannot be used is left out and listed with its line, the reason and what to do, or stops the work, as the
person decides.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import basename, splitext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from data.captions.name_matching import Files, nearest
from data.chat import chat_index
from data.chat.chat_template import DEFAULT_PLACES, control_mark, encode
from data.chat.formats import Conversation, Kind, Visual, conversation_of
from data.chat.record_fields import HARMLESS
from data.chat.records import refuse_unread
from data.chat.tokenizers import silence_of
from data.dataset.index import Index
from data.dataset.shards import digest_file, digest_of, make_folder, publish_file, temporary_of, write_bytes, write_json
from data.media.timeline import Timelines
from parallel.errors import InputError
from parallel.parsing import shorter
from parallel.sequence.packed import ASSISTANT, USER, VISUAL_CODE

Ints = npt.NDArray[np.int64]
SLACK = 1.0  # seconds that a moment may end after its video: times are rounded, last frames are cut
ROWS_A_PART = 1 << 15
TOKENS_A_PART = 1 << 24  # as lists of Python they take 36 bytes each
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
        codes: tokens of visuals, where these are words of the vocabulary.
    """

    kept: int
    tokens: int
    answers: int
    visuals: int
    left_out: list[tuple[str, str]]
    codes: int = 0


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


class Names:
    """Which clips a name stands for: a uid, the path of the source file, or what can mean no other file."""

    def __init__(self, index: Index | None) -> None:
        self.by_name: dict[str, list[str]] = {}
        self.files = Files(())
        self.rows: dict[str, int] = {}  # of each clip in the index
        if index is None:
            return
        files = index.table["file"].cast(pa.string()).to_pylist()
        uids, starts = (index.table[name].to_pylist() for name in ("uid", "start"))
        self.frames, self.timelines = index.frames, Timelines(index.table)
        self.ends = self.timelines.ends(index.frames)  # seconds in its source, of each clip
        self.rows = {uid: row for row, uid in enumerate(uids)}
        for _, file, uid in sorted(zip(starts, files, uids, strict=True), key=lambda one: (one[0] or 0, one[2])):
            self.by_name.setdefault(file, []).append(uid)
        self.files = Files(self.by_name)
        self.by_name.update({uid: [uid] for uid in uids})

    @cached_property
    def stems(self) -> dict[str, str]:
        """Files by their names without the suffix, with and without their folders; made for the first record of words
        alone."""
        found: dict[str, str] = {}
        for file in self.files.names:
            stem = splitext(file)[0]
            found.setdefault(stem, file)
            found.setdefault(basename(stem), file)
        return found

    def clips(self, name: str, uid: str) -> list[str]:
        """Uids of the clips, in the order in which they were cut.

        Raises:
            InputError: no clip has this name, or files of several folders do.
        """
        if name in self.by_name:
            return self.by_name[name]
        files = self.files.meant(name)
        if len(files) == 1:
            return self.by_name[files[0]]
        if files:
            found = f"{uid}: {name} may be {' or '.join(files[:3])}"
            raise InputError("a visual is one file of the clips", found, "write the path as the dataset has it")
        near = " or ".join(nearest(name, self.files.names, 2))
        known = f"{len(self.files.names):,} files{f', the nearest is {near}' if near else ''}"
        remedy = "prepare it into the dataset (was it rejected there?), or write the path as the dataset has it"
        raise InputError(
            "the videos and images of a conversation are clips of a dataset",
            f"{uid}: {name}; {known if self.by_name else 'no clips were given'}",
            remedy if self.by_name else "--clips DATASET",
        )


def write(
    records: Iterable[tuple[str, Any]],
    tokenizer: Any,
    out: Path,
    clips: Path | None = None,
    places: Mapping[Kind, str] = DEFAULT_PLACES,
    leave_out: bool = False,
    on_progress: Callable[[int], None] | None = None,
    coder: Coder | None = None,
    ignored: Collection[str] = (),
) -> Told:
    """Write a chat dataset; the same arguments write the same bytes.

    Args:
        records: (where it stands, record) in any form that `conversation_of` knows.
        tokenizer: of transformers, with a chat template.
        out: a new folder, or one of a chat dataset, which is replaced.
        clips: the dataset that visuals are looked for in.
        places: words of the tokenizer that stand for visuals.
        leave_out: go on without records that cannot be used, and list them.
        on_progress: told how many records are done, now and then.
        coder: visuals are as many tokens as they have codes, and the dataset needs no clips any more; None: each is one
            token, in whose place a model puts what its tower sees.
        ignored: keys of records that are passed over, whatever they say.

    Raises:
        InputError: a record cannot be used (the first of them), or none can.
    """
    _refuse_other_folder(out)
    index = Index.open(clips) if clips else None
    names, told = Names(index), Told(0, 0, 0, 0, [])
    for name in (chat_index.MANIFEST, chat_index.LEFT_OUT):  # a dataset is there once the first is
        (out / name).unlink(missing_ok=True)
    rows = _rows(records, tokenizer, names, places, leave_out, told, on_progress, coder, ignored)
    parts: list[dict[str, Any]] = []
    for chunk in _chunks(rows):
        parts.append(_write_part(out, len(parts), pa.Table.from_pylist(chunk, schema=chat_index.SCHEMA)))
    for old in set((out / chat_index.PARTS).glob("*.arrow")) - {out / part["path"] for part in parts}:
        old.unlink()
    if told.left_out:
        lines = "".join(json.dumps({"record": where, "reason": why}) + "\n" for where, why in told.left_out)
        write_bytes(out / chat_index.LEFT_OUT, lines.encode())
    if not parts:
        first = f"; {told.left_out[0][0]}: {told.left_out[0][1]}" if told.left_out else ""
        raise InputError("a chat dataset has conversations", f"none{first}", "give a file with conversations")
    tokenizer.save_pretrained(out / chat_index.TOKENIZER)
    about = {
        "digest": tokenizer_digest(tokenizer),
        "tokens": len(tokenizer),
        "silence": silence_of(tokenizer),
        "places": {kind: int(found) for kind, found in _ids(tokenizer, places).items()},
    }
    if coder is not None:
        mask = len(tokenizer) + int(coder.about["words"])
        about |= {"codes": {**coder.about, "first": len(tokenizer)}, "mask": mask, "tokens": mask + 1}
    _keep(coder.files if coder else (), out / chat_index.CODES)
    named = [{"folder": _relative(clips, out), "digest": index.digest}] if clips and index and not coder else []
    write_json(out / chat_index.MANIFEST, chat_index.manifest_record(parts, about, named))
    return told


def tokenizer_digest(tokenizer: Any) -> str:
    """Identity of a fast tokenizer and its chat template."""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return str(blake3(text.encode()).hexdigest(length=16))


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


def _rows(
    records: Iterable[tuple[str, Any]],
    tokenizer: Any,
    names: Names,
    places: Mapping[Kind, str],
    leave_out: bool,
    told: Told,
    on_progress: Callable[[int], None] | None,
    coder: Coder | None,
    ignored: Collection[str],
) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, (where, record) in enumerate(records, 1):
        try:
            refuse_unread(record, where)
            conversation = conversation_of(record, where, ignored)
            if not conversation.visuals:
                _refuse_hidden_clip(record, where, names, ignored)
            row = _row(conversation, tokenizer, names, places, coder)
            if row["uid"] in seen:
                raise InputError("a conversation stands once", f"{where}: the same stood before", "leave one out")
        except InputError as error:
            if not leave_out:
                found = error.value if where in error.value else f"{where}: {error.value}"
                raise InputError(error.rule, found, f"{error.remedy}; or --leave-out to go on without such") from error
            found = error.value.removeprefix(f"{where}: ")
            told.left_out.append((where, f"{error.rule}; found: {found}; {error.remedy}"))
            continue
        seen.add(row["uid"])
        told.kept += 1
        codes = row["kinds"].count(VISUAL_CODE)
        told.codes += codes
        told.tokens += len(row["tokens"]) - len(row["spots"]) - codes
        told.answers += row["kinds"].count(ASSISTANT)
        told.visuals += len(conversation.visuals)
        if on_progress is not None and number % 100 == 0:
            on_progress(number)
        yield row


def _row(
    conversation: Conversation, tokenizer: Any, names: Names, places: Mapping[Kind, str], coder: Coder | None
) -> dict[str, Any]:
    parts = [part for turn in conversation.turns for part in turn.parts]
    _refuse_half_characters(conversation.uid, parts)
    _refuse_control_marks(conversation.uid, parts, tokenizer)
    encoded = encode(conversation, tokenizer, places)
    tokens, kinds = encoded.tokens, np.where(encoded.answers, ASSISTANT, USER)
    visual_positions, visuals = encoded.visual_positions.tolist(), []
    if coder is None:
        said = " ".join(part for part in parts if isinstance(part, str))
        visuals = [_visual(visual, names, conversation.uid) for visual in conversation.visuals]
    else:
        said = " ".join(part if isinstance(part, str) else f"[{part.name}]" for part in parts)
        codes = [_codes(visual, names, conversation.uid, coder) + len(tokenizer) for visual in conversation.visuals]
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


def _refuse_hidden_clip(record: Mapping[str, Any], where: str, names: Names, ignored: Collection[str]) -> None:
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


def _codes(visual: Visual, names: Names, uid: str, coder: Coder) -> Ints:
    if visual.watched or visual.begin is not None or visual.end is not None:
        found = f"{uid}: {visual.name}, from {visual.begin} to {visual.end} s"
        raise InputError("a visual that is coded is seen whole", found, "leave out --codes, for streams and moments")
    return coder.code(names.clips(visual.name, uid))


def _visual(visual: Visual, names: Names, uid: str) -> dict[str, Any]:
    clips = names.clips(visual.name, uid)
    rows = np.array([names.rows[clip] for clip in clips], np.int64)
    end = float(names.ends[rows].max())
    if (visual.begin or 0.0) > end or (visual.end is not None and visual.end > end + SLACK):
        found = f"{uid}: {visual.begin or 0:g} to {visual.end or end:g} s of {visual.name}, which has {end:.1f} s"
        raise InputError("a moment lies within its video", found, "mend the record or leave it out")
    if not visual.watched and not _shown(visual, names, rows):  # words of a stream may follow each other at once
        found = f"{uid}: {visual.begin or 0:g} to {visual.end or end:g} s of {visual.name}, of which no frame is kept"
        remedy = "mend the record or leave it out; a clip or a pause of the video may have been left out of the dataset"
        raise InputError("a visual shows a frame at least", found, remedy)
    seconds = {"begin": visual.begin, "end": visual.end}
    return {"name": visual.name, "clips": clips, **seconds, "watched": visual.watched}


def _shown(visual: Visual, names: Names, rows: Ints) -> int:
    """How many stored frames of clips the moment of a visual has."""
    if visual.begin is None and visual.end is None:
        return int(names.frames[rows].sum())
    begin, end = (np.full(len(rows), np.nan if one is None else one) for one in (visual.begin, visual.end))
    first, last = names.timelines.between(rows, begin, end, names.frames[rows])
    return int((last - first).sum())


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
    own = {chat_index.MANIFEST, chat_index.PARTS, chat_index.TOKENIZER, chat_index.LEFT_OUT, chat_index.CODES}
    others = sorted(path.name for path in out.iterdir() if path.name not in own) if out.is_dir() else []
    if others or (out.exists() and not out.is_dir()):
        found = f"{out} has: {', '.join(others[:5])}" if others else f"{out} is a file"
        raise InputError(
            "a chat dataset is written into a new folder, or one of a chat dataset", found, "give another --out"
        )
