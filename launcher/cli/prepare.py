"""The command `longreel prepare`. Heavy imports wait until it runs."""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.options import with_options
from launcher.cli.prepare_options import PrepareArguments, WorkerArguments
from launcher.core.terminal import Console

if TYPE_CHECKING:
    from data.prepare.pipeline import MakePool, PrepareOptions, Progress, Summary

STOPPED = 75  # exit code, as of a run that was stopped: the same command goes on
SECONDS_BETWEEN_LINES = 30.0


@with_options
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="Path or URL (http, s3, gs, ...) of a folder, a video, an image, a WebDataset tar, or a table (CSV, "
            "TSV, Parquet, JSON lines, JSON) of paths or URLs."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The dataset folder; run again with more videos to add them.")],
    arguments: PrepareArguments,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON for a script instead of text.")] = False,
) -> None:
    """Turn videos, images and captions into WebDataset shards with an index.

    Files are cut at their shot changes, measured, filtered, and kept without a loss where they can be. A bad file is
    reported and skipped, never fatal. What is in the dataset already is not done again; Ctrl-C or a kill costs little,
    and the same command goes on.

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

            def show(progress: Progress) -> None:
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

    def update(self, progress: Progress) -> None:
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
