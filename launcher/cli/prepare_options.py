"""The options of `longreel prepare`, each declared once, and what `data.prepare` takes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel.errors import InputError

if TYPE_CHECKING:
    from data.curation.clips import CutOptions
    from data.curation.filters import Filters
    from data.prepare.pipeline import PrepareOptions

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

    min_frames: Annotated[int, _cut("Reject shots shorter than this.")] = 8
    max_frames: Annotated[int | None, _cut("Divide longer shots into equal parts.")] = None
    short_side: Annotated[int | None, _cut("Shrink to this many pixels on the shorter side.")] = None
    sizes: Annotated[str | None, _cut("Buckets HEIGHTxWIDTH,...: scale and crop each clip to the nearest.")] = None
    max_gop: Annotated[int, _cut("Encode clips with longer stretches between key frames.")] = 256
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

    min_seconds: Annotated[float | None, _filter("Length at least.")] = None
    max_seconds: Annotated[float | None, _filter("Length at most.")] = None
    min_side: Annotated[int | None, _filter("Shorter side of the source at least, in pixels.")] = None
    min_aspect: Annotated[float | None, _filter("Width over height at least.")] = None
    max_aspect: Annotated[float | None, _filter("Width over height at most.")] = None
    min_motion: Annotated[float | None, _filter("Mean change from frame to frame at least, 0 to 255.")] = None
    max_motion: Annotated[float | None, _filter("Mean change from frame to frame at most, 0 to 255.")] = None
    min_sharpness: Annotated[float | None, _filter("Sharpness at least; see longreel data stats.")] = None
    min_brightness: Annotated[float | None, _filter("Mean brightness at least, 0 to 255.")] = None
    max_black: Annotated[float | None, _filter("Share of black frames at most, 0 to 1.")] = None
    max_text: Annotated[float | None, _filter("Share of the picture with overlaid text at most, 0 to 1.")] = None
    min_caption_chars: Annotated[int | None, _filter("Length of the caption at least.")] = None
    max_caption_chars: Annotated[int | None, _filter("Length of the caption at most.")] = None
    near_duplicates: Annotated[int | None, _filter("Leave out copies, to so many bits of a picture hash: 4 to 8.")] = (
        None
    )

    def filters(self) -> Filters:
        """The limits that a clip must keep."""
        from data.curation.filters import Filters

        return Filters(**asdict(self))


@dataclass(frozen=True)
class WorkerArguments:
    """Who does the work, and how much each may take."""

    workers: Annotated[int | None, _running("Processes; by default as many as there is work for.")] = None
    timeout: Annotated[float, _running("Seconds that one file may take.")] = 600.0
    memory: Annotated[float | None, _running("GiB that one worker may take; by default a fair share.")] = None
    ray: Annotated[bool, _running("Work as Ray actors on this machine.", "--ray")] = False
    address: Annotated[
        str | None, _running("host:port of a Ray cluster that works; sources are URLs, or paths that its nodes share.")
    ] = None


@dataclass(frozen=True)
class PrepareArguments:
    """As `data.prepare.pipeline.PrepareOptions`, as they are typed."""

    captions: Annotated[
        str | None, typer.Option(help="Captions, if not beside the videos: JSON, JSON lines, CSV, TSV, Parquet.")
    ] = None
    allow_missing_captions: Annotated[bool, typer.Option(help="Keep videos that have no caption.")] = False
    limit: Annotated[int | None, typer.Option(help="Only the first so many files.")] = None
    previews: Annotated[bool, typer.Option(help="Draw sheets of frames for `longreel data show`.")] = True
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
