"""`ChatIndex`: a chat dataset: conversations as tokens of one tokenizer, beside the clips that they are about.

    chats/mine/
      chat.json             what it is: parts and their hashes, the tokenizer, the clips; written last
      parts/00000.arrow     one row a conversation: tokens, what each is, where visuals stand, which clips they are
      tokenizer/            a copy, so that a run needs nothing else
      codes/                with `--codes FOLDER`, a copy of that, too
      left-out.jsonl        records that were left out, and why

A visual is one token here; how many rows a model makes of it is arithmetic on frames (`data.streams.visual_spans`),
so one folder serves every model of a tokenizer. Rows are read where they lie on the disk (Arrow, memory-mapped): ranks
of a machine share them.

With `--codes` a visual is its codes instead, tokens like others: it then needs no clips, and a model no vision tower.

    vocabulary    0 .. first - 1  words    first .. first + words - 1  codes    mask, which stands where one is hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.dataset.shards import digest_file, digest_of, read_json, sealed, unsealed
from parallel.errors import InputError

Ints = npt.NDArray[np.int64]

MANIFEST, PARTS, TOKENIZER, LEFT_OUT, CODES = "chat.json", "parts", "tokenizer", "left-out.jsonl", "codes"
SCHEMA_NUMBER = 2
FORMER = "talks.json"  # what schema 1 was named by
VISUAL = pa.struct(
    [
        ("name", pa.string()),  # as the record has it
        ("clips", pa.list_(pa.string())),  # uids of the clips that show it, in order
        ("begin", pa.float64()),  # seconds of it that are seen; null for all
        ("end", pa.float64()),
        ("watched", pa.bool_()),  # after each view the model says that it has nothing to say, or begins to speak
    ]
)
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),  # digest of its id, tokens and visuals
        ("text", pa.string()),  # how it begins, for people
        ("tokens", pa.list_(pa.int32())),
        ("kinds", pa.list_(pa.int8())),  # of each token: USER, ASSISTANT, VISUAL_CODE
        ("spots", pa.list_(pa.int32())),  # which tokens stand for visuals
        ("visuals", pa.list_(VISUAL)),
    ]
)


@dataclass(frozen=True, eq=False)
class ChatIndex:
    """Conversations of one or several folders, in a fixed order; a *row* is a position in it.

    Attributes:
        folders: of chat datasets.
        digests: identity of the rows of each.
        starts: [folders + 1] the first row of each, and the end.
        table: of `SCHEMA`.
        manifests: of each folder.
    """

    folders: tuple[Path, ...]
    digests: tuple[str, ...]
    starts: tuple[int, ...]
    table: pa.Table
    manifests: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tokenizer(self) -> dict[str, Any]:
        """Its digest, number of tokens, places of visuals, and the token of silence; the same for all folders.

        Where visuals are codes: `codes`, how they are made and the first of their tokens, and `mask`.
        """
        found: dict[str, Any] = self.manifests[0]["tokenizer"]
        return found

    @property
    def tokenizer_folder(self) -> Path:
        """Where it lies."""
        return self.folders[0] / TOKENIZER

    @property
    def folder_of_codes(self) -> Path:
        """Where the quantiser lies, if it has files."""
        return self.folders[0] / CODES

    @property
    def clips(self) -> list[tuple[Path, str]]:
        """Datasets of the visuals, each once, and their digests."""
        pairs = zip(self.folders, self.manifests, strict=True)
        named = ((folder, clips) for folder, manifest in pairs for clips in manifest["clips"])
        return list(
            dict.fromkeys(((folder / clips["folder"]).resolve(), str(clips["digest"])) for folder, clips in named)
        )

    def uid(self, row: int) -> str:
        """Of a conversation."""
        return str(self.table["uid"][row].as_py())

    def text(self, row: int) -> str:
        """How it begins."""
        return str(self.table["text"][row].as_py())

    def file(self, row: int) -> str:
        """The visuals that it is about."""
        return ", ".join(visual["name"] for visual in self.table["visuals"][row].as_py())

    def tokens(self, row: int) -> tuple[Ints, Ints, Ints]:
        """Tokens, their kinds, and which of them stand for visuals."""
        found = (self.table[name][row].values.to_numpy().astype(np.int64) for name in ("tokens", "kinds", "spots"))
        return tuple(found)

    def visuals(self, row: int) -> list[dict[str, Any]]:
        """See `VISUAL`."""
        found: list[dict[str, Any]] = self.table["visuals"][row].as_py()
        return found

    @cached_property
    def lengths(self) -> Ints:
        """[rows] tokens, those that stand for visuals not counted."""
        count = pa.compute.list_value_length
        lengths = pa.compute.subtract(count(self.table["tokens"]), count(self.table["spots"]))
        return np.asarray(lengths.to_numpy(), dtype=np.int64)

    def shards(self) -> dict[Path, int]:
        """The bytes of each file of rows."""
        pairs = zip(self.folders, self.manifests, strict=True)
        return {folder / part["path"]: int(part["size"]) for folder, manifest in pairs for part in manifest["parts"]}

    @classmethod
    def open(cls, folder: Path, digest: str | None = None) -> ChatIndex:
        """What `longreel data chat` wrote, its hashes compared.

        Raises:
            InputError: no such folder, something else, changed, or not of this digest.
        """
        manifest = manifest_of(folder)
        if digest is not None and manifest["digest"] != digest:
            found = f"{folder}: {manifest['digest']}, the run began with {digest}"
            remedy = "bring the old chat dataset back, or train anew with another out"
            raise InputError("a run goes on with the samples that it began with", found, remedy)
        tables = []
        for part in manifest["parts"]:
            path = folder / part["path"]
            if not path.is_file() or path.stat().st_size != part["size"] or digest_file(path) != part["hash"]:
                raise InputError(
                    "a chat dataset does not change once it is written",
                    f"{path} is {'not what chat.json says' if path.exists() else 'missing'}",
                    "run the same longreel data chat again",
                )
            tables.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
        table = pa.concat_tables(tables)
        return cls((Path(folder),), (manifest["digest"],), (0, len(table)), table, (manifest,))

    @classmethod
    def join(cls, parts: Sequence[ChatIndex]) -> ChatIndex:
        """Several folders as one, in this order.

        Raises:
            InputError: their tokenizers differ.
        """
        if len(parts) == 1:
            return parts[0]
        for part in parts[1:]:
            if part.tokenizer != parts[0].tokenizer:
                found = f"{parts[0].folders[0]} and {part.folders[0]} have different ones"
                raise InputError(
                    "a run has one tokenizer", found, "make them anew with the same --tokenizer and --codes"
                )
        return cls(
            tuple(folder for part in parts for folder in part.folders),
            tuple(digest for part in parts for digest in part.digests),
            (0, *accumulate(len(part) for part in parts)),
            pa.concat_tables([part.table for part in parts]),
            tuple(manifest for part in parts for manifest in part.manifests),
        )


def manifest_of(folder: Path) -> dict[str, Any]:
    """What `chat.json` says.

    Raises:
        InputError: there is none, or it was changed.
    """
    path = Path(folder) / MANIFEST
    remedy = "longreel data chat CONVERSATIONS --tokenizer FOLDER --clips DATASET --out CHATS, and give CHATS"
    rule = f"a chat dataset must be of schema {SCHEMA_NUMBER}"
    if not path.is_file() and (former := Path(folder) / FORMER).is_file():
        raise InputError(rule, f"{former}: schema 1", f"make it anew: {remedy}")
    if not path.is_file():
        found = f"{folder}: {'no ' + MANIFEST if Path(folder).is_dir() else 'no such folder'}"
        raise InputError("a video_lm trains on a chat dataset", found, remedy)
    found_there = unsealed(path, read_json(path))
    if found_there.get("schema") != SCHEMA_NUMBER:
        raise InputError(rule, f"{path}: schema {found_there.get('schema')}", f"make it anew: {remedy}")
    return found_there


def manifest_record(
    parts: list[dict[str, Any]], tokenizer: dict[str, Any], clips: list[dict[str, str]]
) -> dict[str, Any]:
    """What to write to `chat.json`."""
    digest = digest_of([part["hash"] for part in parts], tokenizer)
    record = {"schema": SCHEMA_NUMBER, "digest": digest, "parts": parts, "tokenizer": tokenizer, "clips": clips}
    return sealed(record)
