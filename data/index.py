"""The index: one row per sample, enough to plan a run and to read any sample by offset without opening a tar.

About 200 bytes a row in memory; ten million clips open in a few seconds.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from data import manifest
from data.manifest import Manifest
from data.shards import COMMITS, INDEX, MANIFEST, Part, digest_bytes, write_bytes
from data.slices import Slices
from parallel.errors import InputError

Ints = npt.NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),  # digest of the clip's bytes and its captions
        ("shard", pa.string()),  # path relative to the dataset
        ("media", pa.string()),  # suffix of the part with the frames: mp4, jpg, png, npy; "" for text alone
        *(
            (f"{part}_{name}", kind)
            for part in ("media", "json")
            for name, kind in (("offset", pa.int64()), ("size", pa.int64()), ("hash", pa.string()))
        ),
        ("slice_rows", pa.list_(pa.int32())),  # see `Slices`; empty for a part that is read whole
        ("slice_offsets", pa.list_(pa.int64())),
        ("slice_hashes", pa.list_(pa.string())),
        ("frames", pa.int64()),  # 1 for an image, 0 for text alone
        ("fps", pa.float64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("caption", pa.string()),  # the short one, or the only one
        ("caption_long", pa.string()),  # "" if there is none
        ("file", pa.string()),  # the source file, and the rows of it that the clip shows
        ("start", pa.int64()),
        ("stop", pa.int64()),
        *((name, pa.float32()) for name in ("motion", "sharpness", "brightness", "black", "text")),  # see `Scores`
        ("phash", pa.string()),
    ]
)
FACTS: tuple[str, ...] = (
    "media",
    "frames",
    "fps",
    "height",
    "width",
    "caption",
    "caption_long",
    "file",
    "start",
    "stop",
)
FACTS += ("motion", "sharpness", "brightness", "black", "text", "phash")  # columns that <uid>.json holds too


@dataclass(frozen=True, eq=False)
class Index:
    """The samples of one generation of a dataset, in a fixed order; a *row* is a position in it.

    Attributes:
        folder: the dataset.
        digest: identity of the samples and their order.
        frames, height, width: [rows], of the stored clips.
    """

    folder: Path
    digest: str
    table: pa.Table
    frames: Ints
    height: Ints
    width: Ints

    def __len__(self) -> int:
        return len(self.frames)

    def uid(self, row: int) -> str:
        """The sample's id."""
        return self._text("uid", row)

    def caption(self, row: int) -> str:
        """The sample's caption."""
        return self._text("caption", row)

    def file(self, row: int) -> str:
        """The source file it was cut from."""
        return self._text("file", row)

    def media(self, row: int) -> str:
        """Suffix of the part with the frames."""
        return self._text("media", row)

    def shard(self, row: int) -> str:
        """Path of the tar, relative to the dataset."""
        return self._text("shard", row)

    def part(self, row: int, which: str = "media") -> Part:
        """Where the bytes of one part lie: "media" or "json"."""
        offset, size, digest = (self.table[f"{which}_{name}"][row].as_py() for name in ("offset", "size", "hash"))
        return Part(offset, size, digest)

    def slices(self, row: int) -> Slices | None:
        """The slice table of the media part; None if it can only be read whole."""
        rows, *others = (self.table[f"slice_{name}"][row].as_py() for name in ("rows", "offsets", "hashes"))
        return Slices(tuple(rows), *map(tuple, others)) if rows else None

    def _text(self, column: str, row: int) -> str:
        return str(self.table[column][row].as_py())

    @classmethod
    def open(cls, dataset: Path) -> Index:
        """The newest generation of a dataset, its digests checked.

        Raises:
            InputError: no such folder, not a dataset, unfinished, empty, or changed since it was written.
        """
        found = _manifest_of(Path(dataset))
        tables = []
        for name, digest, rows in found.index:
            data = _read(dataset / name)
            if digest_bytes(data) != digest:
                raise _changed(dataset / name, f"its BLAKE3 is {digest_bytes(data)}, the manifest says {digest}")
            tables.append(pyarrow.parquet.read_table(io.BytesIO(data), schema=SCHEMA))
            assert len(tables[-1]) == rows, f"{name}: {len(tables[-1])} rows, the manifest says {rows}"
        table = pa.concat_tables(tables).combine_chunks() if tables else SCHEMA.empty_table()
        if len(table) == 0:
            raise InputError("a dataset has samples", f"{dataset}: none", "run longreel prepare on a folder of videos")
        digest = content_digest(table["uid"].to_pylist())
        if digest != found.digest:
            raise _changed(
                dataset / MANIFEST, f"the digest of its samples is {digest}, the manifest says {found.digest}"
            )
        columns = (table[name].to_numpy() for name in ("frames", "height", "width"))
        return cls(Path(dataset), digest, table, *columns)


def write_rows(dataset: Path, shard_id: str, rows: Iterable[Mapping[str, Any]]) -> tuple[str, str, int]:
    """Writes a shard's rows as `index/<id>.parquet`: (path relative to the dataset, BLAKE3, number of rows)."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    path = f"{INDEX}/{shard_id}.parquet"
    write_bytes(dataset / path, buffer.getvalue())
    return path, digest_bytes(buffer.getvalue()), len(table)


def read_uids(dataset: Path, path: str) -> list[str]:
    """The uids of one part of the index."""
    uids: list[str] = pyarrow.parquet.read_table(io.BytesIO(_read(dataset / path)), columns=["uid"])["uid"].to_pylist()
    return uids


def content_digest(uids: Iterable[str]) -> str:
    """Identity of samples in this order; a uid stands for the bytes and the caption."""
    return digest_bytes("\n".join(uids).encode())


def _manifest_of(dataset: Path) -> Manifest:
    if not dataset.is_dir():
        what = "is a file" if dataset.exists() else "no such folder"
        raise InputError(
            "a dataset is a folder", f"{dataset}: {what}", "make one: longreel prepare SOURCE --out DATASET"
        )
    found = manifest.latest(dataset)
    if found is None:
        if (dataset / COMMITS).is_dir():
            raise InputError(
                "a dataset is finished", f"{dataset}: no manifest yet", "run the same longreel prepare again"
            )
        names = ", ".join(sorted(p.name for p in dataset.iterdir())[:5]) or "nothing"
        remedy = "make one of it: longreel prepare SOURCE --out DATASET, and give DATASET"
        raise InputError(f"a dataset has a folder {MANIFEST}/", f"{dataset} has: {names}", remedy)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _changed(path, error.strerror or str(error)) from error


def _changed(path: Path, what: str) -> InputError:
    return InputError(
        "a dataset does not change once it is written", f"{path}: {what}", "restore it from a copy, or prepare anew"
    )
