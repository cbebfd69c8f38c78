"""A group: the files that make one shard, and the transaction that makes them samples.

files --convert, in workers--> clips --hash--> samples --> tar --> rows of the index --> commit
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data import index, shards
from data.clips import Clip, Clips, cut_into_clips
from data.scores import Scores
from data.shards import Sample, digest_bytes, digest_of
from data.sources import VideoFile
from data.workers import Died
from parallel.errors import InputError

Result = Clips | str | Died[Path]  # clips, or why there are none


@dataclass(frozen=True)
class Todo:
    """A file to work on: `content` is the digest of its bytes, `size` their number."""

    video: VideoFile
    caption: str
    content: str
    size: int


@dataclass
class Outcome:
    """What became of files.

    Attributes:
        clips: shots found.
        kept: of them, stored.
        rejected: (file, reason).
        frames, bytes, shards: written.
    """

    clips: int = 0
    kept: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    frames: int = 0
    bytes: int = 0
    shards: int = 0


def into_groups(todo: Iterable[Todo], most_bytes: int, most_files: int) -> Iterator[list[Todo]]:
    """Runs of files, each enough for one shard; where they are cut does not depend on later files."""
    group: list[Todo] = []
    size = 0
    for item in todo:
        group.append(item)
        size += item.size
        if size >= most_bytes or len(group) >= most_files:
            yield group
            group, size = [], 0
    if group:
        yield group


def convert(path: Path, min_frames: int, short_side: int | None) -> Clips | str:
    """Runs in a worker: the clips of a file, or why it has none."""
    try:
        return cut_into_clips(path, min_frames, short_side)
    except InputError as error:
        return error.value.removeprefix(f"{path}: ")
    except Exception as error:  # whatever a strange file provokes must not stop the job; it is counted and shown
        return f"{type(error).__name__}: {error}"


def write_group(
    dataset: Path,
    config: Mapping[str, Any],
    group: Sequence[Todo],
    results: Iterable[Result],
    uids: set[str],
    outcome: Outcome,
    on_file: Callable[[str, int], None],
) -> None:
    """Writes one shard with its rows and commits it; a group without a sample leaves nothing behind.

    Args:
        dataset: the folder.
        config: the options that decide the bytes; part of the shard's id.
        group: the files.
        results: of `convert`, in the order of `group`; taken one at a time.
        uids: of all samples so far; grows.
        outcome: grows.
        on_file: called after each file with its name and the clips kept so far.
    """
    shard_id = digest_of(config, [(item.video.name, item.content, item.caption) for item in group])
    rows: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []

    def samples() -> Iterator[Sample]:
        for item, result in zip(group, results, strict=True):
            new, rejected = _judge(item, result, uids)
            if isinstance(result, Clips):
                outcome.clips += result.shots
            outcome.kept += len(new)
            outcome.frames += sum(clip.frames for clip in new.values())
            outcome.rejected += [(item.video.name, reason) for reason in rejected]
            if not isinstance(result, Died):  # it may have died of something else: the next run tries again
                known = {"file": item.video.name, "content": item.content, "caption": item.caption}
                inputs.append({**known, "kept": len(new), "rejected": rejected})
            uids.update(new)
            for uid, clip in new.items():
                rows.append(_row(uid, item, clip))
                facts = {"uid": uid, **{name: rows[-1][name] for name in index.FACTS}}
                words = json.dumps(facts, sort_keys=True, ensure_ascii=False) + "\n"
                yield Sample(uid, {"json": words.encode(), clip.media: clip.data})
            on_file(item.video.name, outcome.kept)

    shard = shards.write_shard(dataset, shard_id, samples())
    if shard is None:
        return
    for row, parts in zip(rows, shard.parts, strict=True):
        row["shard"] = shard.path
        for suffix, part in parts.items():
            which = "json" if suffix == "json" else "media"
            row.update({f"{which}_offset": part.offset, f"{which}_size": part.size, f"{which}_hash": part.hash})
    written = index.write_rows(dataset, shard_id, rows)
    record = {"config": config, "inputs": inputs, "index": written, "size": shard.size, "hash": shard.hash}
    shards.commit(dataset, shard_id, record)
    outcome.shards += 1
    outcome.bytes += shard.size


def _judge(item: Todo, result: Result, uids: set[str]) -> tuple[dict[str, Clip], list[str]]:
    """The clips of a file by uid that no one has yet, and why others are not kept."""
    if isinstance(result, Died):
        return {}, ["its worker process died"]
    if isinstance(result, str):
        return {}, [result]
    clips = {digest_of(digest_bytes(clip.data), item.caption): clip for clip in result.kept}
    new = {uid: clip for uid, clip in clips.items() if uid not in uids}
    same = len(result.kept) - len(new)
    reasons = [f"{same} clips are the same as others, caption included"] if same else []
    return new, [*result.rejected, *reasons]


def _row(uid: str, item: Todo, clip: Clip) -> dict[str, Any]:
    slices, scores = clip.slices, clip.scores
    return {
        "uid": uid,
        "media": clip.media,
        "slice_rows": slices.rows if slices else (),
        "slice_offsets": slices.offsets if slices else (),
        "slice_hashes": slices.hashes if slices else (),
        **(asdict(scores) if scores else dict.fromkeys(f.name for f in fields(Scores))),
        "caption": item.caption,
        "caption_long": "",
        "file": item.video.name,
        "start": clip.start,
        "stop": clip.stop,
        "frames": clip.frames,
        "fps": float(clip.fps),
        "height": clip.height,
        "width": clip.width,
    }
