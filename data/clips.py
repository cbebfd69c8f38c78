"""From a video file to clips: probe it, cut it into shots, store each as a small H.264 file.

A file that already is what we would write is kept byte for byte: no generation loss, and a hundred times as fast.
Everything else is decoded and encoded once, a frame at a time, so memory does not grow with length. Frames of a
variable rate are stored at their mean rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from data import cuts, video
from data.scores import Scores
from data.slices import Slices
from data.video import Video

LONGEST_GOP_COPIED = 48  # frames; a rank that needs one frame decodes at most this many
SMALLEST_SIDE = 16  # pixels


@dataclass(frozen=True)
class Clip:
    """Rows [start, stop) of a source file, stored as `data` of `frames` frames.

    Attributes:
        media: suffix of `data`.
        slices: of `data`; None if it can only be read whole.
        scores: measured while cutting.
        preview: a JPEG strip of a few frames for a person to look at.
    """

    start: int
    stop: int
    data: bytes
    frames: int
    fps: Fraction
    height: int
    width: int
    media: str = "mp4"
    slices: Slices | None = None
    scores: Scores | None = None
    preview: bytes | None = None


@dataclass(frozen=True)
class Clips:
    """What came of one file: how many shots it has, those that are kept, and why others are not."""

    shots: int
    kept: tuple[Clip, ...]
    rejected: tuple[str, ...]


def cut_into_clips(path: Path, min_frames: int = 8, short_side: int | None = None) -> Clips:
    """The clips of a file, one per shot.

    Args:
        path: a video in any format that FFmpeg reads.
        min_frames: shorter shots are rejected.
        short_side: shrink so that the shorter side has this many pixels; smaller videos stay as they are.

    Raises:
        InputError: the file is no video, or damaged.
    """
    found = video.probe(path)
    if min(found.height, found.width) < SMALLEST_SIDE:
        return Clips(0, (), (f"{found.height} x {found.width} pixels, smaller than {SMALLEST_SIDE}",))
    shots = cuts.shots(path, found)
    size = target_size(found.height, found.width, short_side)
    kept: list[Clip] = []
    short = [f"{start}:{stop}" for start, stop in shots if stop - start < min_frames]
    for start, stop in shots:
        if stop - start < min_frames:
            continue
        if len(shots) == 1 and size == (found.height, found.width) and may_copy(found):
            data = path.read_bytes()
        else:
            frames = video.stream_frames(path, start, stop, size=size, video=found)
            data = video.encode(frames, found.fps)
        kept.append(Clip(start, stop, data, stop - start, found.fps, *size))
    listed = ", ".join(short[:5]) + (" ..." if len(short) > 5 else "")
    reasons = (f"{len(short)} of {len(shots)} shots have fewer than {min_frames} frames: {listed}",) if short else ()
    return Clips(len(shots), tuple(kept), reasons)


def target_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) to store, both even, as 4:2:0 needs: 33 x 17 is scaled to 32 x 16."""
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    return round(height * scale) // 2 * 2, round(width * scale) // 2 * 2


def may_copy(found: Video) -> bool:
    """Whether a whole file can be stored unchanged: 8-bit 4:2:0 H.264 in mp4, upright, square pixels, short gops."""
    return (
        (found.container, found.codec, found.pixel_format) == ("mp4", "h264", "yuv420p")
        and found.video_streams == 1
        and found.rotation == 0
        and found.stored == (found.height, found.width)
        and found.scan.restarts[0] == (0, 0)
        and found.longest_gop <= LONGEST_GOP_COPIED
    )
