"""One shard of clips becomes one shard of latents: the part of `encode` that is done for each.

rows --read, decode, in threads--> frames --codec--> moments --> samples --> tar --> rows --> previews --> commit
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data.containers.byte_ranges import Slices, digest_bytes
from data.dataset import index, latents_file, previews, shards
from data.dataset.index import Index
from data.dataset.latents_file import Dtype, Moments
from data.dataset.outcome import Rejection, Tally
from data.dataset.shards import PREVIEWS, Sample, digest_of, uid_of
from data.integrity.rebuild_index import Row, json_of
from data.media.video import Frames
from data.planning.clip_sampling import Sampling
from data.statistics.stats import tokens_of
from data.streams.shard_reader import ShardReader
from data.workers.prefetch import ahead
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

READERS, READ_AHEAD = 2, 4  # threads, and clips that wait for the codec
TOO_SMALL, SAME = "too small", "same clip"


class Encoder(Protocol):
    """A codec that tells the posterior of a clip."""

    @property
    def geometry(self) -> Geometry:
        """Its strides; a token is one latent cell."""

    @property
    def identity(self) -> str:
        """Of what it computes: other weights or settings, another identity."""

    @property
    def dtype(self) -> Dtype:
        """Of what it computes and of what is stored."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else decides its values."""

    def __call__(self, frames: Frames) -> Moments:
        """Mean and log-variance, float32 [2, t, channels, h, w], of uint8 frames [n, height, width, 3]."""


@dataclass(frozen=True)
class Source:
    """What is encoded.

    Attributes:
        dataset: the folder.
        index: of it.
        sampling: which frames of a clip, and of which size.
    """

    dataset: Path
    index: Index
    sampling: Sampling

    @cached_property
    def reader(self) -> ShardReader:
        """Of its frames."""
        return ShardReader(self.index, self.sampling)

    @cached_property
    def fills(self) -> npt.NDArray[np.bool_]:
        """[rows] whether a sample fills a latent."""
        return tokens_of(self.index.table, self.sampling) > 0

    @cached_property
    def stored(self) -> npt.NDArray[np.bool_]:
        """[rows] whether a sample is in the new dataset: text alone is carried over."""
        found: npt.NDArray[np.bool_] = self.fills | (self.index.frames == 0)
        return found

    def why_not(self, row: int) -> Rejection:
        """Why a clip does not fill a latent."""
        found, geometry = self.index, self.sampling.geometry
        size = f"{found.frames[row]} frames of {found.height[row]} x {found.width[row]}"
        cell = f"{geometry.frames_per_token} of {geometry.stride[1]} x {geometry.stride[2]}"
        rows = f"{found.table['start'][row]}:{found.table['stop'][row]}"
        return Rejection(found.file(row), "filter", TOO_SMALL, f"{size}; a latent takes {cell}", rows, 1)


@dataclass(frozen=True)
class SourceShard:
    """A shard of the source: its id, and its rows [start, stop) of the index."""

    id: str
    start: int
    stop: int


@dataclass
class Written:
    """What a shard got: `frames_cut` are those of its clips that are not in latents."""

    clips: int = 0
    texts: int = 0
    frames: int = 0
    frames_cut: int = 0
    bytes: int = 0
    rejected: tuple[Rejection, ...] = ()


class UnreadableError(Exception):
    """A clip cannot be read, so its shard is not written; `reason` says why."""

    def __init__(self, reason: InputError) -> None:
        super().__init__(reason.value)
        self.reason = reason


def write(
    source: Source,
    shard: SourceShard,
    out: Path,
    config: Mapping[str, Any],
    encoder: Encoder,
    on_sample: Callable[[int], None],
) -> Written:
    """The transaction: tar, rows, previews, commit.

    Args:
        source: of the clips.
        shard: of the source; something of it is stored.
        out: the new dataset, shared or held by this process; no other process makes this shard.
        config: the options that decide the bytes.
        encoder: from frames to latents.
        on_sample: called after each sample, with how many of the shard are done.

    Raises:
        UnreadableError: a clip cannot be read.
        InputError: latents are no finite numbers.
    """
    batch, shard_id = _Batch(source, shard, encoder), id_of(config, shard)
    written = shards.write_shard(out, shard_id, batch.samples(on_sample))
    assert written is not None, f"nothing of {shard} is stored"
    for row, parts in zip(batch.rows, written.parts, strict=True):
        row["shard"] = written.path
        for suffix, part in parts.items():
            which = "json" if suffix == "json" else "media"
            row.update({f"{which}_offset": part.offset, f"{which}_size": part.size, f"{which}_hash": part.hash})
    rows = index.write_rows(out, shard_id, batch.rows)
    if any(batch.strips):
        for number, sheet in enumerate(previews.sheets(batch.strips)):
            shards.write_bytes(out / PREVIEWS / previews.sheet_name(shard_id, number), sheet)
    record = {"config": config, "source": shard.id, **batch.record(), "index": rows}
    shards.commit(out, shard_id, {**record, "size": written.size, "hash": written.hash})
    batch.written.bytes = written.size
    batch.written.rejected = tuple(chain.from_iterable(batch.rejected.values()))
    return batch.written


def id_of(config: Mapping[str, Any], shard: SourceShard) -> str:
    """The id of what a shard of the source becomes."""
    return digest_of(config, shard.id)


class _Batch:
    """The samples of one shard as they come, and what its commit says of them."""

    def __init__(self, source: Source, shard: SourceShard, encoder: Encoder) -> None:
        self.source, self.shard, self.encoder = source, shard, encoder
        self.written = Written()
        self.rows: list[Row] = []
        self.strips: list[bytes | None] = []
        self.rejected: dict[str, list[Rejection]] = {}  # by source file, of all files
        self._draws = (source.dataset / PREVIEWS / previews.sheet_name(shard.id, 0)).exists()

    def samples(self, on_sample: Callable[[int], None]) -> Iterator[Sample]:
        """Every sample of the shard, encoded when its turn comes.

        Raises:
            UnreadableError: a clip cannot be read.
            InputError: latents are no finite numbers.
        """
        source, shard = self.source, self.shard
        numbers = range(shard.start, shard.stop)
        rows = source.index.table.slice(shard.start, len(numbers)).to_pylist()
        clips = ahead(self._read, [number for number in numbers if source.fills[number]], READERS, READ_AHEAD)
        for done, (number, row) in enumerate(zip(numbers, rows, strict=True), 1):
            self.rejected.setdefault(row["file"], [])
            if source.fills[number]:
                yield from self._encoded(row, next(clips))
            elif source.stored[number]:
                yield self._carried(row)
            else:
                self.rejected[row["file"]].append(source.why_not(number))
            on_sample(done)

    def record(self) -> dict[str, Any]:
        """What the commit says of the samples, by source file."""
        kept = Counter(row["file"] for row in self.rows)
        tally = Tally(len(self.rejected), self.shard.stop - self.shard.start, len(self.rows))
        for one in chain.from_iterable(self.rejected.values()):
            tally.reject(one)
        inputs = [
            {"file": file, "kept": kept[file], "rejected": [one.as_json() for one in rejected]}
            for file, rejected in self.rejected.items()
        ]
        return {"inputs": inputs, "tally": tally.as_json()}

    def _read(self, number: int) -> Frames | InputError:
        used = self.source.sampling.frames_used(int(self.source.index.frames[number]))
        try:
            return self.source.reader.frames(number, 0, used)
        except InputError as error:
            return error

    def _carried(self, row: Row) -> Sample:
        """Text alone."""
        self.rows.append(row)
        self.strips.append(None)
        self.written.texts += 1
        return Sample(row["uid"], {"json": json_of(row)})

    def _encoded(self, row: Row, frames: Frames | InputError) -> Iterator[Sample]:
        """The sample of a clip, unless another of the shard has its id."""
        if isinstance(frames, InputError):
            raise UnreadableError(frames)
        moments, where = self.encoder(frames), f"{row['start']}:{row['stop']}"
        if not np.isfinite(moments).all():
            remedy = "encode with --dtype float32; if that is so, the codec's weights are damaged"
            raise InputError("latents are finite numbers", f"{row['file']}, rows {where}: some are not", remedy)
        data, slices = latents_file.encode(moments, self.encoder.dtype)
        made = _row(row, frames, data, slices)
        if any(other["uid"] == made["uid"] for other in self.rows):
            reason = "the same latents and captions as another clip"
            self.rejected[row["file"]].append(Rejection(row["file"], "duplicate", SAME, reason, where, 1))
            return
        self.rows.append(made)
        self.strips.append(_strip(frames) if self._draws else None)
        self.written.clips += 1
        self.written.frames += len(frames)
        self.written.frames_cut += row["frames"] - len(frames)
        yield Sample(made["uid"], {"json": json_of(made), latents_file.MEDIA: data})


def _row(row: Row, frames: Frames, data: bytes, slices: Slices) -> Row:
    """The index row of a clip, now that it is latents."""
    count, height, width, _ = frames.shape
    tables = {"slice_rows": slices.rows, "slice_offsets": slices.offsets, "slice_hashes": slices.hashes}
    sizes = {"media": latents_file.MEDIA, "frames": count, "height": height, "width": width}
    return {**row, **sizes, **tables, "uid": uid_of(digest_bytes(data), row["caption"], row["caption_long"])}


def _strip(frames: Frames) -> bytes:
    strip = previews.Strip()
    for frame in frames:
        strip.add(frame)
    return strip.jpeg()
