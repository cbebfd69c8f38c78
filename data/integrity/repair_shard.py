"""`repair_shard`: one shard becomes what its diagnosis says can be had: tar, then rows, then commit, each by rename.

The tar keeps its layout: what can be known is written again at its place, and a tar that is cut short ends after its
last whole sample. So rows of older generations stay right. Rows that come out as they were get their old file back;
others get a file beside it. A commit that was lost is made again, without the list of what went in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from data.containers.byte_ranges import digest_bytes
from data.dataset import index, shards
from data.dataset.lock import put_aside
from data.dataset.outcome import Rejection, Tally
from data.dataset.shards import COMMITS, INDEX, temporary_of
from data.dataset.tar_format import Member, ending, walk
from data.integrity.diagnosis import Diagnosis, Part
from data.integrity.expected_bytes import CHUNK, digest_range
from data.integrity.rebuild_index import OURS, position, told_by

Record = Mapping[str, Any]


def is_gone(one: Diagnosis) -> bool:
    """Whether nothing is left of a shard."""
    return not one.rows and not _is_unreadable(one)


def repair_shard(one: Diagnosis, commits: Mapping[str, Record]) -> Iterator[tuple[str, str]]:
    """Makes of a shard what can be had; yields (file, what was done to it).

    Args:
        one: what is wrong and what is whole; its losses are listed already.
        commits: all that can be trusted, to tell the options of a shard that lost its own.
    """
    job = one.job
    commit = job.dataset / COMMITS / f"{job.shard}.json"
    if _is_unreadable(one):
        return
    if is_gone(one):
        if commit.exists():
            yield f"{COMMITS}/{commit.name}", f"nothing of its shard is left; moved to {put_aside(job.dataset, commit)}"
        return
    tar = job.dataset / job.tar
    if one.patches or one.end is not None:
        size, digest = _write_again(one, tar)
        yield job.tar, "written again"
    else:
        with tar.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = digest_range(file.fileno(), 0, size)
    part, written = _write_rows(one)
    if written:
        yield part[0], "written again" if part == job.index else f"the rows that are left, beside {job.index[0]}"
    record = _record(one, part, size, digest, commits)
    if record != job.record:
        shards.commit(job.dataset, job.shard, record)
        yield f"{COMMITS}/{commit.name}", "written again"


def _is_unreadable(one: Diagnosis) -> bool:
    """The disk failed, or forbids it: nothing is known of the shard, so nothing is done to it."""
    return any(finding.kind == "unreadable" for finding in one.findings)


def _write_again(one: Diagnosis, tar: Path) -> tuple[int, str]:
    """The tar with its patches and its end: (size, BLAKE3)."""
    hasher, at, temporary = blake3(), 0, temporary_of(tar)
    with tar.open("rb") as old, temporary.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        stop = one.end if one.end is not None else min(size, one.job.size or size)

        def write(data: bytes) -> None:
            new.write(data)
            hasher.update(data)

        def copy(start: int, stop: int) -> None:
            while start < stop:
                data = os.pread(old.fileno(), min(CHUNK, stop - start), start)
                assert data, f"{tar}: no bytes at {start}, and nothing else tells them"
                write(data)
                start += len(data)

        for start, data in sorted(one.patches):
            copy(at, start)
            write(data)
            at = start + len(data)
        copy(at, stop)
        if one.end is not None:
            write(ending(stop))
        size = new.tell()
    shards.publish_file(temporary, tar)
    return size, str(hasher.hexdigest(length=16))


def _write_rows(one: Diagnosis) -> tuple[Part, bool]:
    """The part of the index with the rows that are left, and whether it had to be written."""
    job = one.job
    path, digest, number = index.write_rows(job.dataset, f"{job.shard}-new", one.rows)
    name = job.index[0] if digest == job.index[1] else f"{INDEX}/{job.shard}-{digest[:16]}.parquet"
    target = job.dataset / name
    if target.exists() and digest_bytes(target.read_bytes()) == digest:
        (job.dataset / path).unlink()
        return (name, digest, number), False
    (job.dataset / path).replace(target)
    shards.sync_folder(target.parent)
    return (name, digest, number), True


def _record(one: Diagnosis, part: Part, size: int, digest: str, commits: Mapping[str, Record]) -> dict[str, Any]:
    """The commit of what is left."""
    job = one.job
    record: dict[str, Any] = dict(job.record) if job.record is not None else _guessed(one, commits)
    imported = "import" in record["config"]
    if not imported and job.record is not None and "source" not in record:
        record |= _tried_again(record, {row["file"] for row, _ in one.lost if "file" in row})
    left_out = {*record.get("left_out", ()), *(position(row) for row, _ in one.lost)}
    left_out = {offset for offset in left_out if offset < size}
    if left_out:
        record["left_out"] = sorted(left_out)
    if imported and (job.record is None or job.record["hash"] != digest):
        record["damaged"] = True  # headers may be, so rows are judged by the hashes of their parts
    return {**record, "index": list(part), "size": size, "hash": digest}


def _tried_again(record: Record, files: set[str]) -> dict[str, Any]:
    """The entries of a commit that tell the next prepare to bring back what these files lost."""
    tally, inputs = Tally.from_json(record["tally"]), []
    for entry in record["inputs"]:
        if entry["file"] in files and not any(one.get("again") for one in entry["rejected"]):
            before = [Rejection.from_json(one) for one in entry["rejected"]]
            tally.readable -= 1  # it will be counted when it is read again
            tally.kept -= entry["kept"]
            tally.shots -= entry["kept"] + sum(one.clips for one in before)
            tally.clips.subtract({one.kind: one.clips for one in before})
            lost = Rejection(entry["file"], "read", "damaged shard", "a clip of it was lost in the dataset", again=True)
            entry = {**entry, "rejected": [*entry["rejected"], lost.as_json()]}
        inputs.append(entry)
    tally.clips = +tally.clips
    return {"inputs": inputs, "tally": tally.as_json()}


def _guessed(one: Diagnosis, commits: Mapping[str, Record]) -> dict[str, Any]:
    """A commit for a shard that lost its own: what went in is not known, and prepared again it comes out as there."""
    job = one.job
    with (job.dataset / job.tar).open("rb") as file:
        ours = any(isinstance(entry, Member) and OURS.fullmatch(entry.name) for entry in walk(file.fileno()))
    alike = (r["config"] for r in commits.values() if ("import" in r["config"]) != ours)
    config = next(alike, {} if ours else {"import": 0, "allow_missing_captions": True})
    tally = Tally(len({row["file"] for row in one.rows}), len(one.rows), len(one.rows))
    record: dict[str, Any] = {"config": config, "inputs": [], "tally": tally.as_json(), "left_out": []}
    told = told_by(job.dataset, job.shard, record)
    known = {position(row) for row in one.rows}
    there = [*map(position, told.rows), *(wrong.offset for wrong in told.wrong)]
    return {**record, "left_out": [offset for offset in there if offset not in known]}
