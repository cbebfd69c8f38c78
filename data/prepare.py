"""`prepare`: a folder of videos becomes a dataset. Idempotent, and a kill at any moment costs one shard's work.

    files --captions, digests--> groups --cut, encode--> samples --tar, rows, commit--> shards --> manifest

A group is a run of files that fills one shard. Its id is the digest of the files, their captions and the options, so a
rerun knows what is done before it decodes anything, and what it does again comes out byte for byte the same. One bad
file is rejected with its reason and never stops the rest; if a worker process dies, its file is tried once more by
itself, and rejected only if it kills that one too.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data import index, manifest, shards
from data.captions import NO_CAPTION, Captions, Choice
from data.clips import SMALLEST_SIDE
from data.groups import Outcome, Todo, convert, into_groups, write_group
from data.manifest import Manifest
from data.shards import FOLDERS, QUARANTINE, digest_bytes, digest_file, digest_of
from data.sources import VideoFile, find_videos
from data.workers import Workers, available_cores
from parallel.errors import InputError

SMALL_JOB_BYTES = 16 << 20  # of input: below it, starting workers costs more than it saves
FORMAT = 2  # part of every shard id: raise it when the same input would give other bytes


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare.

    Attributes:
        captions: a CSV, Parquet or JSON file of captions; None looks beside the videos.
        caption: which of a short and a long caption.
        allow_missing_captions: keep videos without a caption, with an empty one.
        min_frames: shorter shots are rejected.
        short_side: shrink to this many pixels on the shorter side; None keeps the size.
        workers: processes; 0 works in this one; None chooses: this one if there is little to do, else one per core.
        shard_bytes, shard_files: a shard takes files until it has this much input.
    """

    captions: Path | None = None
    caption: Choice = "short"
    allow_missing_captions: bool = False
    min_frames: int = 8
    short_side: int | None = None
    workers: int | None = None
    shard_bytes: int = 256 << 20
    shard_files: int = 1024


@dataclass(frozen=True)
class Progress:
    """`done` of `total` files, the last of them `file`, `clips` kept so far."""

    done: int
    total: int
    file: str
    clips: int


@dataclass
class Summary(Outcome):
    """What came in and what became of it. Clips, frames, bytes and shards count what this run read and wrote.

    Attributes:
        rejected: (file, reason), those of earlier runs over the same files included.
        files: videos found.
        skipped: files that were in the dataset already.
        seconds: that it took.
    """

    files: int = 0
    skipped: int = 0
    seconds: float = 0.0


def prepare(
    source: Path,
    out: Path,
    options: PrepareOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Makes a dataset of `source` at `out`, or adds to it what is not there yet.

    Args:
        source: a folder (searched to any depth), one video, or a CSV or Parquet table of videos.
        out: the dataset; made if absent.
        options: see `PrepareOptions`.
        on_progress: called after each file.

    Raises:
        InputError: no videos, no usable video (names the first and its reason), `out` is something else or in use.
    """
    began = time.monotonic()
    options = options or PrepareOptions()
    source, out = Path(source), Path(out)
    _check(options, out)
    videos, captions = find_videos(source, options.captions, out, not options.allow_missing_captions)
    summary = Summary(files=len(videos))
    with _held(out):
        shards.sweep(out)
        done = shards.commits(out)
        _check_config(out, done, options)
        todo = list(_unseen(videos, captions, options, done, summary))
        uids = {uid for record in done.values() for uid in index.read_uids(out, record["index"][0])} if todo else set()
        work = partial(convert, min_frames=options.min_frames, short_side=options.short_side)
        progress = _Counted(on_progress, summary.files, summary.files - len(todo))
        with Workers(_processes(todo, options)) as workers:
            for group in into_groups(todo, options.shard_bytes, options.shard_files):
                results = workers.map(work, [item.video.path for item in group])
                write_group(out, _config(options), group, results, uids, summary, progress)
        if not summary.kept and not summary.skipped:
            raise _nothing_usable(source, summary)
        _publish(out, options)
        _quarantine(out, summary.rejected)
    summary.seconds = time.monotonic() - began
    return summary


def _unseen(
    videos: Sequence[VideoFile],
    captions: Captions,
    options: PrepareOptions,
    commits: dict[str, dict[str, Any]],
    summary: Summary,
) -> Iterator[Todo]:
    """The files that no commit knows; the others are counted in `summary`."""
    known = {entry["content"]: entry for record in commits.values() for entry in record["inputs"]}
    seen: dict[str, str] = {}
    for video in videos:
        try:
            caption = captions.text(video.name, video.path, options.caption)
        except InputError as error:
            if not (options.allow_missing_captions and error.value == NO_CAPTION):
                summary.rejected.append((video.name, error.value))
                continue
            caption = ""
        try:
            size, content = video.path.stat().st_size, digest_file(video.path)
        except OSError as error:
            summary.rejected.append((video.name, error.strerror or str(error)))
            continue
        entry = known.get(content)
        if content in seen:
            summary.rejected.append((video.name, f"same bytes as {seen[content]}"))
        elif entry is None:
            yield Todo(video, caption, content, size)
        elif entry["caption"] != caption:
            summary.rejected.append(
                (video.name, "it is in the dataset with another caption: prepare into a new folder")
            )
        else:
            summary.skipped += entry["kept"] > 0
            summary.rejected += [(video.name, reason) for reason in entry["rejected"]]
        seen.setdefault(content, video.name)


class _Counted:
    """Tells the caller of each finished file."""

    def __init__(self, tell: Callable[[Progress], None] | None, total: int, done: int) -> None:
        self.tell, self.total, self.done = tell, total, done

    def __call__(self, file: str, clips: int) -> None:
        self.done += 1
        if self.tell:
            self.tell(Progress(self.done, self.total, file, clips))


def _config(options: PrepareOptions) -> dict[str, Any]:
    """What decides the bytes of a shard, beside its files and their captions."""
    return {"format": FORMAT, **{name: getattr(options, name) for name in ("caption", "min_frames", "short_side")}}


def _check_config(out: Path, commits: dict[str, dict[str, Any]], options: PrepareOptions) -> None:
    """All shards of a dataset are made alike: else the same clip would be in it twice, in two sizes."""
    for record in commits.values():
        other = {k: v for k, v in record["config"].items() if v != _config(options)[k]}
        if other:
            made = ", ".join(f"{name}={value}" for name, value in other.items())
            raise InputError("a dataset is made with one set of options", f"{out} has {made}", "give another --out")


def _processes(todo: Sequence[Todo], options: PrepareOptions) -> int:
    if options.workers is not None:
        return options.workers
    few = len(todo) < 2 or sum(item.size for item in todo) < SMALL_JOB_BYTES
    return 0 if few else min(available_cores(), len(todo))


def _publish(out: Path, options: PrepareOptions) -> None:
    """Appends a generation of the manifest if there are commits that it lacks."""
    commits, parent = shards.commits(out), manifest.latest(out)
    order = manifest.order(parent, commits)
    if parent is not None and list(parent.shards) == order:
        return
    parts = tuple((path, digest, rows) for path, digest, rows in (commits[shard_id]["index"] for shard_id in order))
    digest = index.content_digest(uid for path, _, _ in parts for uid in index.read_uids(out, path))
    number = parent.generation if parent else 0
    manifest.append(out, Manifest(number + 1, number, tuple(order), parts, digest_of(_config(options)), digest))


def _quarantine(out: Path, rejected: Sequence[tuple[str, str]]) -> None:
    """Lists what was rejected and why; the name is the digest of the list, so that a rerun writes the same file."""
    lines = "".join(
        json.dumps({"file": file, "reason": reason}, ensure_ascii=False) + "\n" for file, reason in rejected
    )
    if lines:
        shards.write_bytes(out / QUARANTINE / f"{digest_bytes(lines.encode())}.jsonl", lines.encode())


def _check(options: PrepareOptions, out: Path) -> None:
    limits = (("min_frames", 1), ("short_side", SMALLEST_SIDE), ("workers", 0), ("shard_bytes", 1), ("shard_files", 1))
    for name, least in limits:
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"{name} is at least {least}", str(value), f"give {least} or more")
    if options.short_side is not None and options.short_side % 2:
        raise InputError(
            "short_side is even, as video needs", str(options.short_side), f"give {options.short_side + 1}"
        )
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError("a dataset is a folder", f"{out} is a file", "give another --out")
    names = {path.name for path in out.iterdir()}
    if names and not names & set(FOLDERS):
        found = ", ".join(sorted(names)[:5])
        raise InputError(
            "the output is a dataset, or an empty or new folder", f"{out} has: {found}", "give another --out"
        )


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The dataset for this process alone; the lock goes with the process, however it ends. Leaves no empty folder."""
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "one process at a time prepares a dataset", f"{out} is in use", "wait for it to end"
            ) from error
        yield
    finally:
        for empty in [*(out / name for name in FOLDERS), out]:
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
        os.close(folder)


def _nothing_usable(source: Path, summary: Summary) -> InputError:
    file, reason = summary.rejected[0]
    remedy = "check the files with ffprobe"
    if reason == NO_CAPTION:
        folder = source if source.is_dir() else source.parent
        remedy = f"write {{file: text}} to {folder}/captions.json, or allow missing captions"
    elif "have fewer than" in reason:
        remedy = "lower min_frames"
    elif "caption" in reason:
        remedy = 'write {"clip.mp4": "what it shows"}, or {"short": ..., "long": ...} for each'
    return InputError(
        "a source has a video that can be used", f"{summary.files} files, the first is {file}: {reason}", remedy
    )
