"""Small datasets for tests, written as a prepare writes them but without one, and copied where they are damaged."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import webdataset

from data.containers import fragmented_mp4
from data.containers.byte_ranges import digest_bytes
from data.dataset import index, shards
from data.dataset.index import FACTS, Index
from data.dataset.outcome import Tally
from data.dataset.publish import publish
from data.dataset.shards import Sample, digest_of, uid_of
from data.media.h264 import encode
from data.synthetic.shapes import draw

CONFIG = {"format": 0}
SCORES = {"motion": 1.23, "sharpness": 4.5, "brightness": 0.1, "black": 0.0, "text": None, "phash": "00ff00ff00ff00ff"}


@cache
def clip(number: int, frames: int = 30, size: int = 16) -> bytes:
    """A clip of its own, in three slices."""
    colour = ("red", "green", "blue", "yellow")[number % 4]
    return encode(draw(colour, "square", "right", (0, number / 8 % 1, 0, 0), frames, size), Fraction(8))


def make(out: Path, groups: Sequence[Sequence[int]] = ((0, 1), (2, 3))) -> Path:
    """A dataset with a shard for each group of clip numbers, and one generation."""
    for group in groups:
        add(out, group)
    publish(out, digest_of(CONFIG))
    return out


def add(out: Path, group: Sequence[int]) -> str:
    """Writes and commits a shard; its id."""
    shard_id = digest_of(CONFIG, list(group))
    rows = [_row(number) for number in group]
    samples = [Sample(r["uid"], {"json": _json(r), "mp4": clip(n)}) for r, n in zip(rows, group, strict=True)]
    shard = shards.write_shard(out, shard_id, samples)
    assert shard is not None
    for row, parts in zip(rows, shard.parts, strict=True):
        row["shard"] = shard.path
        for suffix, part in parts.items():
            which = "json" if suffix == "json" else "media"
            row.update({f"{which}_offset": part.offset, f"{which}_size": part.size, f"{which}_hash": part.hash})
    known = {"version": "", "caption_long": "", "kept": 1, "rejected": []}
    inputs = [{"file": r["file"], "content": digest_of(r["uid"]), "caption": r["caption"], **known} for r in rows]
    tally = Tally(len(rows), len(rows), len(rows)).as_json()
    record = {"config": CONFIG, "inputs": inputs, "tally": tally, "index": index.write_rows(out, shard_id, rows)}
    shards.commit(out, shard_id, {**record, "size": shard.size, "hash": shard.hash})
    return shard_id


def _row(number: int) -> dict[str, Any]:
    data, caption = clip(number), f"clip {number}"
    slices = fragmented_mp4.slices(data)
    tables = {"slice_rows": slices.rows, "slice_offsets": slices.offsets, "slice_hashes": slices.hashes}
    facts = {"media": "mp4", "frames": 30, "fps": 8.0, "height": 16, "width": 16, "start": 0, "stop": 30}
    facts |= {"time_rows": (0,), "time_seconds": (0.0,)}
    words = {"caption": caption, "caption_long": "", "file": f"{number}.mp4"}
    return {"uid": uid_of(digest_bytes(data), caption), **facts, **words, **SCORES, **tables}


def _json(row: Mapping[str, Any]) -> bytes:
    facts = {"uid": row["uid"], **{name: row[name] for name in FACTS}}
    return (json.dumps(facts, sort_keys=True, ensure_ascii=False) + "\n").encode()


def tree(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file by its name, but for those in the folders `without`."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in without)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def copy(dataset: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(dataset, to))


def read_all(dataset: Path, digest: str | None = None) -> list[str]:
    """The uids of a generation, every part of every sample read and compared with its hash."""
    found = Index.open(dataset, digest)
    for row in range(len(found)):
        data = found.shard(row).read_bytes()
        for which in ("media", "json"):
            part = found.part(row, which)
            if not part.size:  # text alone, or a picture alone
                assert part.hash == ""
                continue
            assert digest_bytes(data[part.offset : part.offset + part.size]) == part.hash, f"{found.uid(row)} {which}"
    return [found.uid(row) for row in range(len(found))]


def webdataset_keys(tar: Path) -> list[str]:
    """The keys that WebDataset itself finds in a tar."""
    return [sample["__key__"] for sample in webdataset.WebDataset(str(tar), shardshuffle=False)]


def tar_of(members: Sequence[tuple[str, bytes]], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar as others make it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
