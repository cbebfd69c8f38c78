"""`told_by`: the index rows of a shard from its tar alone, so that an index can be checked and made again.

In a shard that we wrote, `<uid>.json` holds all facts of a sample, and the tar says where its parts lie. Of an imported
shard the rows are made as the import made them, from the media themselves. Reads and hashes the whole tar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.containers.byte_ranges import digest_bytes
from data.dataset import tar_format
from data.dataset.index import ADDED, FACTS, SCHEMA
from data.dataset.shards import SHARDS, uid_of
from data.dataset.tar_format import Damage, Member
from data.sources.webdataset import contents
from data.sources.webdataset_rows import SEVERAL, read_part, read_sample, slices_of_media
from parallel.errors import InputError
from parallel.parsing import parse_json

Row = dict[str, Any]  # columns of SCHEMA, as Parquet gives them back
BAD_TYPES = (pa.ArrowException, TypeError)
OURS = re.compile(r"([0-9a-f]{32})\.([a-z0-9]+)")  # names of members that we wrote


@dataclass(frozen=True)
class Wrong:
    """A sample that the tar does not give: where it begins, its id, the part and the reason."""

    offset: int
    sample: str
    part: str
    reason: str


@dataclass(frozen=True)
class Told:
    """What a tar says.

    Attributes:
        rows: of its samples, in their order.
        wrong: samples that have no row.
        damage: of the tar itself.
    """

    rows: tuple[Row, ...]
    wrong: tuple[Wrong, ...]
    damage: tuple[Damage, ...]


def told_by(dataset: Path, shard_id: str, record: Mapping[str, Any] | None) -> Told:
    """The rows of a shard.

    Args:
        dataset: the folder.
        shard_id: of the shard.
        record: its commit; without it the tar must be one that we wrote.

    Raises:
        OSError: the tar cannot be read.
    """
    tar = dataset / SHARDS / f"{shard_id}.tar"
    left_out = frozenset(record.get("left_out", ())) if record else frozenset()
    if record is not None and "import" in record["config"]:
        return _imported(tar, shard_id, record, left_out)
    return _ours(tar, shard_id, left_out)


def position(row: Mapping[str, Any]) -> int:
    """Where in its tar a sample is; no two have the same."""
    return int(row["media_offset"] if row["media"] else row["json_offset"])


def as_stored(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows as they come back from Parquet: 32-bit floats rounded, tuples as lists.

    Raises:
        pyarrow.ArrowException, TypeError: a column has another type.
    """
    stored: list[Row] = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA).to_pylist()
    return stored


def json_of(row: Mapping[str, Any]) -> bytes:
    """`<uid>.json` of a row."""
    facts = {"uid": row["uid"], **{name: row[name] for name in FACTS if name not in ADDED or row[name] is not None}}
    return (json.dumps(facts, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _ours(tar: Path, shard_id: str, left_out: frozenset[int]) -> Told:
    rows: list[Row] = []
    wrong: list[Wrong] = []
    with tar.open("rb") as file:
        found = list(tar_format.walk(file.fileno()))
        for uid, parts in _samples(found):
            first = min(member.offset for member in parts.values())
            if left_out & {member.offset for member in parts.values()}:
                continue
            try:
                rows.append(_row(file.fileno(), uid, parts, shard_id))
            except (InputError, ValueError) as error:
                reason = error.value if isinstance(error, InputError) else str(error)
                wrong.append(Wrong(first, uid, "json", reason))
    others = [m for m in found if isinstance(m, Member) and not OURS.fullmatch(m.name)]
    wrong += [Wrong(m.offset, "", m.name, "a member that we did not write") for m in others]
    damage = tuple(entry for entry in found if isinstance(entry, Damage))
    try:
        return Told(tuple(as_stored(rows)), tuple(wrong), damage)
    except BAD_TYPES:  # one row has a fact of another type: which?
        good = []
        for row in rows:
            try:
                good += as_stored([row])
            except BAD_TYPES as error:
                wrong.append(Wrong(row["json_offset"], row["uid"], "json", str(error)))
        return Told(tuple(good), tuple(wrong), damage)


def _samples(found: Iterable[Member | Damage]) -> Iterator[tuple[str, dict[str, Member]]]:
    """(uid, members by suffix) of neighbours."""
    uid, parts = "", dict[str, Member]()
    for entry in found:
        name = OURS.fullmatch(entry.name) if isinstance(entry, Member) else None
        if name is None or not isinstance(entry, Member):
            continue
        if name[1] != uid and parts:
            yield uid, parts
            parts = {}
        uid = name[1]
        parts[name[2]] = entry
    if parts:
        yield uid, parts


def _row(file: int, uid: str, parts: Mapping[str, Member], shard_id: str) -> Row:
    """Raises ValueError or InputError where the sample is not one of ours."""
    if "json" not in parts:
        raise ValueError("it has no json part")
    words = read_part(file, parts["json"])
    facts = parse_json(words)
    if not isinstance(facts, dict) or facts.get("uid") != uid or facts.keys() | set(ADDED) != {"uid", *FACTS}:
        raise ValueError("its json part is not that of this sample")
    suffix = facts["media"]
    if set(parts) != {"json", suffix} - {""}:
        raise ValueError(f"it has the parts {', '.join(sorted(parts))}, its json part says json, {suffix}")
    row: Row = {**dict.fromkeys(ADDED), **facts, "shard": f"{SHARDS}/{shard_id}.tar"}
    row.update({"json_offset": parts["json"].offset, "json_size": len(words), "json_hash": digest_bytes(words)})
    row.update({"media_offset": 0, "media_size": 0, "media_hash": ""})
    slices = None
    if suffix:
        data = read_part(file, parts[suffix])
        row.update({"media_offset": parts[suffix].offset, "media_size": len(data), "media_hash": digest_bytes(data)})
        slices = slices_of_media(suffix, data)
    row["slice_rows"] = slices.rows if slices else ()
    row["slice_offsets"] = slices.offsets if slices else ()
    row["slice_hashes"] = slices.hashes if slices else ()
    return row


def speaks_for_itself(row: Mapping[str, Any]) -> bool:
    """Whether the id of a sample fits the bytes of its media and its captions."""
    return bool(row["uid"] == uid_of(row["media_hash"], row["caption"], row["caption_long"]))


def _imported(tar: Path, shard_id: str, record: Mapping[str, Any], left_out: frozenset[int]) -> Told:
    inside = contents(tar)
    name = record["inputs"][0]["file"] if record["inputs"] else tar.name
    need_caption = not record["config"]["allow_missing_captions"]
    rows: list[Row] = []
    wrong: list[Wrong] = []
    for candidate in inside.candidates:
        if candidate.offset in left_out:
            continue
        row = read_sample(tar, name, shard_id, candidate, need_caption)
        if isinstance(row, str):
            wrong.append(Wrong(candidate.offset, candidate.key, candidate.suffix, row))
        else:
            row.pop(SEVERAL, None)
            rows.append(row)
    return Told(tuple(as_stored(rows)), tuple(wrong), inside.damage)
