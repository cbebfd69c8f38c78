"""The command `longreel prepare`: its options, each declared once, and what they ask for. Heavy imports wait."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.options import Json, with_options
from launcher.core.terminal import Console
from parallel.errors import InputError

if TYPE_CHECKING:
    from data.curation.clips import CutOptions
    from data.curation.filters import Filters
    from data.prepare.pipeline import MakePool, PrepareOptions, PrepareProgress, Summary

STOPPED = 75  # exit code, as of a run that was stopped: the same command goes on
SECONDS_BETWEEN_LINES = 30.0
CUTTING, FILTERS, RUNNING = "Cutting", "Filters: a clip that breaks one is left out and listed", "Running"


def _cut(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=CUTTING)


def _filter(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=FILTERS)


def _running(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=RUNNING)


@dataclass(frozen=True)
class CutArguments:
    """As `data.curation.clips.CutOptions`, as they are typed."""

    min_frames: Annotated[int, _cut("Reject shorter shots (frames).")] = 8
    max_frames: Annotated[int | None, _cut("Divide longer shots into equal parts (frames).")] = None
    short_side: Annotated[int | None, _cut("Shrink the shorter side to N pixels.")] = None
    sizes: Annotated[
        str | None, _cut("Resolution buckets HEIGHTxWIDTH,...: scale and crop each clip to the nearest.")
    ] = None
    max_gop: Annotated[int, _cut("Re-encode clips with a longer distance between key frames (frames).")] = 256
    frames_per_second: Annotated[
        float | None, _cut("Read folders of numbered pictures (clip0/000001.jpg, ...) as films of this rate.")
    ] = None

    def options(self) -> CutOptions:
        """How to cut.

        Raises:
            InputError: a value cannot be.
        """
        from data.curation.clips import CutOptions

        return CutOptions(**{**asdict(self), "sizes": _sizes(self.sizes)})


@dataclass(frozen=True)
class FilterArguments:
    """As `data.curation.filters.Filters`."""

    min_seconds: Annotated[float | None, _filter("Minimum length (seconds).")] = None
    max_seconds: Annotated[float | None, _filter("Maximum length (seconds).")] = None
    min_side: Annotated[int | None, _filter("Minimum shorter side of the source (pixels).")] = None
    min_aspect: Annotated[float | None, _filter("Minimum width / height.")] = None
    max_aspect: Annotated[float | None, _filter("Maximum width / height.")] = None
    min_motion: Annotated[float | None, _filter("Minimum mean change between frames, 0 to 255.")] = None
    max_motion: Annotated[float | None, _filter("Maximum mean change between frames, 0 to 255.")] = None
    min_sharpness: Annotated[float | None, _filter("Minimum sharpness; see longreel data stats.")] = None
    min_brightness: Annotated[float | None, _filter("Minimum mean brightness, 0 to 255.")] = None
    max_black: Annotated[float | None, _filter("Maximum share of black frames, 0 to 1.")] = None
    max_text: Annotated[float | None, _filter("Maximum share of the frame with overlaid text, 0 to 1.")] = None
    min_caption_chars: Annotated[int | None, _filter("Minimum caption length (characters).")] = None
    max_caption_chars: Annotated[int | None, _filter("Maximum caption length (characters).")] = None
    near_duplicates: Annotated[
        int | None, _filter("Reject near-duplicates within N bits of a perceptual hash: 4 to 8.")
    ] = None

    def filters(self) -> Filters:
        """The limits that a clip must keep."""
        from data.curation.filters import Filters

        return Filters(**asdict(self))


@dataclass(frozen=True)
class WorkerArguments:
    """Who does the work, and how much each may take."""

    workers: Annotated[int | None, _running("Worker processes; chosen by the work if not given.")] = None
    timeout: Annotated[float, _running("Time limit per file (seconds).")] = 600.0
    memory: Annotated[float | None, _running("Memory limit per worker [GiB]; a fair share if not given.")] = None
    ray: Annotated[bool, _running("Run workers as Ray actors on this machine.", "--ray")] = False
    address: Annotated[
        str | None, _running("host:port of a Ray cluster that works; sources are URLs, or paths that its nodes share.")
    ] = None


@dataclass(frozen=True)
class PrepareArguments:
    """As `data.prepare.pipeline.PrepareOptions`, as they are typed."""

    captions: Annotated[
        str | None,
        typer.Option(help="Caption file, if captions are not beside the videos: JSON, JSON lines, CSV, TSV, Parquet."),
    ] = None
    allow_missing_captions: Annotated[bool, typer.Option(help="Keep videos that have no caption.")] = False
    limit: Annotated[int | None, typer.Option(help="Read only the first N files.")] = None
    previews: Annotated[bool, typer.Option(help="Store frame previews for longreel data show.")] = True
    cut: CutArguments = CutArguments()
    filters: FilterArguments = FilterArguments()
    working: WorkerArguments = WorkerArguments()

    def options(self) -> PrepareOptions:
        """What `data.prepare` takes.

        Raises:
            InputError: a value cannot be.
        """
        from data.prepare.pipeline import PrepareOptions

        memory = self.working.memory
        return PrepareOptions(
            captions=self.captions,
            allow_missing_captions=self.allow_missing_captions,
            cut=self.cut.options(),
            filters=self.filters.filters(),
            previews=self.previews,
            limit=self.limit,
            workers=self.working.workers,
            timeout=self.working.timeout,
            memory=None if memory is None else int(memory * 2**30),
        )


@with_options
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="Path or URL (http, s3, gs, ...) of a folder, a video, an image, a WebDataset tar, or a table (CSV, "
            "TSV, Parquet, JSON lines, JSON) of paths or URLs."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to write; run again with more videos to add them.")],
    arguments: PrepareArguments,
    json_: Json = False,
) -> None:
    """Turn videos, images and captions into WebDataset shards with an index.

    Files are cut at their shot changes, measured, filtered, and kept without re-encoding where possible. A bad file is
    reported and skipped, never fatal. Finished files are skipped too: after Ctrl-C or a kill, rerun the command.

    Example: longreel prepare videos/ --out datasets/mine

    Example: longreel prepare s3://bucket/films.csv --out datasets/films --max-frames 256 --sizes 480x832,832x480
    --min-motion 0.5 --near-duplicates 6
    """
    options, working = arguments.options(), arguments.working
    console = Console(stderr=json_)
    summary = _run(source, out, options, console, _pools(working, options))
    funnel = _draw(summary, out)
    if json_:
        print(json.dumps({**summary.as_json(), "funnel": None if funnel is None else str(funnel)}))
        return
    from launcher.tables.prepare_tables import print_summary

    print_summary(console, summary, out, funnel)


def _run(source: str, out: Path, options: PrepareOptions, console: Console, pools: Any) -> Summary:
    from data.prepare.pipeline import prepare as run
    from launcher.core.progress_bar import Bar
    from launcher.core.text import printable

    lines = _Lines(console)
    try:
        with _sigterm_as_ctrl_c(), pools as make_pool, Bar(console, "files") as bar:

            def show(progress: PrepareProgress) -> None:
                bar.update(progress.done, progress.total, f"{progress.clips:,} clips  {printable(progress.file)}")
                lines.update(progress)

            return run(source, out, options, show, make_pool)
    except OSError as error:
        error.filename = error.filename or str(out)  # a full disk does not say where
        raise
    except KeyboardInterrupt:
        console.print("stopped: whole shards are kept, and the same command goes on", highlight=False)
        raise typer.Exit(STOPPED) from None


@contextmanager
def _pools(working: WorkerArguments, options: PrepareOptions) -> Iterator[MakePool]:
    """What makes workers of a Ray, connected meanwhile, or processes on this machine."""
    if not working.ray and working.address is None:
        from data.prepare.pipeline import local_pool

        with local_pool(options) as workers:  # forked before a bar has a thread
            yield lambda *_: workers
        return
    from data.workers.ray_pool import RayWorkers
    from launcher.cluster.connection import connected
    from launcher.core.hardware import cores

    with connected(working.address, cores()) as found:
        yield lambda workers, limits: RayWorkers(found, workers, limits)


class _Lines:
    """In a log, where there is no bar: a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = self.last = time.monotonic()

    def update(self, progress: PrepareProgress) -> None:
        """Says how far it is, if it did not for long."""
        now = time.monotonic()
        if self.console.is_terminal or now < self.last + SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = progress.done / (now - self.began)
        left = f", {(progress.total - progress.done) / rate:,.0f} s left" if progress.total else ""
        of = f" of {progress.total:,}" if progress.total else ""
        said = f"{progress.done:,}{of} files, {progress.clips:,} clips, {rate:,.1f} files/s{left}"
        self.console.print(said, highlight=False, soft_wrap=True)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _draw(summary: Summary, out: Path) -> Path | None:
    """funnel.png of all that made the dataset."""
    from data.dataset.shards import write_bytes
    from launcher.reports.funnel import draw

    if not summary.dataset.found:
        return None
    image = io.BytesIO()
    draw(*summary.dataset.funnel(summary.limits), title=out.name).save(image, "png")
    write_bytes(out / "funnel.png", image.getvalue())
    return out / "funnel.png"


def _sizes(text: str | None) -> tuple[tuple[int, int], ...] | None:
    if text is None:
        return None
    found = []
    for one in text.lower().split(","):
        height, x, width = one.strip().partition("x")
        if not (x and height.isdecimal() and width.isdecimal()):
            raise InputError("sizes are HEIGHTxWIDTH,HEIGHTxWIDTH,...", f"--sizes {text}", "--sizes 480x832,832x480")
        found.append((int(height), int(width)))
    return tuple(found)
