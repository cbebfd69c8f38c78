"""Shards: plain WebDataset tars that are there whole or not at all.

    shards/.<id>.tar.tmp -> fsync -> shards/<id>.tar     written, renamed
    index/<id>.parquet                                   written, renamed
    commits/<id>.json                                    written, renamed: only now does the shard exist

A kill at any point leaves nothing that a reader takes for data; `sweep` removes what it left. A file is on the disk
before its name is, and its name before the next file begins, so a power cut does no more than a kill. Members carry no
time, user or host, so the same samples give the same bytes. A sample is `<uid>.json` and `<uid>.mp4`, in that order;
samples stand in the order of their source. Any WebDataset reader can read them; ours reads by offset, and checks every
hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from data.containers.byte_ranges import digest_bytes
from data.dataset import tar_format
from parallel import shell
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

SHARDS, INDEX, COMMITS, MANIFEST, QUARANTINE, PREVIEWS = FOLDERS = (
    "shards",
    "index",
    "commits",
    "manifest",
    "quarantine",
    "previews",
)
MADE = {SHARDS: ".tar", INDEX: ".parquet", PREVIEWS: ".jpg"}  # files that belong to a shard, `<id>` or `<id>-*`
SEAL = "seal"  # of a JSON record: the digest of all its other entries


@dataclass(frozen=True)
class Sample:
    """One sample to be written: `parts` maps a suffix (mp4, json) to its bytes."""

    uid: str
    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class Part:
    """Where one part of a sample lies in its tar, in bytes, and its BLAKE3."""

    offset: int
    size: int
    hash: str


@dataclass(frozen=True)
class Shard:
    """A written tar: `path` relative to the dataset, `parts[i]` of sample i by suffix."""

    path: str
    size: int
    hash: str
    parts: tuple[dict[str, Part], ...]


def uid_of(media: str, caption: str, caption_long: str = "") -> str:
    """A sample's id: of the digest of its media part ("" for text alone) and its captions."""
    return digest_of(media, caption, caption_long) if caption_long else digest_of(media, caption)


def digest_of(*parts: Any) -> str:
    """32 hex digits that identify JSON-able values."""
    return digest_bytes(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())


def digest_file(path: Path) -> str:
    """As `digest_bytes`, of a file of any size."""
    return str(blake3().update_mmap(path).hexdigest(length=16))


def write_shard(dataset: Path, shard_id: str, samples: Iterable[Sample]) -> Shard | None:
    """Writes `shards/<id>.tar`; None, and no file, if there are no samples. It becomes real with `commit`.

    Samples are taken one at a time, so the memory needed is that of one sample.

    Raises:
        InputError: there is such a shard already; `free_id` gives another id.
    """
    path = dataset / SHARDS / f"{shard_id}.tar"
    make_folder(path.parent)
    with _new(path) as file:
        parts, size, digest = _write_tar(file, samples)
        if not parts:
            temporary_of(path).unlink()
            return None
        if free_id(dataset, shard_id) != shard_id:
            raise InputError("a shard does not change once it is committed", str(path), "prepare into a new folder")
        file.flush()
        os.fsync(file.fileno())
        _publish(temporary_of(path), path)
    return Shard(path.relative_to(dataset).as_posix(), size, digest, tuple(parts))


def _write_tar(file: BinaryIO, samples: Iterable[Sample]) -> tuple[list[dict[str, Part]], int, str]:
    """(the parts of each sample, the size of the tar, its BLAKE3)."""
    hasher, at = blake3(), 0

    def write(data: bytes) -> None:
        nonlocal at
        file.write(data)
        hasher.update(data)
        at += len(data)

    written = []
    for sample in samples:
        parts = {}
        for suffix, data in sorted(sample.parts.items()):
            write(tar_format.header(f"{sample.uid}.{suffix}", len(data)))
            parts[suffix] = Part(at, len(data), digest_bytes(data))
            write(data)
            write(bytes(tar_format.padded(at) - at))
        written.append(parts)
    write(tar_format.ending(at))
    return written, at, str(hasher.hexdigest(length=16))


def free_id(dataset: Path, shard_id: str) -> str:
    """This id, or one made of it that no shard has: a repaired shard keeps its own, and what it lost may come again."""
    while (dataset / COMMITS / f"{shard_id}.json").exists():
        shard_id = digest_of(shard_id, "again")
    return shard_id


def commit(dataset: Path, shard_id: str, record: Mapping[str, Any]) -> None:
    """Makes a shard real; `record` says what went in and came out, and comes back from `commits`."""
    write_json(dataset / COMMITS / f"{shard_id}.json", sealed(record))


def commits(dataset: Path) -> dict[str, dict[str, Any]]:
    """Every committed record by shard id, in the order of the ids.

    Raises:
        InputError: one cannot be read, or was changed.
    """
    return {path.stem: unsealed(path, read_json(path)) for path in sorted((dataset / COMMITS).glob("*.json"))}


def sweep(dataset: Path) -> list[str]:
    """Removes what a killed writer left: half-written files, and files of shards that neither a commit nor a
    generation of the manifest names. Tells their names.
    """
    left = [path for folder in FOLDERS for path in (dataset / folder).glob(".*.tmp")]
    made = [path for folder, suffix in MADE.items() for path in (dataset / folder).glob(f"[!.]*{suffix}")]
    real = {path.stem for path in (dataset / COMMITS).glob("*.json")}
    strays = [path for path in made if shard_of(path) not in real]
    if strays:
        generations = sorted((dataset / MANIFEST).glob("[0-9]" * 8 + ".json"))
        real.update(*(unsealed(path, read_json(path))["shards"] for path in generations))
    left += [path for path in strays if shard_of(path) not in real]
    for path in left:
        path.unlink(missing_ok=True)
    return sorted(path.relative_to(dataset).as_posix() for path in left)


def shard_of(path: Path) -> str:
    """The id of the shard that a file belongs to."""
    return path.stem.partition("-")[0]


def quarantine(dataset: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Lists what was left out and why, a line each; the name is the digest of the list, so a rerun writes the same."""
    lines = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    if lines:
        write_bytes(dataset / QUARANTINE / f"{digest_bytes(lines)}.jsonl", lines)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record and the digest of all that is in it."""
    return {**record, SEAL: digest_of(record)}


def unsealed(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its seal; `path` is for messages.

    Raises:
        InputError: it is not what was sealed.
    """
    bare = {key: value for key, value in record.items() if key != SEAL}
    if record.get(SEAL) != digest_of(bare):
        remedy = shell.join(["longreel", "data", "check", str(path.parent.parent), "--repair"])
        raise InputError("a record does not change once it is written", f"{path}: its seal does not fit", remedy)
    return bare


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys by rename: readers see all of it or none."""
    write_bytes(path, as_json(value))


def as_json(value: Any) -> bytes:
    """What `write_json` writes; names that are not UTF-8 are escaped."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:
        return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InputError: it is not one.
    """
    remedy = f"restore it from a copy, or longreel data check {shell.quote(str(path.parent.parent))} --repair"
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ParseError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError("a file of the dataset can be read", f"{path}: {what}", remedy) from error
    if not isinstance(value, dict):
        raise InputError("a file of the dataset is a JSON object", f"{path}", remedy)
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by rename, flushed to disk first."""
    make_folder(path.parent)
    with _new(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        _publish(temporary_of(path), path)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, so that they outlive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flushes names that were made, changed or removed in a folder."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _new(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`; it is gone again if that fails."""
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            yield file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_of(path: Path) -> Path:
    """Where a file is written before it gets its name; `sweep` knows it."""
    return path.with_name(f".{path.name}.tmp")


def publish_file(temporary: Path, path: Path) -> None:
    """Gives a written file its name. The file first, then the name: a power cut between them leaves the old one."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    _publish(temporary, path)


def _publish(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    sync_folder(path.parent)
