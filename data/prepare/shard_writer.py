"""A group: the files that make one shard, and the transaction that makes them samples.

files --convert, in workers--> clips --near copies--> samples --> tar --> rows --> previews --> commit
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.captions.captions import LONG_CAPTION
from data.containers.byte_ranges import digest_bytes
from data.curation.clips import Clip
from data.curation.filters import NEAR_DUPLICATES, Filters
from data.curation.scores import Scores
from data.dataset import index, previews, shards
from data.dataset.outcome import Outcome, Rejection, Tally
from data.dataset.shards import PREVIEWS, Sample, digest_of, uid_of
from data.integrity.rebuild_index import json_of
from data.prepare.convert import Converted, Todo
from data.prepare.history import History
from data.remote.host_backoff import Hosts
from data.sources.files import NO_ANSWER, SourceFile
from data.workers.processes import Died, Lost, Pool, TimedOut, TooLarge

UNKNOWN_BYTES = 4 << 20  # that a file of unknown size counts for
SAME_CLIP, SAME_BYTES = "identical", "same bytes"
LOST = {Died: "worker died", TimedOut: "took too long", TooLarge: "too much memory"}
Result = Converted | Rejection | Lost[Todo]


def same_bytes(file: SourceFile, first: str, caption: str) -> Rejection:
    """Of a file whose bytes are those of another, which is used.

    Args:
        file: that is not used.
        first: name of the other.
        caption: digest of the captions of the other.
    """
    reason = f"same bytes as {first}"
    if digest_of(file.caption) == caption or not any(file.caption):
        return Rejection(file.name, "duplicate", SAME_BYTES, reason)
    remedy = f"if its words are the right ones, give them to {first} and prepare into a new folder; else take it out"
    return Rejection(file.name, "duplicate", SAME_BYTES, f"{reason}; its words differ and are not used", remedy=remedy)


def into_groups(todo: Iterable[Todo], most_bytes: int, most_files: int) -> Iterator[list[Todo]]:
    """Runs of files, each enough for one shard; where they are cut does not depend on later files."""
    group: list[Todo] = []
    size = 0
    for item in todo:
        group.append(item)
        size += UNKNOWN_BYTES if item.file.place.size is None else item.file.place.size
        if size >= most_bytes or len(group) >= most_files:
            yield group
            group, size = [], 0
    if group:
        yield group


def converted(
    groups: Iterable[list[Todo]], work: Callable[[Todo], Any], pool: Pool
) -> Iterator[tuple[list[Todo], Iterator[Result]]]:
    """Each group with what `work` makes of its files, in their order; workers go on into later groups meanwhile.

    The results of a group must be taken before the next group is asked for.
    """
    begun: deque[list[Todo]] = deque()
    hosts = Hosts()

    def jobs() -> Iterator[Todo]:
        for group in groups:
            begun.append(group)
            for item in group:
                where = item.file.place
                yield item if where.local else replace(item, tries=hosts.tries(where.where, item.tries))

    def noted(group: list[Todo], first: Result, others: Iterator[Result]) -> Iterator[Result]:
        for item, result in zip(group, chain([first], others), strict=True):
            if not item.file.place.local and not isinstance(result, Lost):
                silent = isinstance(result, Rejection) and result.kind == NO_ANSWER
                hosts.note(item.file.place.where, not silent)
            yield result

    results = pool.map(work, jobs())
    for first in results:
        group = begun.popleft()
        yield group, noted(group, first, islice(results, len(group) - 1))


@dataclass(frozen=True)
class Writer:
    """Writes groups into one dataset.

    Attributes:
        dataset: the folder, held by this process.
        config: the options that decide the bytes; part of a shard's id.
        filters: for near copies.
        history: what is there; grows.
        outcome: grows.
        on_file: called after each file with its name.
    """

    dataset: Path
    config: Mapping[str, Any]
    filters: Filters
    history: History
    outcome: Outcome
    on_file: Callable[[str], None]

    def write(self, group: Sequence[Todo], results: Iterable[Result]) -> None:
        """Writes one shard with its rows and previews and commits it; a group without a sample leaves nothing behind.

        Args:
            group: the files.
            results: of `convert`, in the same order; taken one at a time.
        """
        files = [(item.file.name, item.identity, item.file.caption) for item in group]
        shard_id = shards.free_id(self.dataset, digest_of(self.config, files))  # one may be lost and on record
        batch = _Batch(self)
        shard = shards.write_shard(self.dataset, shard_id, batch.samples(group, results))
        if shard is None:
            return
        for row, parts in zip(batch.rows, shard.parts, strict=True):
            row["shard"] = shard.path
            for suffix, part in parts.items():
                which = "json" if suffix == "json" else "media"
                row.update({f"{which}_offset": part.offset, f"{which}_size": part.size, f"{which}_hash": part.hash})
        written = index.write_rows(self.dataset, shard_id, batch.rows)
        if any(batch.strips):
            for number, sheet in enumerate(previews.sheets(batch.strips)):
                shards.write_bytes(self.dataset / PREVIEWS / previews.sheet_name(shard_id, number), sheet)
        record = {"config": self.config, "inputs": batch.inputs, "tally": batch.tally.as_json(), "index": written}
        shards.commit(self.dataset, shard_id, {**record, "size": shard.size, "hash": shard.hash})
        self.outcome.shards += 1
        self.outcome.bytes += shard.size


class _Batch:
    """The samples of one group as they come, and what a commit says of them."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.rows: list[dict[str, Any]] = []
        self.strips: list[bytes | None] = []
        self.inputs: list[dict[str, Any]] = []
        self.tally = Tally()  # without what is tried again: another commit may count it

    def samples(self, group: Sequence[Todo], results: Iterable[Result]) -> Iterator[Sample]:
        """The samples of the group, each file judged when its turn comes."""
        for item, result in zip(group, results, strict=True):
            content, kept, rejected = self._judged(item, result)
            self._count(item, result, kept, rejected)
            known = {"file": item.file.name, "version": item.file.place.version, "content": content}
            words = {"caption": item.file.caption.short, "caption_long": item.file.caption.long}
            said = [one.as_json() for one in rejected]
            self.inputs.append({**known, **words, "kept": len(kept), "rejected": said})
            for uid, clip in kept.items():
                self.rows.append(_row(uid, item, clip))
                self.strips.append(clip.preview)
                yield Sample(uid, {"json": json_of(self.rows[-1]), clip.media: clip.data})
            self.writer.on_file(item.file.name)

    def _count(self, item: Todo, result: Result, kept: Mapping[str, Clip], rejected: Sequence[Rejection]) -> None:
        own, outcome = Tally(kept=len(kept)), self.writer.outcome
        if isinstance(result, Converted) and not any(one.clips == 0 for one in rejected):
            own.readable, own.shots = 1, result.shots
        for one in rejected:
            own.reject(one)
            outcome.rejected.append((item.number, one))
        outcome.tally.add(own)
        outcome.frames += sum(clip.frames for clip in kept.values())
        size = max(len(text.encode("utf-8", "replace")) for text in item.file.caption)
        if kept and size > LONG_CAPTION:
            outcome.long.append((size, item.file.name))
        if len(kept) > 1 and item.file.caption.short:
            outcome.shared.append(len(kept))
        if kept and isinstance(result, Converted) and result.streams > 1:
            outcome.several.append(item.file.name)
        if isinstance(result, Converted) and result.headless:
            outcome.headless.append(f"{item.file.name} ({result.headless:,})")
        if not any(one.again for one in rejected):
            self.tally.add(own)

    def _judged(self, item: Todo, result: Result) -> tuple[str, dict[str, Clip], list[Rejection]]:
        """The digest of a file's bytes, its new clips by uid, and why others are not kept."""
        name = item.file.name
        if isinstance(result, Lost):
            return "", {}, [Rejection(name, "read", LOST[type(result)], result.reason, again=True)]
        if isinstance(result, Rejection):
            return item.content, {}, [result]
        history = self.writer.history
        twin = history.twin(result.content)
        if twin is not None:
            return result.content, {}, [same_bytes(item.file, *twin)]
        history.new[result.content] = name, digest_of(item.file.caption)
        kept, rejected = self._new_clips(item, result)
        return result.content, kept, [*result.rejected, *rejected]

    def _new_clips(self, item: Todo, result: Converted) -> tuple[dict[str, Clip], list[Rejection]]:
        history, filters, words = self.writer.history, self.writer.filters, item.file.caption
        kept: dict[str, Clip] = {}
        rejected = []
        for clip in result.clips:
            uid, rows = uid_of(digest_bytes(clip.data), words.short, words.long), f"{clip.start}:{clip.stop}"
            if uid in history.uids:
                reason = "the same as another clip, caption included"
                rejected.append(Rejection(item.file.name, "duplicate", SAME_CLIP, reason, rows, 1))
                continue
            if filters.near_duplicates is not None and clip.scores is not None:
                near = history.seen.near(clip.scores.phash, filters.near_duplicates)
                if near is not None:
                    reason = f"nearly the same picture as {near}, within {filters.near_duplicates} bits"
                    rejected.append(Rejection(item.file.name, "duplicate", NEAR_DUPLICATES, reason, rows, 1))
                    continue
                history.seen.add(f"{item.file.name} {rows}", clip.scores.phash)
            history.uids.add(uid)
            kept[uid] = clip
        return kept, rejected


def _row(uid: str, item: Todo, clip: Clip) -> dict[str, Any]:
    slices, scores = clip.slices, clip.scores
    return {
        "uid": uid,
        "media": clip.media,
        "slice_rows": slices.rows if slices else (),
        "slice_offsets": slices.offsets if slices else (),
        "slice_hashes": slices.hashes if slices else (),
        **(asdict(scores) if scores else dict.fromkeys(f.name for f in fields(Scores))),
        "caption": item.file.caption.short,
        "caption_long": item.file.caption.long,
        "file": item.file.name,
        "start": clip.start,
        "stop": clip.stop,
        "frames": clip.frames,
        "fps": float(clip.fps),
        "time_rows": clip.timeline.rows,
        "time_seconds": clip.timeline.seconds,
        "height": clip.height,
        "width": clip.width,
    }
