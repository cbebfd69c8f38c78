"""`encode`: the clips of a dataset become latents, once, in a dataset of the same form.

    dataset --shards of this part--> not done, not claimed --write, one after the other--> commits --> manifest

One shard of the source makes one shard, whose id is the digest of the source's, the codec and the options: so a rerun
knows what is done before it computes anything. The same machine and libraries give the same bytes again. Any number of
processes may work on one dataset, each on shards of its own (`data.dataset.shared_writers`); who finds all of them done
publishes.

Captions, scores and source rows are carried over, text alone as it is. A clip that does not fill one latent is rejected
with its reason. A shard with a clip that cannot be read is not written: mend the source, and run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import index, latents_file, manifest, shards
from data.dataset.index import Index
from data.dataset.lock import check_place
from data.dataset.outcome import Rejection
from data.dataset.publish import publish
from data.dataset.shards import COMMITS, digest_of
from data.dataset.shared_writers import claimed, shared, turn
from data.planning.clip_sampling import Sampling, Size
from data.prepare.latent_shard import Encoder, Source, SourceShard, UnreadableError, id_of, write
from parallel import shell
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

FORMAT = 1  # part of every shard id: raise it when the same clip would give other bytes


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode.

    Attributes:
        size: (height, width) to scale and crop to; None = as stored, cropped to whole latent cells.
        frames: at most so many of each clip, from its first; None for all.
        part: of `parts`, counted from 1: this process makes these shards alone.
    """

    size: Size | None = None
    frames: int | None = None
    part: int = 1
    parts: int = 1


@dataclass(frozen=True)
class EncodeProgress:
    """`done` of the `total` samples of this process, the last of them in `shard`."""

    done: int
    total: int
    shard: str


@dataclass
class EncodeSummary:
    """What a run did.

    Attributes:
        shards: written; `skipped` were there already, `left` are with other processes or still to do.
        clips, texts: written.
        frames: of these clips, encoded; `frames_cut` fill no latent, or are more than were asked for.
        bytes: written.
        rejected: clips of this part of the dataset, those of earlier runs included.
        twice: samples that another shard has too.
        generation: of the manifest, if this run published one.
        seconds: that it took.
    """

    shards: int = 0
    skipped: int = 0
    left: int = 0
    clips: int = 0
    texts: int = 0
    frames: int = 0
    frames_cut: int = 0
    bytes: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    twice: int = 0
    generation: int | None = None
    seconds: float = 0.0


def encode(
    dataset: Path,
    out: Path,
    encoder: Encoder,
    options: EncodeOptions | None = None,
    on_progress: Callable[[EncodeProgress], None] | None = None,
) -> EncodeSummary:
    """Makes a dataset of latents at `out`, or goes on with the one that is there.

    Args:
        dataset: of clips.
        out: the new one; made if absent.
        encoder: from frames to latents.
        options: see `EncodeOptions`.
        on_progress: called after each sample.

    Raises:
        InputError: no clips, none that fills a latent, clips that cannot be read, latents that are no finite numbers;
            `out` is something else, in use, or was made with other options.
    """
    began = time.monotonic()
    options = options or EncodeOptions()
    _check(options, encoder.geometry)
    source = open_source(dataset, Sampling(encoder.geometry, options.frames, options.size))
    check_place(out)
    if out.exists() and out.samefile(dataset):
        raise InputError("latents are a dataset of their own", f"{out} is the source", "give another --out")
    work = _Work(source, out, encoder, options, on_progress)
    with shared(out, lambda: shards.sweep(out)):
        work.check_config()
        for shard in work.mine:
            work.do(shard)
        shards.quarantine(out, (one.as_json() for one in work.summary.rejected))
        work.refuse_unreadable()
        with turn(out):
            work.finish()
    work.summary.seconds = time.monotonic() - began
    return work.summary


def open_source(dataset: Path, sampling: Sampling) -> Source:
    """A dataset that can be encoded.

    Raises:
        InputError: it holds latents, no clips, or none that fills a latent.
    """
    source = Source(dataset, Index.open(dataset), sampling)
    if latents_file.are_latents(source.index).any():
        raise InputError("a dataset to encode has frames", f"{dataset} holds latents", "give the one it was made of")
    clips = np.flatnonzero(source.index.frames)
    if not len(clips):
        raise InputError("a dataset to encode has clips", f"{dataset}: text alone", "prepare videos or images")
    if not source.fills.any():
        first = source.why_not(int(clips[0]))
        found = f"none of {len(clips)} does; {first.file}: {first.reason}"
        raise InputError("a clip fills a latent", found, "prepare longer or larger clips, or give a larger --size")
    return source


class _Work:
    """Encodes one shard of a dataset after the other."""

    def __init__(
        self,
        source: Source,
        out: Path,
        encoder: Encoder,
        options: EncodeOptions,
        on_progress: Callable[[EncodeProgress], None] | None,
    ) -> None:
        self.source, self.out, self.encoder, self.on_progress = source, out, encoder, on_progress
        self.config: dict[str, Any] = {"encode": FORMAT, "codec": encoder.identity, "dtype": encoder.dtype}
        size = list(options.size) if options.size else None
        self.config |= {**encoder.settings, "size": size, "frames": options.frames}
        made = manifest.latest(source.dataset, source.index.digest)
        assert made is not None, "an index has a manifest"
        bounds = pairwise(accumulate((rows for _, _, rows in made.index), initial=0))
        shards_ = [SourceShard(name, *rows) for name, rows in zip(made.shards, bounds, strict=True)]
        self.mine = shards_[options.part - 1 :: options.parts]
        self.wanted = [id_of(self.config, shard) for shard in shards_ if self._is_wanted(shard)]
        self.summary = EncodeSummary()
        self.unreadable: list[InputError] = []
        self.done, self.total = 0, sum(shard.stop - shard.start for shard in self.mine)

    def check_config(self) -> None:
        """All shards of a dataset are made alike."""
        for record in shards.commits(self.out).values():
            made = record["config"]
            names = [name for name in sorted({*made, *self.config}) if made.get(name) != self.config.get(name)]
            if names:
                told = ", ".join(f"{name} {made.get(name)} (now {self.config.get(name)})" for name in names)
                rule = "a dataset of latents is made by one codec with one set of options"
                raise InputError(rule, f"{self.out} was made with {told}", "give the same ones, or another --out")

    def do(self, shard: SourceShard) -> None:
        """Makes one shard, unless it is there, or another process makes it."""
        begin = self.done
        if not self._is_wanted(shard):
            self.summary.rejected += map(self.source.why_not, range(shard.start, shard.stop))
        elif not self._is_done(shard):
            with claimed(self.out, id_of(self.config, shard)) as mine:
                if mine and not self._is_done(shard):
                    self._write(shard)
        self._tell(shard, begin + shard.stop - shard.start)

    def refuse_unreadable(self) -> None:
        """Raises InputError if a clip could not be read: its whole shard is still to do."""
        if self.unreadable:
            found = f"{len(self.unreadable)} shards have one that cannot; {self.unreadable[0].value}"
            mend = shell.join(["longreel", "data", "check", str(self.source.dataset), "--repair"])
            remedy = f"{mend}, then this again: what is done stays"
            raise InputError("every clip of a dataset can be read", found, remedy)

    def finish(self) -> None:
        """Publishes, if every shard is there."""
        there = {path.stem for path in (self.out / COMMITS).glob("*.json")}
        self.summary.left = len(set(self.wanted) - there)
        made = None if self.summary.left else publish(self.out, digest_of(self.config))
        if made is not None:
            self.summary.generation = made.generation
            self.summary.twice = _twice(self.out, [path for path, _, _ in made.index])

    def _is_wanted(self, shard: SourceShard) -> bool:
        return bool(self.source.stored[shard.start : shard.stop].any())

    def _is_done(self, shard: SourceShard) -> bool:
        path = self.out / COMMITS / f"{id_of(self.config, shard)}.json"
        if not path.exists():
            return False
        record = shards.unsealed(path, shards.read_json(path))
        self.summary.skipped += 1
        self.summary.rejected += [Rejection.from_json(one) for each in record["inputs"] for one in each["rejected"]]
        return True

    def _write(self, shard: SourceShard) -> None:
        begin, summary = self.done, self.summary
        try:
            written = write(
                self.source, shard, self.out, self.config, self.encoder, lambda done: self._tell(shard, begin + done)
            )
        except UnreadableError as error:
            self.unreadable.append(error.reason)
            return
        summary.shards += 1
        summary.clips += written.clips
        summary.texts += written.texts
        summary.frames += written.frames
        summary.frames_cut += written.frames_cut
        summary.bytes += written.bytes
        summary.rejected += written.rejected

    def _tell(self, shard: SourceShard, done: int) -> None:
        self.done = done
        if self.on_progress:
            self.on_progress(EncodeProgress(done, self.total, shard.id))


def _twice(out: Path, parts: Sequence[str]) -> int:
    """How many samples have the id of another; the first half of an id tells it."""
    found = [np.array([int(uid[:16], 16) for uid in index.read_uids(out, path)], np.uint64) for path in parts]
    words = np.sort(np.concatenate(found))
    return int((words[1:] == words[:-1]).sum())


def _check(options: EncodeOptions, geometry: Geometry) -> None:
    if not 1 <= options.part <= options.parts:
        found = f"--part {options.part}/{options.parts}"
        raise InputError("a part is i/n, i from 1 to n", found, f"--part 1/{max(1, options.parts)}")
    if options.frames is not None and not geometry.usable_frames(options.frames):
        least = geometry.frames_per_token
        raise InputError(f"a latent takes at least {least} frames", f"--frames {options.frames}", f"--frames {least}")
    if options.size is not None:
        geometry.grid(geometry.frames_per_token, *options.size)
