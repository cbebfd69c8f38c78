"""The index: one row per sample, enough to plan a run and to read any sample by offset without opening a tar.

About 200 bytes a row in memory; ten million clips open in a few seconds.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from blake3 import blake3

from data.containers.byte_ranges import Slices, digest_bytes
from data.dataset import manifest
from data.dataset.manifest import Manifest
from data.dataset.shards import COMMITS, INDEX, MANIFEST, Part, digest_of, write_bytes
from data.media.timeline import STILL, Timeline
from data.planning.clip_sampling import Choice
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
        ("time_rows", pa.list_(pa.int32())),  # see `Timeline`; null in datasets that are older than it
        ("time_seconds", pa.list_(pa.float64())),
        *((name, pa.float32()) for name in ("motion", "sharpness", "brightness", "black", "text")),  # see `Scores`
        ("phash", pa.string()),
    ]
)
LOCATED = ("uid", "shard", *(name for name in SCHEMA.names if name.endswith(("_offset", "_size", "_hash"))))
# columns that <uid>.json holds too, so that an index can be made again from its tar
FACTS = tuple(name for name in SCHEMA.names if name not in LOCATED and not name.startswith("slice_"))
ADDED = ("time_rows", "time_seconds")  # columns that older datasets have not
OLDER = pa.schema([field for field in SCHEMA if field.name not in ADDED])
REPEATED = ("shard", "media", "file")  # columns of few values: kept once each in memory
IN_MEMORY = pa.schema([(f.name, pa.dictionary(pa.int32(), f.type) if f.name in REPEATED else f.type) for f in SCHEMA])


@dataclass(frozen=True, eq=False)
class Index:
    """The samples of one generation of one or several datasets, in a fixed order; a *row* is a position in it.

    Attributes:
        folders: the datasets.
        digests: identity of the samples of each, and their order.
        starts: [datasets + 1] the first row of each, and the end.
        table: of `SCHEMA`.
        frames, height, width: [rows], of the stored clips.
    """

    folders: tuple[Path, ...]
    digests: tuple[str, ...]
    starts: tuple[int, ...]
    table: pa.Table
    frames: Ints
    height: Ints
    width: Ints

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def digest(self) -> str:
        """Identity of all samples and their order."""
        return self.digests[0] if len(self.digests) == 1 else digest_of(self.digests)

    @property
    def usual_size(self) -> tuple[int, int] | None:
        """(height, width) that most clips have, the larger one of two; None of text alone."""
        sizes = Counter(zip(self.height.tolist(), self.width.tolist(), strict=True))
        found = [(times, size) for size, times in sizes.items() if min(size) > 0]
        return max(found)[1] if found else None

    def uid(self, row: int) -> str:
        """The sample's id."""
        return self._text("uid", row)

    def caption(self, row: int, which: Choice = "short") -> str:
        """The sample's caption; of a sample that has but one, that one."""
        return (which == "long" and self._text("caption_long", row)) or self._text("caption", row)

    def caption_bytes(self, which: Choice = "short") -> Ints:
        """[rows] bytes of the captions in UTF-8, chosen as `caption` does."""
        short, long = (
            pa.compute.fill_null(pa.compute.binary_length(self.table[name]), 0).to_numpy()
            for name in ("caption", "caption_long")
        )
        found: Ints = np.where((which == "long") & (long > 0), long, short).astype(np.int64)
        return found

    def file(self, row: int) -> str:
        """The source file it was cut from."""
        return self._text("file", row)

    def media(self, row: int) -> str:
        """Suffix of the part with the frames."""
        return self._text("media", row)

    def shard(self, row: int) -> Path:
        """The tar."""
        codes, paths = self._shards
        return paths[bisect_right(self.starts, row) - 1][int(codes[row])]

    def part(self, row: int, which: Literal["media", "json"] = "media") -> Part:
        """Where the bytes of one part lie."""
        offsets, sizes = self._places[which]
        return Part(int(offsets[row]), int(sizes[row]), self._text(f"{which}_hash", row))

    def slices(self, row: int) -> Slices | None:
        """The slice table of the media part; None if it can only be read whole."""
        rows, offsets, hashes = (self.table[f"slice_{name}"][row].as_py() for name in ("rows", "offsets", "hashes"))
        return Slices(tuple(rows), tuple(offsets), tuple(hashes)) if rows else None

    def timeline(self, row: int) -> Timeline:
        """When the stored frames are shown in the source."""
        rows, seconds, fps = (self.table[name][row].as_py() for name in ("time_rows", "time_seconds", "fps"))
        if rows is None:  # an older dataset: right where the rate of the source was even
            return Timeline((0,), ((self.table["start"][row].as_py() or 0) / fps,), fps) if fps and fps > 0 else STILL
        return Timeline(tuple(rows), tuple(seconds), fps or 0.0)

    def shards(self) -> dict[Path, int]:
        """The bytes that each tar has at least, going by the samples in it."""
        found: dict[Path, int] = {}
        for folder, start, stop in zip(self.folders, self.starts, self.starts[1:], strict=False):
            part = self.table.slice(start, stop - start)
            ends = pa.compute.add(part["media_offset"], part["media_size"])
            reach = pa.table({"shard": part["shard"].cast(pa.string()), "end": ends}).group_by("shard")
            for row in reach.aggregate([("end", "max")]).to_pylist():
                found[folder / row["shard"]] = int(row["end_max"])
        return found

    def newer(self) -> Iterator[tuple[Path, int]]:
        """(dataset, generation that this is) of those that have a newer generation by now."""
        for folder, digest in zip(self.folders, self.digests, strict=True):
            last, mine = manifest.latest(folder), manifest.latest(folder, digest)
            if last is not None and mine is not None and last.generation > mine.generation:
                yield folder, mine.generation

    @cached_property
    def _places(self) -> dict[str, tuple[Ints, Ints]]:
        """Offsets and sizes of all parts: read for every sample, and slow to get from Arrow one by one."""
        columns = {which: (self.table[f"{which}_offset"], self.table[f"{which}_size"]) for which in ("media", "json")}
        return {which: (offset.to_numpy(), size.to_numpy()) for which, (offset, size) in columns.items()}

    @cached_property
    def _shards(self) -> tuple[Ints, list[list[Path]]]:
        """For each row a number, and for each dataset the tar of each number."""
        column = self.table["shard"]
        column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        whole = column.unify_dictionaries().combine_chunks()
        whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
        names = whole.dictionary.to_pylist()
        return whole.indices.to_numpy(), [[folder / name for name in names] for folder in self.folders]

    def _text(self, column: str, row: int) -> str:
        return str(self.table[column][row].as_py())

    @classmethod
    def open(cls, dataset: Path, digest: str | None = None) -> Index:
        """The newest generation of a dataset, or the one of this digest, its own digests checked.

        Raises:
            InputError: no such folder, not a dataset, unfinished, empty, or changed since it was written.
        """
        dataset = Path(dataset)
        found = _manifest_of(dataset, digest)
        with ThreadPoolExecutor() as threads:  # reading, hashing and unpacking leave the interpreter alone
            tables = list(threads.map(partial(_read_part, dataset), found.index))
        if not sum(map(len, tables)):
            raise InputError("a dataset has samples", f"{dataset}: none", "run longreel prepare on a folder of videos")
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        digest = content_digest(table["uid"])
        if digest != found.digest:
            what = f"the digest of its samples is {digest}, the manifest says {found.digest}"
            raise _changed(dataset / MANIFEST, what)
        return cls.of((dataset,), (digest,), (0, len(table)), table)

    @classmethod
    def join(cls, parts: Sequence[Index]) -> Index:
        """Several datasets as one, in this order."""
        if len(parts) == 1:
            return parts[0]
        table = pa.concat_tables([p.table for p in parts]).unify_dictionaries().combine_chunks()
        starts = (0, *accumulate(len(p) for p in parts))
        folders = tuple(folder for p in parts for folder in p.folders)
        digests = tuple(digest for p in parts for digest in p.digests)
        return cls.of(folders, digests, starts, table)

    @classmethod
    def of(cls, folders: tuple[Path, ...], digests: tuple[str, ...], starts: tuple[int, ...], table: pa.Table) -> Index:
        """An index of a table of `SCHEMA`."""
        return cls(folders, digests, starts, table, *(table[name].to_numpy() for name in ("frames", "height", "width")))


def write_rows(dataset: Path, shard_id: str, rows: Iterable[Mapping[str, Any]]) -> tuple[str, str, int]:
    """Writes a shard's rows as `index/<id>.parquet`: (path relative to the dataset, BLAKE3, number of rows)."""
    listed = list(rows)
    older = bool(listed) and all(row.get(name) is None for row in listed for name in ADDED)
    table = pa.Table.from_pylist(listed, schema=OLDER if older else SCHEMA)  # older rows keep their bytes
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    path = f"{INDEX}/{shard_id}.parquet"
    write_bytes(dataset / path, buffer.getvalue())
    return path, digest_bytes(buffer.getvalue()), len(table)


def read_uids(dataset: Path, path: str) -> list[str]:
    """The uids of one part of the index."""
    uids: list[str] = pyarrow.parquet.read_table(io.BytesIO(_read(dataset / path)), columns=["uid"])["uid"].to_pylist()
    return uids


def content_digest(uids: Iterable[str] | pa.ChunkedArray) -> str:
    """Identity of samples in this order; a uid stands for the bytes and the captions."""
    column = uids if isinstance(uids, pa.ChunkedArray) else pa.chunked_array([pa.array(list(uids), pa.string())])
    hasher = blake3()
    for chunk in column.chunks:
        for start in range(0, len(chunk), 1 << 16):
            hasher.update("".join(f"{uid}\n" for uid in chunk[start : start + (1 << 16)].to_pylist()).encode())
    return str(hasher.hexdigest(length=16))


def _read_part(dataset: Path, part: tuple[str, str, int]) -> pa.Table:
    name, digest, rows = part
    data = _read(dataset / name)
    if digest_bytes(data) != digest:
        raise _changed(dataset / name, f"its BLAKE3 is {digest_bytes(data)}, the manifest says {digest}")
    table = pyarrow.parquet.read_table(io.BytesIO(data), schema=IN_MEMORY)
    if len(table) != rows:
        raise _changed(dataset / name, f"{len(table)} rows, the manifest says {rows}")
    return table


def _manifest_of(dataset: Path, digest: str | None) -> Manifest:
    if not dataset.is_dir():
        what = "is a file" if dataset.exists() else "no such folder"
        raise InputError(
            "a dataset is a folder", f"{dataset}: {what}", "make one: longreel prepare SOURCE --out DATASET"
        )
    found = manifest.latest(dataset, digest)
    if found is None and digest is not None and manifest.latest(dataset) is not None:
        remedy = "bring that generation back from a copy, or train anew with another out"
        raise InputError("a run goes on with the samples that it began with", f"{dataset}: none is {digest}", remedy)
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
