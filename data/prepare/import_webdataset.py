"""`import`: plain WebDataset tars of others become shards of a dataset, byte for byte as they are.

    tar --headers--> candidates --read, hash, probe, in workers--> rows --hard link, rows, commit--> shard --> manifest

A shard's id is the digest of the tar and the options, so what is in the dataset is not imported again. A bad sample is
rejected with its reason and never stops the rest; a tar that is cut short gives what is whole. One tar is one
transaction. Reading and hashing cost as much as reading the tar twice, the second time from memory if it fits.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data.captions.captions import NO_CAPTION
from data.captions.name_matching import listed
from data.dataset import index, shards
from data.dataset.lock import check_place, held
from data.dataset.publish import publish
from data.dataset.shards import SHARDS, digest_of
from data.sources.files import digest_path, readable
from data.sources.tar_paths import Tar, find_tars, why_not
from data.sources.webdataset import IMAGES, Candidate, Contents, contents
from data.sources.webdataset_rows import SEVERAL, read_sample
from data.workers.processes import Limits, Lost, Workers, available_cores, fair_memory
from parallel.errors import InputError

FORMAT = 2  # part of every shard id: raise it when the same tar would give other rows
SECONDS = 600  # that a sample may take


@dataclass(frozen=True)
class ImportOptions:
    """How to import.

    Attributes:
        allow_missing_captions: keep videos and images without a caption, with an empty one.
        workers: processes; 0 works in this one, without limits; None: one per core.
    """

    allow_missing_captions: bool = False
    workers: int | None = None


@dataclass
class ImportSummary:
    """What came in and what became of it.

    Attributes:
        tars: found.
        skipped: of them, in the dataset already.
        shards: written; `copied` of them had to be copied, the others share their bytes with the source.
        videos, images, texts: samples kept, by kind.
        frames, bytes: of what was kept, and of the tars.
        ignored: members without a use, by suffix.
        rejected: (tar or sample, reason).
        notes: (tar, what a person should know of it).
        seconds: that it took.
    """

    tars: int = 0
    skipped: int = 0
    shards: int = 0
    copied: int = 0
    videos: int = 0
    images: int = 0
    texts: int = 0
    frames: int = 0
    bytes: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        """Samples."""
        return self.videos + self.images + self.texts


@dataclass(frozen=True)
class ImportProgress:
    """`done` of `total` bytes, `kept` samples so far, the last of them in `tar`."""

    done: int
    total: int
    tar: str
    kept: int


def import_tars(
    sources: Sequence[str],
    out: Path,
    options: ImportOptions | None = None,
    on_progress: Callable[[ImportProgress], None] | None = None,
) -> ImportSummary:
    """Makes a dataset of plain WebDataset tars at `out`, or adds them to the one that is there.

    Args:
        sources: folders (searched to any depth), tars, patterns with * or {000..123}.
        out: the dataset; made if absent.
        options: see `ImportOptions`.
        on_progress: called after each sample.

    Raises:
        InputError: no tars, no usable sample (names the first tar and its reason), `out` is something else or in use.
    """
    began = time.monotonic()
    options = options or ImportOptions()
    if options.workers is not None and options.workers < 0:
        raise InputError("workers is at least 0", str(options.workers), "give 0 or more")
    check_place(out)
    found = find_tars(sources, out)
    summary = ImportSummary(tars=len(found))
    processes = available_cores() if options.workers is None else options.workers
    # made before the dataset is held, which a worker could outlive
    with Workers(processes, Limits(SECONDS, fair_memory(processes))) as workers, held(out):
        shards.sweep(out)
        importer = _Importer(out, options, summary, on_progress, sum(_size(tar.path) for tar in found))
        for tar in found:
            importer.add(tar, workers)
        if not summary.kept and not summary.skipped:
            raise _nothing_usable(summary)
        publish(out, digest_of(importer.config))
        shards.quarantine(out, ({"file": file, "reason": reason} for file, reason in summary.rejected))
    summary.seconds = time.monotonic() - began
    return summary


class _Importer:
    """Adds one tar after the other to a dataset."""

    def __init__(
        self,
        out: Path,
        options: ImportOptions,
        summary: ImportSummary,
        tell: Callable[[ImportProgress], None] | None,
        total: int,
    ) -> None:
        self.out, self.options, self.summary, self.tell, self.total = out, options, summary, tell, total
        self.done = 0  # bytes of tars before this one
        self.config = {"import": FORMAT, "allow_missing_captions": options.allow_missing_captions}
        self.commits = shards.commits(out)
        self.uids = {u for record in self.commits.values() for u in index.read_uids(out, record["index"][0])}
        self.seen: dict[str, str] = {}

    def add(self, tar: Tar, workers: Workers) -> None:
        """Imports a tar, or tells why not."""
        try:
            size, reason = _size(tar.path), why_not(tar.path)
            content = digest_path(tar.path) if reason is None else ""
        except OSError as error:
            size, content, reason = 0, "", error.strerror or str(error)
        shard_id = digest_of(self.config, content)
        if reason is None and content in self.seen:
            reason = f"same bytes as {self.seen[content]}"
        if reason is not None:
            self.summary.rejected.append((tar.name, reason))
        elif (known := self._known(shard_id, content)) is not None:
            self.summary.skipped += 1
            for entry in known["inputs"]:
                self.summary.rejected += [(file, why) for file, why in entry["rejected"]]
        else:
            self._add(tar, shards.free_id(self.out, shard_id), content, size, workers)
        self.seen.setdefault(content, tar.name)
        self.done += size
        self._tell(tar, 0)

    def _known(self, shard_id: str, content: str) -> dict[str, Any] | None:
        """The commit of a tar, unless the shard was damaged since: then what it lost can come again."""
        while (record := self.commits.get(shard_id)) is not None:
            if record["hash"] == content:
                return record
            shard_id = digest_of(shard_id, "again")
        return None

    def _add(self, tar: Tar, shard_id: str, content: str, size: int, workers: Workers) -> None:
        inside, summary = contents(tar.path), self.summary
        summary.ignored.update(inside.ignored)
        summary.notes += [(tar.name, note) for note in inside.notes]
        rejected = [(readable(f"{tar.name}/{key}"), reason) for key, reason in inside.rejected]
        rows, left_out, several = [], [], list[str]()
        for candidate, result in zip(inside.candidates, self._read(tar, shard_id, inside, workers), strict=True):
            reason = self._refused(result)
            if reason is None:
                several.extend([candidate.key] * result.pop(SEVERAL))
                rows.append(result)
                self._count(result)
            else:
                rejected.append((readable(f"{tar.name}/{candidate.key}"), reason))
                left_out.append(candidate.offset)
            self._tell(tar, candidate.offset)
        if several:
            many = f"{len(several):,} samples have several captions, of which the first is used"
            summary.notes.append((tar.name, f"{many}: {listed(several)}"))
        if not inside.candidates and not rejected:
            rejected = [(tar.name, next(iter(inside.notes), "no samples"))]
        summary.rejected += rejected
        if not rows:
            summary.skipped += digest_of(self.config, content) in self.commits  # what it lost is there again
            return
        summary.copied += place(tar.path, self.out, shard_id, content)
        written = index.write_rows(self.out, shard_id, rows)
        known = {"file": tar.name, "content": content, "caption": "", "kept": len(rows), "rejected": rejected}
        record = {"config": self.config, "inputs": [known], "index": written, "left_out": left_out}
        shards.commit(self.out, shard_id, {**record, "size": size, "hash": content})
        summary.shards += 1
        summary.bytes += size

    def _read(self, tar: Tar, shard_id: str, inside: Contents, workers: Workers) -> Iterator[Any]:
        work = partial(_read_one, tar.path, tar.name, shard_id, not self.options.allow_missing_captions)
        return workers.map(work, inside.candidates)

    def _refused(self, result: Any) -> str | None:
        if isinstance(result, Lost):
            return result.reason
        if isinstance(result, str):
            return result
        if result["uid"] in self.uids:
            return "the same as another sample, captions included"
        self.uids.add(result["uid"])
        return None

    def _count(self, row: dict[str, Any]) -> None:
        if not row["media"]:
            self.summary.texts += 1
        elif row["media"] in IMAGES:
            self.summary.images += 1
        else:
            self.summary.videos += 1
        self.summary.frames += row["frames"]

    def _tell(self, tar: Tar, offset: int) -> None:
        if self.tell:
            self.tell(ImportProgress(self.done + offset, self.total, tar.name, self.summary.kept))


def place(tar: Path, out: Path, shard_id: str, content: str) -> bool:
    """Makes `tar` the shard of this id: a hard link, or a copy where that cannot be. Whether it was copied.

    Raises:
        InputError: the tar changed since its digest was `content`.
    """
    path = out / SHARDS / f"{shard_id}.tar"
    shards.make_folder(path.parent)
    temporary = shards.temporary_of(path)
    temporary.unlink(missing_ok=True)  # were it a link to the source, a copy would overwrite that
    copied = False
    try:
        try:
            os.link(tar.resolve(), temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(tar, temporary)
            copied = True
        if copied and digest_path(temporary) != content:
            raise InputError("a tar does not change while it is imported", str(tar), "import it again")
        shards.publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return copied


def _read_one(tar: Path, name: str, shard_id: str, need_caption: bool, candidate: Candidate) -> dict[str, Any] | str:
    return read_sample(tar, name, shard_id, candidate, need_caption)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _nothing_usable(summary: ImportSummary) -> InputError:
    file, reason = summary.rejected[0]
    remedy = "look into it with tar -tvf"
    if reason == NO_CAPTION:
        remedy = "allow missing captions"
    elif reason.startswith("compressed"):
        remedy = f"unpack it first: gunzip {file}" if "gzip" in reason else f"unpack {file} first"
    return InputError(
        "tars have a sample that can be used", f"{summary.tars} tars, the first is {file}: {reason}", remedy
    )
