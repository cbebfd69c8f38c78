"""`prepare`: videos and images become a dataset. Idempotent, and a kill at any moment costs one shard's work.

    files --captions, digests--> groups --cut, filter, encode--> samples --tar, rows, commit--> shards --> manifest

A group is a run of files that fills one shard. Its id is the digest of the files, their captions and the options, so a
rerun knows what is done before it decodes anything, and what it does again comes out byte for byte the same. A local
file is known by the digest of its bytes, one behind a URL by the URL and what its store says of it, so that it is
fetched once. One bad file is rejected with its reason and never stops the rest; one that only this time could not be
read is tried again by the next run.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data.captions.captions import LONG_CAPTION, NO_CAPTION
from data.captions.name_matching import listed
from data.curation.clips import CutOptions
from data.curation.filters import Filters
from data.dataset import shards
from data.dataset.lock import check_place, held
from data.dataset.outcome import Outcome, Rejection, Tally
from data.dataset.publish import publish
from data.dataset.shards import digest_of
from data.prepare.convert import MIN_FRAMES, convert
from data.prepare.history import History
from data.prepare.pending import Pending
from data.prepare.rejection_remedies import remedy_of
from data.prepare.shard_writer import Writer, converted, into_groups
from data.remote import remote_files
from data.remote.scratch import sweep
from data.sources.caption_files import FILE_NAME
from data.sources.find_files import find
from data.sources.listing import Listing
from data.workers.processes import LEAST_MEMORY, Limits, Pool, Workers, available_cores, fair_memory
from parallel.errors import InputError

FORMAT = 4  # part of every shard id: raise it when the same input would give other bytes

MakePool = Callable[[int | None, Limits], Pool]  # of so many workers, or of as many as it finds good


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare.

    Attributes:
        captions: path or URL of a table or a JSON file of captions; None looks beside the videos.
        allow_missing_captions: keep videos without a caption, with an empty one.
        cut: how files become clips.
        filters: which clips are kept.
        previews: whether to draw sheets for people to look at.
        limit: only the first so many files of the source; None for all.
        workers: processes; 0 works in this one, without `timeout` and `memory`; None: one per core.
        timeout: seconds that one file may take.
        memory: bytes that one worker may take; None shares out most of the machine's.
        shard_bytes, shard_files: a shard takes files until it has this much input.
    """

    captions: str | None = None
    allow_missing_captions: bool = False
    cut: CutOptions = field(default_factory=CutOptions)
    filters: Filters = field(default_factory=Filters)
    previews: bool = True
    limit: int | None = None
    workers: int | None = None
    timeout: float = 600.0
    memory: int | None = None
    shard_bytes: int = 256 << 20
    shard_files: int = 1024


@dataclass(frozen=True)
class PrepareProgress:
    """`done` of `total` files (None while their number is not known), the last of them `file`, `clips` kept so far."""

    done: int
    total: int | None
    file: str
    clips: int


@dataclass
class Summary:
    """What came in and what became of it.

    Attributes:
        files: found, whether they were in the dataset already or not.
        skipped: of them, done by an earlier run, whether a clip was kept or not.
        tally: of the others.
        dataset: of all files that made the dataset, this run's and those of earlier runs.
        limits: what may cost clips, in the order in which it is looked at, and in words.
        rejected: in the order of the files, those of earlier runs over the same files included.
        ignored: what is no file to prepare, by suffix: other kinds of files and members of tars, and images beside
            videos of their name.
        notes: what a person should know of captions and names.
        frames, bytes, shards: that this run wrote.
        seconds: that it took.
    """

    files: int = 0
    skipped: int = 0
    tally: Tally = field(default_factory=Tally)
    dataset: Tally = field(default_factory=Tally)
    limits: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    frames: int = 0
    bytes: int = 0
    shards: int = 0
    seconds: float = 0.0

    @property
    def kept(self) -> int:
        """Clips that this run stored."""
        return self.tally.kept

    def as_json(self) -> dict[str, Any]:
        """For a script."""
        tallies = {"tally": self.tally.as_json(), "dataset": self.dataset.as_json()}
        rejected = [one.as_json() for one in self.rejected]
        return {**vars(self), **tallies, "kept": self.kept, "rejected": rejected}


def prepare(
    source: Path | str,
    out: Path,
    options: PrepareOptions | None = None,
    on_progress: Callable[[PrepareProgress], None] | None = None,
    make_pool: MakePool | None = None,
) -> Summary:
    """Makes a dataset of `source` at `out`, or adds to it what is not there yet.

    Args:
        source: path or URL of a folder (searched to any depth), a file, a tar, or a table of paths or URLs.
        out: the dataset; made if absent.
        options: see `PrepareOptions`.
        on_progress: called after each file.
        make_pool: of the workers; None for processes on this machine.

    Raises:
        InputError: no videos, no usable video (names the first and its reason), `out` is something else or in use.
    """
    began = time.monotonic()
    options = options or PrepareOptions()
    _check(options)
    check_place(out)
    films = options.cut.frames_per_second is not None
    pool = make_pool(options.workers, Limits(options.timeout, options.memory)) if make_pool else local_pool(options)
    with pool:  # made before threads look at the source, and before the dataset is held, which a worker could outlive
        listing = find(str(source), options.captions, out, not options.allow_missing_captions, films)
        with held(out):
            shards.sweep(out)
            config = _config(options)
            history = History.read(out, config, options.filters.near_duplicates is not None)
            summary = _write(out, config, options, listing, history, on_progress, pool)
            if not summary.kept and not summary.skipped:
                raise _nothing_usable(str(source), summary)
            publish(out, digest_of(config))
            shards.quarantine(out, (one.as_json() for one in summary.rejected))
    summary.seconds = time.monotonic() - began
    return summary


def _write(
    out: Path,
    config: dict[str, Any],
    options: PrepareOptions,
    listing: Listing,
    history: History,
    on_progress: Callable[[PrepareProgress], None] | None,
    pool: Pool,
) -> Summary:
    """Converts what is to be done, and writes and commits its shards."""
    outcome = Outcome()
    progress = _Progress(on_progress, outcome)
    pending = Pending(listing, options.limit, history, outcome, progress)
    progress.total = pending.total
    sweep()
    try:
        work = partial(convert, cut=options.cut, filters=options.filters, previews=options.previews)
        writer = Writer(out, config, options.filters, history, outcome, progress)
        groups = into_groups(pending, options.shard_bytes, options.shard_files)
        for group, results in converted(groups, work, pool):
            writer.write(group, results)
    finally:
        sweep()
    history.tally.add(outcome.tally)
    return Summary(
        files=pending.found,
        skipped=outcome.skipped,
        tally=outcome.tally,
        dataset=history.tally,
        limits=_limits(options),
        rejected=[one for _, one in sorted(outcome.rejected, key=lambda pair: pair[0])],
        ignored=listing.ignored,
        notes=[
            *listing.notes,
            *_sharing(outcome.shared),
            *_long(outcome.long),
            *_several(outcome.several),
            *_headless(outcome.headless),
        ],
        frames=outcome.frames,
        bytes=outcome.bytes,
        shards=outcome.shards,
    )


class _Progress:
    """Tells the caller of each finished file."""

    def __init__(self, tell: Callable[[PrepareProgress], None] | None, outcome: Outcome) -> None:
        self.tell, self.outcome = tell, outcome
        self.total: Callable[[], int | None] = lambda: None
        self.done = 0

    def __call__(self, file: str) -> None:
        self.done += 1
        if self.tell:
            self.tell(PrepareProgress(self.done, self.total(), file, self.outcome.tally.kept))


def _config(options: PrepareOptions) -> dict[str, Any]:
    """What decides the bytes of a shard, beside its files and their captions."""
    values = {"format": FORMAT, **asdict(options.cut), **asdict(options.filters)}
    return dict(json.loads(json.dumps(values)))  # as it comes back from a commit


def _limits(options: PrepareOptions) -> dict[str, str]:
    """See `Summary`."""
    asked = {name: value for name, value in asdict(options.filters).items() if value is not None}
    return {MIN_FRAMES: f"fewer than {options.cut.min_frames} frames", **{n: f"{n} {v:g}" for n, v in asked.items()}}


def local_pool(options: PrepareOptions) -> Workers:
    """Processes of this machine, with the limits of one file whatever its size."""
    processes = available_cores() if options.workers is None else options.workers
    return Workers(processes, Limits(options.timeout, options.memory or fair_memory(processes)))


def _check(options: PrepareOptions) -> None:
    least = {"workers": 0, "shard_bytes": 1, "shard_files": 1, "limit": 1, "timeout": 1}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= lowest:
            raise InputError(f"{name} is at least {lowest}", str(value), f"give {lowest} or more")
    if options.memory is not None and not options.memory >= LEAST_MEMORY:
        least_memory, found = (f"{size / 2**30:.3g} GiB" for size in (LEAST_MEMORY, options.memory))
        raise InputError(f"memory is at least {least_memory}", found, f"give {least_memory} or more")
    options.filters.check()


def _sharing(clips: list[int]) -> list[str]:
    """What to tell of files that were cut into several clips, all with the caption of the whole."""
    if not clips:
        return []
    files = "1 file was" if len(clips) == 1 else f"{len(clips):,} files were"
    return [f"{files} cut into several clips ({sum(clips):,} in all), each with the caption of the whole file"]


def _long(captions: list[tuple[int, str]]) -> list[str]:
    """What to tell of captions of which the built-in text encoder reads only a part."""
    if not captions:
        return []
    size, file = max(captions)
    many = "1 caption has" if len(captions) == 1 else f"{len(captions):,} captions have"
    read = f"of which training reads the first {LONG_CAPTION:,} unless model.text.max_bytes says more"
    return [f"{many} more than {LONG_CAPTION:,} bytes, {read}: the longest has {size:,} ({file})"]


def _several(files: list[str]) -> list[str]:
    """What to tell of files with several video streams."""
    if not files:
        return []
    many = "1 file has" if len(files) == 1 else f"{len(files):,} files have"
    return [f"{many} several video streams, of which the film of most pixels is taken: {listed(files)}"]


def _headless(files: list[str]) -> list[str]:
    """What to tell of files that begin without a key frame."""
    if not files:
        return []
    begin = "1 file begins" if len(files) == 1 else f"{len(files):,} files begin"
    return [f"{begin} without a key frame; frames before the first one cannot be decoded and are lost: {listed(files)}"]


def _nothing_usable(source: str, summary: Summary) -> InputError:
    if not summary.rejected:
        return InputError("a source has videos", f"{source}: no samples in its tars", "look into them with tar -tvf")
    first = summary.rejected[0]
    remedy = remedy_of(first)
    if first.kind == NO_CAPTION:
        folder = source if remote_files.is_url(source) or Path(source).is_dir() else Path(source).parent
        remedy = f"write {{file: text}} to {folder}/{FILE_NAME}, or allow missing captions"
        remedy = "; ".join([*summary.notes, remedy])
    kinds = Counter(one.kind for one in summary.rejected).most_common()
    told = f" ({', '.join(f'{kind}: {times}' for kind, times in kinds)})" if len(kinds) > 1 else ""
    return InputError(
        "a source has a video that can be used",
        f"{summary.files} files, the first is {first.file}: {first.reason}{told}",
        remedy,
    )
