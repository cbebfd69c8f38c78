"""`convert`: what a worker does with one file: fetch it, cut it into clips, drop those that a limit forbids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from data.containers.regular_file import read_regular
from data.curation.clips import Clip, Clips, CutOptions, cut_into_clips
from data.curation.filters import Filters
from data.dataset.outcome import Rejection, Stage
from data.media import image, video
from data.remote.remote_files import TRIES, FetchError
from data.sources.files import NO_ANSWER, NOT_FETCHED, NOT_READ, ChangedError, SourceFile, brought, digest_path
from parallel.errors import InputError

UNUSABLE = "unusable file"
TOO_SMALL = "give a larger one, or leave it out"
FAULT = "leave it out, and report it with the file: no file should provoke this"
MIN_FRAMES = "min_frames"  # the kind of what `cut_into_clips` itself rejects


@dataclass(frozen=True)
class Todo:
    """A file to work on.

    Attributes:
        number: its place in the source.
        identity: of its bytes, as far as it is known beforehand; 32 hex digits.
        content: digest of its bytes; "" if they are not here yet.
        tries: to fetch it.
    """

    number: int
    file: SourceFile
    identity: str
    content: str
    tries: int = TRIES


@dataclass(frozen=True)
class Converted:
    """What came of a file.

    Attributes:
        content: the digest of its bytes.
        rejected: why clips are not among `clips`.
        streams: video streams in the file, of which one is taken.
        headless: frames before the first key frame, which are lost.
    """

    content: str
    shots: int
    clips: tuple[Clip, ...]
    rejected: tuple[Rejection, ...]
    streams: int = 1
    headless: int = 0


def convert(todo: Todo, cut: CutOptions, filters: Filters, previews: bool = True) -> Converted | Rejection:
    """Runs in a worker: the clips of a file, or why it has none. Never raises for what a file provokes."""
    file = todo.file
    try:
        with brought(file.place, todo.tries) as path:
            try:
                content = todo.content or digest_path(path)
                clips = cut_into_clips(path, cut)
                size = _source_size(path, clips, cut, filters)
            except InputError as error:
                reason = error.value.removeprefix(f"{path}: ").rpartition(" bytes in memory: ")[2]
                return _refused(todo, "read", UNUSABLE, reason, remedy=error.remedy)
    except FetchError as error:
        return _refused(todo, "fetch", NOT_FETCHED if error.answered else NO_ANSWER, str(error), again=True)
    except InputError as error:  # no driver on this node
        return _refused(todo, "fetch", NOT_FETCHED, f"{error.value}: {error.remedy}", again=True)
    except (ChangedError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return _refused(todo, "read", NOT_READ, reason, again=True)
    except Exception as error:  # whatever a strange file provokes must not stop the job; it is counted and shown
        return _refused(todo, "read", UNUSABLE, f"{type(error).__name__}: {error}", remedy=FAULT)
    if not clips.shots:
        return _refused(todo, "cut", UNUSABLE, "; ".join(clips.rejected), remedy=TOO_SMALL)
    lost = clips.shots - len(clips.kept)
    rejected = [Rejection(file.name, "cut", MIN_FRAMES, "; ".join(clips.rejected), clips=lost)] if lost else []
    kept = []
    for clip in clips.kept:
        reasons = why_not(clip, filters, file.caption.short, size)
        if reasons:
            said = "; ".join(f"{limit}: {sentence}" for limit, sentence in reasons)
            rows = f"{clip.start}:{clip.stop}"  # counted by the first limit that it breaks
            rejected.append(Rejection(file.name, "filter", reasons[0][0], said, rows, 1))
        else:
            kept.append(clip if previews else replace(clip, preview=None))
    return Converted(content, clips.shots, tuple(kept), tuple(rejected), clips.streams, clips.headless)


def why_not(clip: Clip, filters: Filters, caption: str, size: tuple[int, int] | None = None) -> list[tuple[str, str]]:
    """(limit, sentence) of each limit that a clip breaks; `size` is that of its source, if the clip has another."""
    seconds = None if clip.media in image.SUFFIXES else float(clip.frames / clip.fps)
    height, width = size or (clip.height, clip.width)
    return filters.reasons(seconds=seconds, height=height, width=width, scores=clip.scores, caption=caption)


def _source_size(path: Path, clips: Clips, cut: CutOptions, filters: Filters) -> tuple[int, int] | None:
    """(height, width) of the file, if clips have another and a limit asks for it."""
    asked = (filters.min_side, filters.min_aspect, filters.max_aspect) != (None, None, None)
    if not asked or not clips.kept or (cut.short_side, cut.sizes) == (None, None):
        return None
    if clips.kept[0].media in image.SUFFIXES:
        return image.decode(read_regular(path)).shape[1:3]
    found = video.probe(path)
    return found.height, found.width


def _refused(todo: Todo, stage: Stage, kind: str, reason: str, again: bool = False, remedy: str = "") -> Rejection:
    return Rejection(todo.file.name, stage, kind, reason, again=again, remedy=remedy)
