"""`check_shard`: one shard, its rows and its commit against each other, down to the byte that is wrong.

    tar as committed?  rows as committed?
        yes                yes             do the rows say what the tar says?          wrong row, missing row, ...
        yes                no              the tar tells the rows                      changed index
        no                 yes             the rows tell what every byte must be       changed header, cut sample, ...
        no                 no              a sample whose id fits its bytes is good    changed shard

The hash of the tar is that of its commit, the hash of the rows that of their commit or of the manifest. Costs reading
the tar once and hashing it twice.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from data.containers.byte_ranges import digest_bytes
from data.dataset.index import ADDED, OLDER, SCHEMA
from data.integrity.damage import compare_bytes, compare_parts, is_ours, salvage, tell_size
from data.integrity.diagnosis import Diagnosis, ShardJob
from data.integrity.expected_bytes import digest_range
from data.integrity.findings import LEAVE_OUT_BAD, LEAVE_OUT_UNDECODED, LOOK, REBUILD, Finding
from data.integrity.rebuild_index import Row, Told, told_by
from data.media import image, video
from parallel.errors import InputError


def findings_of(job: ShardJob) -> list[Finding]:
    """What is wrong with a shard; runs in a worker."""
    return check_shard(job).findings


def check_shard(job: ShardJob) -> Diagnosis:
    """Compares a shard with all that is known of it."""
    found = Diagnosis(job)
    rows, suspect = _rows(found)
    try:
        with (job.dataset / job.tar).open("rb") as file:
            _check_bytes(file.fileno(), rows, suspect, found)
            if job.decode:
                _decode(file.fileno(), found)
    except FileNotFoundError:
        remedy = "restore it from a copy; --repair leaves it out, and its source can be prepared again"
        found.tell("missing shard", f"with {job.index[2]} samples", remedy)
        found.lost = [(row, "its shard is missing") for row in rows or ()]
    except OSError as error:
        found.tell("unreadable", error.strerror or str(error), LOOK)
        found.rows = rows or []
    return found


def _rows(found: Diagnosis) -> tuple[list[Row] | None, list[Row] | None]:
    """(the rows of the index, None if they are not as they were written; rows that are not, to tell what is wrong)."""
    job = found.job
    path, digest, number = job.index
    try:
        data = (job.dataset / path).read_bytes()
    except FileNotFoundError:
        found.tell("missing index", f"with {number} rows", REBUILD, file=path)
        return None, None
    except OSError as error:
        found.tell("unreadable", error.strerror or str(error), LOOK, file=path)
        return None, None
    if job.deep and digest_bytes(data) != digest:
        found.tell("changed index", f"BLAKE3 {digest_bytes(data)}, the commit says {digest}", REBUILD, file=path)
        return None, _readable(data)
    there = _number(data)
    if there != number:
        found.tell("changed index", f"{there} rows, the commit says {number}", REBUILD, file=path)
        return None, None
    rows = _table(data, SCHEMA).to_pylist() if job.deep else None
    return rows, None


def _number(data: bytes) -> int:
    try:
        return int(pyarrow.parquet.read_metadata(io.BytesIO(data)).num_rows)
    except pa.ArrowException:
        return 0


def _table(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    return pyarrow.parquet.read_table(io.BytesIO(data), schema=schema, use_threads=False)  # files are small


def _readable(data: bytes) -> list[Row] | None:
    """Rows out of a file that was changed, if it still is one."""
    try:
        table = _table(data)
    except (pa.ArrowException, OSError):
        return None
    if table.schema.equals(OLDER):
        return [{**row, **dict.fromkeys(ADDED)} for row in table.to_pylist()]
    return table.to_pylist() if table.schema.equals(SCHEMA) else None


def _check_bytes(file: int, rows: list[Row] | None, suspect: list[Row] | None, found: Diagnosis) -> None:
    job, size = found.job, os.fstat(file).st_size
    if not job.deep:
        tell_size(size, job.size, found, "a deep check tells what is left of it")
        return
    whole = job.record is not None and size == job.size and digest_range(file, 0, size) == job.record["hash"]
    if whole and not (job.imported and job.damaged and rows is not None):
        _compare(told_by(job.dataset, job.shard, job.record), rows or suspect, found)
    elif rows is not None and not is_ours(file, rows, job):
        compare_parts(file, rows, found, whole)
    elif rows is not None:
        compare_bytes(file, rows, found)
    else:
        salvage(file, found)


def _compare(told: Told, rows: list[Row] | None, found: Diagnosis) -> None:
    """The tar is as it was written: what does the index make of it?"""
    found.rows = list(told.rows)
    for wrong in told.wrong:
        found.tell("bad sample", wrong.reason, LEAVE_OUT_BAD, wrong.sample, wrong.part)
        found.lose({"uid": wrong.sample, "media": "", "json_offset": wrong.offset}, wrong.reason)
    path = found.job.index[0]
    for row, true in _pairs(rows, told.rows) if rows is not None else ():
        if row is None and true is not None:
            found.tell("missing row", "the shard has it, the index has not", REBUILD, true["uid"], file=path)
        elif true is None and row is not None:
            found.tell("extra row", "the index has it, the shard has not", REBUILD, row["uid"], file=path)
        elif row is not None and true is not None:
            true = {**true, **{name: None for name in ADDED if row[name] is None}}  # an older index is no wrong one
            if row == true:
                continue
            columns = [name for name in SCHEMA.names if row[name] != true[name]]
            what = ", ".join(f"{name} is {_short(row[name])}, not {_short(true[name])}" for name in columns)
            found.tell("wrong row", what, REBUILD, true["uid"], ",".join(columns), path)


def _pairs(rows: Sequence[Row], told: Sequence[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """Rows of the index beside those that the tar tells: by their order, or if that cannot be by their ids."""
    if len(rows) == len(told):
        yield from zip(rows, told, strict=True)
        return
    by_uid = {row["uid"]: row for row in told}
    for row in rows:
        yield row, by_uid.pop(row["uid"], None)
    for row in by_uid.values():
        yield None, row


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _decode(file: int, found: Diagnosis) -> None:
    """Decodes what is whole so far; what does not give the stated frames is lost."""
    good = []
    for row in found.rows:
        reason = _why_not_decodable(file, row)
        if reason is None:
            good.append(row)
        else:
            found.tell("undecodable", reason, LEAVE_OUT_UNDECODED, row["uid"], row["media"])
            found.lose(row, reason)
    found.rows = good


def _why_not_decodable(file: int, row: Row) -> str | None:
    if not row["media"] or row["media"] == "npy":
        return None
    data = os.pread(file, row["media_size"], row["media_offset"])
    try:
        if row["media"] in image.SUFFIXES:
            shapes = [frame.shape for frame in image.decode(data)]
        else:
            shapes = [frame.shape for frame in video.stream_frames(data)]
    except InputError as error:
        return error.value
    except Exception as error:  # whatever a strange file provokes must not stop the check
        return f"{type(error).__name__}: {error}"
    expected = (row["height"], row["width"], 3)
    if len(shapes) != row["frames"]:
        return f"{len(shapes)} frames, the index says {row['frames']}"
    other = next((shape for shape in shapes if shape != expected), None)
    return f"a frame of {other[0]} x {other[1]}, the index says {expected[0]} x {expected[1]}" if other else None
