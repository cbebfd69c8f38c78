"""Video files as rows of frames: probe, decode any stretch exactly, encode reproducibly (PyAV, which is FFmpeg).

Frame numbers are positions in presentation order (time stamps sorted), so B-frames, a start time that is not zero and
variable rates do not matter:

    decode order      I0 P3 B1 B2 | I4 P7 B5 B6        packets, as demuxed
    rows                 0  1  2  3 |  4  5  6  7      time stamps, sorted
    decode(5, 7)                     [I4 P7 B5 B6]     starts at the last restart at or before row 5

Every packet is demuxed (1 to 3 us each, no decoding) and only what is needed is decoded: exact where seeking by time
is a guess. Everything runs on one thread, because the ranks of a machine share its cores; swscale's own default of
one thread per core costs six times the conversion of a small clip.

Frames are 8-bit RGB in display orientation with square pixels: rotation tags and pixel aspect ratios are applied,
mirror tags are not, more than 8 bits are rounded, HDR is not tone-mapped. A file that yields fewer frames than it
declares is an error, never a shorter clip.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from data.scan import Scan, broken, scan_packets
from parallel.errors import InputError

Frames = npt.NDArray[np.uint8]
Source = Path | bytes

GOP_FRAMES = 12  # of what we encode: a rank that needs one frame decodes at most eleven others
BT601, LIMITED_RANGE = 6, 1  # AVCOL_SPC_SMPTE170M, AVCOL_RANGE_MPEG: what players assume of untagged small video
# Exact arithmetic: without it colours drift by -1 of 255 at each conversion, and differ between CPUs.
EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Video:
    """What the probe found in the chosen stream.

    Attributes:
        height, width: in pixels as displayed (square pixels, rotation applied).
        stored: (height, width) as coded.
        rotation: counter-clockwise, in degrees, that displaying applies; a multiple of 90.
        video_streams: in the file, cover pictures not counted.
    """

    frames: int
    fps: Fraction
    height: int
    width: int
    stored: tuple[int, int]
    rotation: int
    container: str
    codec: str
    pixel_format: str
    video_streams: int
    scan: Scan = field(repr=False)

    @property
    def longest_gop(self) -> int:
        """The most frames from one restart to the next."""
        rows = [row for row, _ in self.scan.restarts] + [self.frames]
        return max(b - a for a, b in zip([0, *rows], rows, strict=False))


def probe(source: Source) -> Video:
    """Reads the headers, every packet's time stamp, and decodes the first frame.

    Of several video streams the one with most pixels is chosen, then the one with most frames, then the first; cover
    pictures do not count.

    Raises:
        InputError: no video stream, damaged or cut short.
    """
    with _opened(source) as (container, stream):
        scan = scan_packets(container.demux(stream), stream, _name(source))
        fps = stream.average_rate or stream.guessed_rate
        aspect = stream.sample_aspect_ratio or Fraction(1)
        codec, pixel_format = stream.codec_context.name, stream.codec_context.pix_fmt or "unknown"
        stored = (stream.height, stream.width)
        video_streams = len(_candidates(container))
        format_name = container.metadata.get("major_brand", "").strip() or container.format.name
        if container.format.name.startswith("mov") and format_name != "qt":
            format_name = "mp4"
    if not fps or fps <= 0:
        raise _broken(source, "the stream has no frame rate")
    with _opened(source) as (container, stream):
        rotation = next(
            (round(f.rotation / 90) * 90 % 360 for f in _decoded(container.demux(stream), stream, source)), None
        )
    if rotation is None:
        raise _broken(source, "no frame can be decoded")
    height, width = stored[0], max(1, round(stored[1] * aspect))
    if rotation % 180:
        height, width = width, height
    return Video(
        scan.frames,
        Fraction(fps),
        height,
        width,
        stored,
        rotation,
        format_name,
        codec,
        pixel_format,
        video_streams,
        scan,
    )


def decode(
    source: Source, start: int = 0, stop: int | None = None, step: int = 1, size: tuple[int, int] | None = None
) -> Frames:
    """Rows range(start, stop, step) as uint8 RGB [frames, height, width, 3]: bit for bit those rows of a full decode.

    Args:
        source: a path, or a whole file in memory.
        start: first row.
        stop: row after the last; None = the end.
        step: take every step-th row.
        size: (height, width) to scale to, each frame by itself; None = as displayed.

    Raises:
        InputError: the file is damaged, or does not have these rows.
    """
    rows = list(stream_frames(source, start, stop, step, size))
    if rows:
        return np.stack(rows)
    height, width = size or (0, 0)
    return np.zeros((0, height, width, 3), np.uint8)


def stream_frames(
    source: Source,
    start: int = 0,
    stop: int | None = None,
    step: int = 1,
    size: tuple[int, int] | None = None,
    video: Video | None = None,
) -> Iterator[Frames]:
    """As `decode`, one frame [height, width, 3] at a time, for clips larger than memory; `video` spares a scan."""
    with _opened(source) as (container, stream):
        packets: Iterable[Any] = container.demux(stream)
        if video is not None:
            scan = video.scan
        elif isinstance(source, bytes):
            packets = list(packets)
            scan = scan_packets(packets, stream, _name(source))
        else:
            with _opened(source) as (other, same):
                scan = scan_packets(other.demux(same), same, _name(source))
        stop = scan.frames if stop is None else stop
        if not (0 <= start <= stop <= scan.frames and step >= 1):
            raise _broken(source, f"rows {start} to {stop} of {scan.frames} frames were asked for")
        wanted = range(start, stop, step)
        if not wanted:
            return
        first = scan.restart(start)
        row_of = {pts: row for row, pts in enumerate(scan.pts[start : wanted[-1] + 1], start)}
        rgb = _Rgb(stream, size)
        at = 0  # how many of `wanted` came out
        feed = (p for number, p in enumerate(packets) if number >= first)
        for counted, frame in enumerate(_decoded(feed, stream, source)):
            row = row_of.get(frame.pts, -1) if scan.pts else counted
            if row != wanted[at]:
                if row > wanted[at]:
                    break
                continue
            yield rgb(frame)
            at += 1
            if at == len(wanted):
                return
        raise _broken(source, f"frame {wanted[at]} of {scan.frames} cannot be decoded")


def encode(frames: Iterable[Frames], fps: Fraction, crf: int = 17) -> bytes:
    """An H.264 mp4 of RGB frames [height, width, 3], the same bytes for the same frames with the same libraries.

    Odd sizes lose their last row or column, because 4:2:0 needs even ones. One thread, since x264's decisions depend on
    the number of threads. About 65 frames of 1280 x 720 a second on one core.

    Raises:
        InputError: there is no frame, or it is smaller than 2 x 2.
    """
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = None
        rgb = VideoReformatter()
        for row, frame in enumerate(frames):
            height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
            if stream is None:
                if min(height, width) < 2:
                    raise InputError(
                        "a frame has at least 2 x 2 pixels", f"{frame.shape[0]} x {frame.shape[1]}", "leave it out"
                    )
                stream = _h264(container, fps, height, width, crf)
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            image = rgb.reformat(
                image,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.AREA | EXACT,
                threads=1,
            )
            image.pts, image.time_base = row, 1 / fps
            container.mux(stream.encode(image))
        if stream is None:
            raise InputError("a clip has frames", "none", "leave it out")
        container.mux(stream.encode(None))
    return out.getvalue()


def _h264(container: Any, fps: Fraction, height: int, width: int, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    context = stream.codec_context
    context.thread_count, context.gop_size, context.time_base = 1, GOP_FRAMES, 1 / fps
    context.colorspace, context.color_range = BT601, LIMITED_RANGE
    # x264's macroblock tree reads memory that nobody wrote: one 32 x 32 clip in ten had other bytes each time
    stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
    return stream


class _Rgb:
    """Converts, scales and turns one frame; keeps swscale's tables, which cost more than a small conversion."""

    def __init__(self, stream: Any, size: tuple[int, int] | None) -> None:
        self.reformatter = VideoReformatter()
        self.aspect = stream.sample_aspect_ratio or Fraction(1)
        self.size = size

    def __call__(self, frame: Any) -> Frames:
        turns = round(frame.rotation / 90) % 4
        if self.size is None:
            height, width = frame.height, max(1, round(frame.width * self.aspect))
        else:
            height, width = self.size[::-1] if turns % 2 else self.size
        # area averages when it shrinks but blocks when it grows
        scaling = Interpolation.BICUBIC if height > frame.height or width > frame.width else Interpolation.AREA
        image = self.reformatter.reformat(frame, width, height, "rgb24", interpolation=scaling | EXACT, threads=1)
        rgb = np.asarray(image.to_ndarray(), np.uint8)
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """The container and its chosen video stream, with every failure of FFmpeg told as an InputError."""
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            streams = _candidates(container)
            if not streams:
                kinds = sorted({s.type for s in container.streams})
                raise _broken(source, f"no video stream (it has: {', '.join(kinds) or 'nothing'})")
            stream = max(streams, key=lambda s: (s.height * s.width, s.frames, -s.index))
            stream.codec_context.thread_count = 1
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "explode"}  # else a damaged frame is patched up in silence
            yield container, stream
    except (av.error.FFmpegError, EOFError) as error:
        raise _broken(source, getattr(error, "strerror", None) or str(error)) from error
    except OSError as error:
        raise _broken(source, error.strerror or str(error)) from error


def _candidates(container: Any) -> list[Any]:
    pictures = av.stream.Disposition.attached_pic
    return [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition & pictures and s.width
    ]


def _decoded(packets: Iterable[Any], stream: Any, source: Source) -> Iterator[Any]:
    """Frames in presentation order; demuxing ends with an empty packet that flushes the decoder."""
    for packet in packets:
        for frame in packet.decode():
            if frame.is_corrupt:
                raise _broken(source, f"a damaged frame near {float(frame.time or 0):.2f} s")
            yield frame


def _name(source: Source) -> str:
    return f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)


def _broken(source: Source, reason: str) -> InputError:
    return broken(_name(source), reason)
