"""Reading tars: by index and pread against WebDataset's stream, of the same files, which lie in memory.

Both give the bytes of each sample's parts, undecoded. Ours takes the words from the index and reads the media part
where it lies, in any order, and compares it with its BLAKE3; WebDataset reads every header and every part, in the order
of the tar, through a buffer if it is to be shuffled, and compares nothing. So three comparisons: as each is used,
nobody verifying, and everybody verifying.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from benchmarks.data_measure import Row, compared, take_turns
from data.containers.byte_ranges import digest_bytes
from data.dataset import index, shards
from data.dataset.index import Index
from data.dataset.publish import publish
from data.dataset.shards import Sample, digest_of
from data.planning.clip_sampling import Sampling
from data.streams.shard_reader import ShardReader
from parallel.sequence.geometry import Geometry

SIZES = {100_000: 1600, 1_000_000: 240}  # bytes of a media part: samples
SHARDS = 4
SHUFFLED = 100  # samples of WebDataset's buffer
THREADS = 4
CAPTION = "a clip of nothing in particular, described in a sentence of usual length"
GOAL = 2.0


def measure(place: Path, rounds: int, scale: float = 1.0) -> list[Row]:
    """Rows of all sizes; `scale` is of the number of samples."""
    rows = []
    for size, count in SIZES.items():
        folder = place / f"tars-{size}"
        noise = np.random.default_rng(0)
        found = write_dataset(folder, [partial(noise.bytes, size)] * int(count * scale), SHARDS)
        rows += _compare(found, size, rounds)
    return rows


def _compare(index: Index, size: int, rounds: int) -> list[Row]:
    """The ways to read all samples, by samples per CPU-second."""
    in_order = list(range(len(index)))
    shuffled = random.Random(0).sample(in_order, len(index))
    tars = sorted(map(str, index.shards()))
    with ThreadPoolExecutor(THREADS) as threads:
        found = take_turns(
            {
                "ours in order": partial(_verified, index, in_order, map),
                "ours shuffled": partial(_verified, index, shuffled, map),
                "ours shuffled, threads": partial(_verified, index, shuffled, threads.map),
                "ours in order, unverified": partial(_unverified, index, in_order),
                "ours shuffled, unverified": partial(_unverified, index, shuffled),
                "webdataset in order": partial(_webdataset, tars, False, False),
                "webdataset shuffled": partial(_webdataset, tars, True, False),
                "webdataset in order, verified": partial(_webdataset, tars, False, True),
                "webdataset shuffled, verified": partial(_webdataset, tars, True, True),
            },
            rounds,
        )
    rows = []
    unit = "samples per CPU-second"
    name = f"{size // 1000} KB" if size < 10**6 else f"{size // 10**6} MB"
    for what, ours, peer in (
        ("we verify, shuffled", "ours shuffled", "webdataset shuffled"),
        ("we verify, in order", "ours in order", "webdataset in order"),
        ("nobody verifies, shuffled", "ours shuffled, unverified", "webdataset shuffled"),
        ("nobody verifies, in order", "ours in order, unverified", "webdataset in order"),
        ("both verify, shuffled", "ours shuffled", "webdataset shuffled, verified"),
        ("both verify, in order", "ours in order", "webdataset in order, verified"),
    ):
        row = compared("tars", f"{name}, {what}", unit, found, ours, peer, GOAL)
        rates = f"{row.ours * size / 1e6:,.0f} and {(row.peer or 0) * size / 1e6:,.0f} MB/s"
        rows.append(compared("tars", f"{name}, {what}", unit, found, ours, peer, GOAL, rates))
    what = f"{name}, we verify, shuffled, {THREADS} threads"
    rows.append(compared("tars", what, unit, found, "ours shuffled, threads", "webdataset shuffled"))
    return rows


def _verified(index: Index, order: Sequence[int], mapped: Callable[..., Iterable[int]]) -> int:
    """As training reads: index, pread, BLAKE3."""
    reader = ShardReader(index, Sampling(Geometry()))

    def read(row: int) -> int:
        part = index.part(row)
        assert index.caption(row)
        return len(reader._bytes(row, 0, part.size, (part.hash,)))

    assert sum(mapped(read, order)) >= len(order)
    reader.close()
    return len(order)


def _unverified(index: Index, order: Sequence[int]) -> int:
    """Index and pread alone."""
    files = {path: os.open(path, os.O_RDONLY) for path in index.shards()}
    for row in order:
        part = index.part(row)
        assert index.caption(row)
        assert len(os.pread(files[index.shard(row)], part.size, part.offset)) == part.size
    for file in files.values():
        os.close(file)
    return len(order)


def _webdataset(tars: list[str], shuffled: bool, verified: bool) -> int:
    """All samples of the tars once."""
    if shuffled:
        samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(SHUFFLED, seed=0)
    else:
        samples = webdataset.WebDataset(tars, shardshuffle=False)
    count = 0
    for sample in samples:
        assert sample["json"]
        if verified:
            digest_bytes(sample["mp4"])
        count += 1
    return count


def write_dataset(folder: Path, media: Sequence[Callable[[], bytes]], many: int, **facts: Any) -> Index:
    """A dataset of such media parts in so many shards, opened; `facts` are columns of the index."""
    each = -(-len(media) // many)
    for shard in range(many):
        rows: list[dict[str, Any]] = []

        def samples(first: int, rows: list[dict[str, Any]]) -> Iterator[Sample]:
            for number, make in enumerate(islice(media, first, first + each), first):
                rows.append(row_of(digest_of(number), number, facts))
                yield Sample(rows[-1]["uid"], {"json": shards.as_json({"caption": CAPTION}), "mp4": make()})

        name = digest_of("benchmark", shard)
        written = shards.write_shard(folder, name, samples(shard * each, rows))
        assert written is not None, "each shard has samples"
        for row, parts in zip(rows, written.parts, strict=True):
            row["shard"] = written.path
            for part, which in (("mp4", "media"), ("json", "json")):
                found = parts[part]
                row.update({f"{which}_offset": found.offset, f"{which}_size": found.size, f"{which}_hash": found.hash})
        inputs = [{"file": f"{shard:05d}"}]
        record = {"inputs": inputs, "index": index.write_rows(folder, name, rows)}
        shards.commit(folder, name, record)
    publish(folder, "benchmark")
    return Index.open(folder)


def row_of(uid: str, number: int, facts: dict[str, Any]) -> dict[str, Any]:
    """A row of the index without its places."""
    row: dict[str, Any] = dict.fromkeys(index.SCHEMA.names)
    row |= {"slice_rows": (), "slice_offsets": (), "slice_hashes": (), "frames": 1, "fps": 8.0, "height": 32}
    row |= {"uid": uid, "media": "mp4", "width": 32, "caption": CAPTION, "caption_long": "", "file": f"{number}.mp4"}
    return row | {"start": 0, "stop": 1} | facts
