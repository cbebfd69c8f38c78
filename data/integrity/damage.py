"""Where a damaged shard is damaged, and what of it can be saved.

Everything but the data of media can be written again: headers, padding and end blocks follow from the rows, and so does
`<uid>.json`, which its hash proves. A media part that does not fit its hash is lost, and its sample with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data.containers.byte_ranges import digest_bytes
from data.dataset import index, tar_format
from data.dataset.index import SCHEMA
from data.dataset.tar_format import Damage
from data.integrity.diagnosis import Diagnosis, ShardJob
from data.integrity.expected_bytes import CHUNK, Stretch, begin, digest_range, is_as_expected, layout, parts
from data.integrity.findings import ACCEPT, LEAVE_OUT, RESTORE, Kind
from data.integrity.rebuild_index import Row, json_of, speaks_for_itself, told_by
from data.media import image, video
from parallel.errors import InputError

FLOATS = tuple(field.name for field in SCHEMA if str(field.type) == "float")  # 32 bits; JSON has more digits


def tell_size(size: int, known: int | None, found: Diagnosis, remedy: str) -> None:
    """Whether the tar has as many bytes as it must."""
    if known is not None and size < known:
        found.tell("short shard", f"{size} of {known} bytes", remedy)
    elif known is not None and size > known:
        found.tell("long shard", f"{size - known} bytes more than {known}", remedy)


def is_ours(file: int, rows: list[Row], job: ShardJob) -> bool:
    """Whether we wrote the tar: its commit says it, else any header that must then be in it."""
    if job.record is not None:
        return not job.imported
    return any(s.what == "header" and is_as_expected(file, s) for s in layout(rows))


def compare_bytes(file: int, rows: list[Row], found: Diagnosis) -> None:
    """A tar of ours is not as it was written, or nobody knows: the rows are right and tell what every byte must be."""
    size, used = os.fstat(file).st_size, _used(file)
    by_uid = {row["uid"]: row for row in rows}
    # of samples that were left out before, nothing tells the bytes, nor where the tar ends behind them
    holes = bool((found.job.record or {}).get("left_out"))
    stretches = [s for s in layout(rows) if not (holes and s.what == "end")]
    known = found.job.size if holes else stretches[-1].stop
    again = {s: _again(s, by_uid) for s in stretches if not is_as_expected(file, s)}
    lost = {s.sample: s for s, data in again.items() if data is None}
    cut = [by_uid[uid] for uid, s in lost.items() if s.stop > size or begin(by_uid[uid]) >= used]
    stop = min(map(begin, cut), default=size)
    if cut:  # the tar ends before the first sample that is cut off, whatever could be written behind it
        lost.update({s.sample: s for s in again if s.start >= stop and s.sample})
    tell_size(size, known, found, LEAVE_OUT if cut else RESTORE)
    for s, data in again.items():
        if s.stop <= min(size, stop):
            found.tell(_KINDS[s.what], _where(file, s, by_uid), RESTORE if data else LEAVE_OUT, s.sample, s.part)
    for uid, s in lost.items():
        if s.stop > min(size, stop):
            found.tell("cut sample", f"bytes {s.start} to {s.stop} of {min(size, used)}", LEAVE_OUT, uid, s.part)
        found.lose(by_uid[uid], "cut off" if s.stop > min(size, stop) else "changed bytes")
    if found.job.record is not None and not again and size == found.job.size:
        found.tell("changed shard", "outside of its samples", ACCEPT)
    found.rows = [row for row in rows if row["uid"] not in lost]
    if cut:
        found.end = stop
    elif size != known or any(s.what == "end" for s in again):
        found.end = max((s.stop for s in stretches), default=None) if holes else stretches[-1].start
    kept = found.end if found.end is not None else size
    found.patches = [(s.start, data) for s, data in again.items() if data is not None and s.start < kept]


def _used(file: int) -> int:
    """Bytes up to the last one that is not 0: behind them a tar has at most padding and end blocks."""
    at = os.fstat(file).st_size
    while at > 0:
        start = max(0, at - CHUNK)
        data = os.pread(file, at - start, start).rstrip(b"\0")
        if data:
            return start + len(data)
        at = start
    return 0


_KINDS: dict[str, Kind] = {
    "header": "changed header",
    "data": "changed data",
    "padding": "changed padding",
    "end": "changed end",
}


def _again(stretch: Stretch, by_uid: Mapping[str, Row]) -> bytes | None:
    """The bytes that must be there, if they can be known."""
    if isinstance(stretch.expected, bytes):
        return stretch.expected
    if stretch.part != "json":
        return None
    row = by_uid[stretch.sample]
    exact = {**row, **{name: float(str(np.float32(row[name]))) for name in FLOATS if row[name] is not None}}
    return next((d for d in (json_of(row), json_of(exact)) if digest_bytes(d) == stretch.expected), None)


def _where(file: int, stretch: Stretch, by_uid: Mapping[str, Row]) -> str:
    """Which bytes, and of a part in slices, which frames."""
    text = f"bytes {stretch.start} to {stretch.stop}"
    row = by_uid.get(stretch.sample)
    if row is None or stretch.what != "data" or stretch.part != row["media"] or not row["slice_rows"]:
        return text
    ends, firsts = [0, *row["slice_offsets"]], [*row["slice_rows"], row["frames"]]
    changed = [
        number
        for number, digest in enumerate(row["slice_hashes"])
        if digest_range(file, stretch.start + ends[number], stretch.start + ends[number + 1]) != digest
    ]
    frames = [f"{firsts[n - 1]} to {firsts[n]}" if n else "all (its header)" for n in changed]
    return f"{text}, frames {', '.join(frames)}" if frames else text


def compare_parts(file: int, rows: list[Row], found: Diagnosis, whole: bool) -> None:
    """A tar of others is not as it was imported: the rows are right and tell what the bytes of samples must be."""
    size = os.fstat(file).st_size
    for row in rows:
        bad = next((p for p in parts(row) if digest_range(file, p[1], p[1] + p[2]) != p[3]), None)
        if bad is None:
            found.rows.append(row)
            continue
        part, offset, length, _ = bad
        kind: Kind = "cut sample" if offset + length > size else "changed data"
        found.tell(kind, f"bytes {offset} to {offset + length} of {size}", LEAVE_OUT, row["uid"], part)
        found.lose(row, "cut off" if kind == "cut sample" else "changed bytes")
    if whole:
        return
    tell_size(size, found.job.size, found, LEAVE_OUT if found.lost else ACCEPT)
    damage = [entry for entry in tar_format.walk(file) if isinstance(entry, Damage) and entry.kind == "header"]
    for entry in damage:
        found.tell("changed header", f"bytes {entry.start} to {entry.stop}: {entry.reason}", ACCEPT)
    if not damage and not found.lost and size == found.job.size:
        found.tell("changed shard", "outside of its samples", ACCEPT)


def salvage(file: int, found: Diagnosis) -> None:
    """Neither the tar nor its rows are as they were written: what proves itself is good."""
    job = found.job
    if job.imported:
        remedy = "restore the shard or the index from a copy; --repair leaves the shard out"
        found.tell("changed shard", "and without its index nothing tells which samples are whole", remedy)
        return
    told = told_by(job.dataset, job.shard, job.record)
    if _digest(told.rows) == job.index[1]:  # the rows hold the hash of every part
        compare_bytes(file, list(told.rows), found)
        return
    tell_size(os.fstat(file).st_size, job.size, found, LEAVE_OUT)
    found.tell("changed shard", "its rows do not give the index that it had", LEAVE_OUT)
    for entry in told.damage:
        kind: Kind = "changed end" if entry.kind == "end" else "changed header"
        if entry.kind != "cut":
            found.tell(kind, f"bytes {entry.start} to {entry.stop}: {entry.reason}", LEAVE_OUT)
    for wrong in told.wrong:
        found.tell("bad sample", wrong.reason, LEAVE_OUT, wrong.sample, wrong.part)
        found.lose({"uid": wrong.sample, "media": "", "json_offset": wrong.offset}, wrong.reason)
    for row in told.rows:
        reason = "its id does not fit its bytes" if not speaks_for_itself(row) else _measured_otherwise(file, row)
        if reason is None:
            found.rows.append(row)
        else:
            found.tell("changed data", reason, LEAVE_OUT, row["uid"], row["media"])
            found.lose(row, reason)
    if any(entry.kind in ("cut", "end") for entry in told.damage):
        found.end = max((s.stop for s in layout(found.rows) if s.sample), default=None)


def _digest(rows: Sequence[Row]) -> str:
    """BLAKE3 of the part of an index with these rows."""
    with TemporaryDirectory() as folder:
        return index.write_rows(Path(folder), "rows", rows)[1]


def _measured_otherwise(file: int, row: Row) -> str | None:
    """What the media say against the row."""
    if row["media"] not in ("mp4", *image.SUFFIXES):
        return None
    data = os.pread(file, row["media_size"], row["media_offset"])
    try:
        if row["media"] in image.SUFFIXES:
            measured = image.decode(data).shape[:3]
        else:
            found = video.probe(data)
            measured = (found.frames, found.height, found.width)
    except InputError as error:
        return error.value
    except Exception as error:  # whatever a strange file provokes must not stop the check
        return f"{type(error).__name__}: {error}"
    said = (row["frames"], row["height"], row["width"])
    return None if measured == said else f"it has frames, height, width {measured}, its json part says {said}"
