"""Where videos come from: a folder, one file, or a table that names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.captions import TABLE_SUFFIXES, Captions, find_captions, read_table
from parallel.errors import InputError

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
        ".gif",
        ".y4m",
        ".mxf",
        ".vob",
        ".asf",
    ]
)


@dataclass(frozen=True, order=True)
class VideoFile:
    """A file to prepare; `name` is how captions, reports and the index call it."""

    name: str
    path: Path


def find_videos(
    source: Path, captions: Path | None = None, leave_out: Path | None = None, need_captions: bool = True
) -> tuple[list[VideoFile], Captions]:
    """Every video of a source, sorted by name, and their captions. Hidden files and those in `leave_out` do not count.

    Args:
        source: a folder, a video, or a table.
        captions: their file, if not beside the videos.
        leave_out: a folder that is no source.
        need_captions: whether a table must have a caption column.

    Raises:
        InputError: the source is absent or unreadable, or there is no video in it.
    """
    if not source.exists():
        raise InputError(
            "a source is a folder, a video, or a table of videos", f"{source}: no such file", "check the path"
        )
    if source.is_dir():
        found = _in_folder(source, leave_out)
        if not found:
            names = ", ".join(sorted(p.name for p in source.iterdir())[:5]) or "nothing"
            remedy = f"give a folder with files that end in {', '.join(sorted(VIDEO_SUFFIXES)[:8])} ..., or a table"
            raise InputError("a source has videos", f"{source} has: {names}", remedy)
        return found, find_captions(source, captions)
    if source.suffix.lower() in TABLE_SUFFIXES:
        paths, texts = read_table(source, captions=need_captions and captions is None)
        folder = source.parent
        videos = sorted(VideoFile(Path(p).as_posix(), folder / p) for p in paths)
        if not videos:
            raise InputError("a source has videos", f"{source}: no rows", "add a row per video")
        if captions is not None:
            return videos, find_captions(folder, captions)
        raw = {Path(p).as_posix(): text for p, text in zip(paths, texts, strict=True)}
        return videos, Captions(str(source), raw)
    return [VideoFile(source.name, source)], find_captions(source.parent, captions)


def _in_folder(folder: Path, leave_out: Path | None) -> list[VideoFile]:
    outside = leave_out.resolve() if leave_out is not None else None
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in VIDEO_SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        if path.is_file() and not (outside and outside != folder.resolve() and path.resolve().is_relative_to(outside)):
            found.append(VideoFile(relative.as_posix(), path))
    return sorted(found)
