"""Shards: plain WebDataset tars that are there whole or not at all.

    shards/.<id>.tar.tmp -> fsync -> shards/<id>.tar     written, renamed
    index/<id>.parquet                                   written, renamed
    commits/<id>.json                                    written, renamed: only now does the shard exist

A kill at any point leaves nothing that a reader takes for data; `sweep` removes what it left. Members carry no time,
user or host, so the same samples give the same bytes. A sample is `<uid>.json` and `<uid>.mp4`, in that order; samples
stand in the order of their source. Any WebDataset reader can read them; ours reads by offset, and checks every hash.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset
from blake3 import blake3

from parallel.errors import InputError

SHARDS, INDEX, COMMITS, MANIFEST, QUARANTINE = FOLDERS = ("shards", "index", "commits", "manifest", "quarantine")


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


def digest_of(*parts: Any) -> str:
    """32 hex digits that identify JSON-able values."""
    return digest_bytes(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())


def digest_bytes(data: bytes | memoryview) -> str:
    """32 hex digits of BLAKE3: 128 bits are enough against chance and short enough to read."""
    return str(blake3(data).hexdigest(length=16))


def digest_file(path: Path) -> str:
    """As `digest_bytes`, of a file of any size."""
    return str(blake3().update_mmap(path).hexdigest(length=16))


def write_shard(dataset: Path, shard_id: str, samples: Iterable[Sample]) -> Shard | None:
    """Writes `shards/<id>.tar`; None, and no file, if there are no samples. It becomes real with `commit`.

    Samples are taken one at a time, so the memory needed is that of one sample.
    """
    path = dataset / SHARDS / f"{shard_id}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    hashes: list[dict[str, str]] = []
    try:
        with temporary.open("wb") as file:
            with webdataset.TarWriter(
                file, user="longreel", group="longreel", mode=0o444, mtime=0, encoder=False
            ) as tar:
                for sample in samples:
                    tar.write({"__key__": sample.uid, **sample.parts})
                    hashes.append({suffix: digest_bytes(data) for suffix, data in sample.parts.items()})
            _flush(file)
        if not hashes:
            return None
        members = _members(temporary)
        parts = tuple(
            {suffix: Part(*members[f"{uid}.{suffix}"], digest) for suffix, digest in sorted(by_suffix.items())}
            for uid, by_suffix in zip(dict.fromkeys(name.split(".")[0] for name in members), hashes, strict=True)
        )
        shard = Shard(path.relative_to(dataset).as_posix(), temporary.stat().st_size, digest_file(temporary), parts)
        _publish(temporary, path)
        return shard
    finally:
        temporary.unlink(missing_ok=True)


def commit(dataset: Path, shard_id: str, record: Mapping[str, Any]) -> None:
    """Makes a shard real; `record` says what went in and came out, and comes back from `commits`."""
    write_json(dataset / COMMITS / f"{shard_id}.json", record)


def commits(dataset: Path) -> dict[str, dict[str, Any]]:
    """Every committed record by shard id, in the order of the ids."""
    return {path.stem: read_json(path) for path in sorted((dataset / COMMITS).glob("*.json"))}


def sweep(dataset: Path) -> list[str]:
    """Removes what a killed writer left (half-written files, shards without a commit); tells their names."""
    real = {path.stem for path in (dataset / COMMITS).glob("*.json")}
    left = [path for folder in FOLDERS for path in (dataset / folder).glob(".*.tmp")]
    left += [
        p
        for f, suffix in ((SHARDS, "tar"), (INDEX, "parquet"))
        for p in (dataset / f).glob(f"*.{suffix}")
        if p.stem not in real
    ]
    for path in left:
        path.unlink(missing_ok=True)
    return sorted(path.relative_to(dataset).as_posix() for path in left)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys by rename: readers see all of it or none."""
    write_bytes(path, (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InputError: it is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "is not JSON"
        raise InputError(
            "a file of the dataset can be read", f"{path}: {what}", "restore it from a copy, or prepare anew"
        ) from error
    if not isinstance(value, dict):
        raise InputError("a file of the dataset is a JSON object", f"{path}", "restore it from a copy, or prepare anew")
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file by rename, flushed to disk first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        file.write(data)
        _flush(file)
    _publish(temporary, path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _publish(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must outlive a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """(offset, size) of each member's data, read back from the file that was written."""
    with tarfile.open(path, "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}
