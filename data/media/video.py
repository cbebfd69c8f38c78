"""Video files as rows of frames: probe, decode any stretch exactly (PyAV, which is FFmpeg).

Frame numbers are positions in presentation order (time stamps sorted), so B-frames, a start time that is not zero and
variable rates do not matter:

    decode order      I0 P3 B1 B2 | I4 P7 B5 B6        packets, as demuxed
    rows                 0  1  2  3 |  4  5  6  7      time stamps, sorted
    decode(5, 7)                     [I4 P7 B5 B6]     starts at the last restart at or before row 5

Only what is needed is decoded, on one thread, because the ranks of a machine share its cores. Clips that we stored are
read without FFmpeg's demuxer (`data.mp4`): 8 frames of 32 x 32 take 0.4 ms instead of 0.8.

Frames are 8-bit RGB in display orientation with square pixels (`data.media.color`), deinterlaced if they have to be. A
file that yields fewer frames than it declares is an error, never a shorter clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from data.containers import fragmented_mp4
from data.containers.demux import (
    DECODING,
    Source,
    candidates,
    decoder,
    frames_of,
    in_rows,
    name_of,
    numbered,
    opened,
    packets_from,
    scan_stream,
    told,
    whole,
)
from data.containers.packet_index import RESTAMP, Scan, broken
from data.media.color import UPRIGHT, Frames, Rgb, Turn, check_colours, displayed, has_alpha, turn_of
from data.media.deinterlace import INTERLACED, deinterlaced
from data.media.frame_rate import Stretch, rate_of, stretches
from data.media.h264 import GOP_FRAMES, encode
from data.media.image_sequence import PictureSequence, sequence_of
from data.media.timeline import Timeline, timeline_of

SLOWEST, FASTEST = Fraction(1, 3600), 10_000  # frames a second; beyond, time stamps are damaged
PICTURES, RGB = "pictures", "rgb24"  # container and pixel format of what is no video file
LAY_OVER = "lay it over a background, or write it as ProRes 4444 or VP9"
PADDING = bytes(64)  # AV_INPUT_BUFFER_PADDING_SIZE: decoders may read so far past a packet

__all__ = ["GOP_FRAMES", "Frames", "Source", "Video", "decode", "decode_slices", "encode", "pictures", "probe"]
__all__ += ["stream_frames"]


@dataclass(frozen=True)
class Video:
    """What the probe found in the chosen stream.

    Attributes:
        fps: the rate of its frames if they are even, else of the usual one (`data.media.frame_rate`).
        even: whether the frames follow an even beat.
        begin: seconds from where a player begins to the first frame.
        height, width: in pixels as displayed (square pixels, upright).
        stored: (height, width) as coded.
        aspect: width of a stored pixel, if its height is 1.
        turn: from stored to upright.
        time_base: seconds, the unit of the time stamps.
        video_streams: in the file, cover pictures not counted.
    """

    frames: int
    fps: Fraction
    even: bool
    begin: float
    height: int
    width: int
    stored: tuple[int, int]
    aspect: Fraction
    turn: Turn
    interlaced: bool
    time_base: Fraction
    container: str
    codec: str
    pixel_format: str
    video_streams: int
    scan: Scan = field(repr=False)

    @property
    def longest_gop(self) -> int:
        """The most frames from one restart to the next."""
        rows = [row for row, _ in self.scan.restarts] + [self.frames]
        return max(b - a for a, b in pairwise([0, *rows]))

    def stretches(self) -> list[Stretch]:
        """All rows as stretches of one rate each, their seconds counted from where a player begins."""
        if self.even:
            return [Stretch(range(self.frames), self.fps, self._seconds(), True)]
        found = stretches(self.scan.pts, self.time_base, None)
        return [replace(one, seconds=self.begin + one.seconds) for one in found]

    def timeline(self) -> Timeline:
        """When each row is shown."""
        return timeline_of(self._seconds(), float(self.fps))

    def _seconds(self) -> npt.NDArray[np.float64]:
        """[frames] when each row is shown; if no time stamp tells it, at its beat."""
        stamps = np.asarray(self.scan.pts, np.int64)
        if not len(stamps):
            return np.arange(self.frames) / float(self.fps)
        return np.asarray(self.begin + (stamps - stamps[0]) * float(self.time_base))


def probe(source: Source, counted: bool = False, fps: Fraction | None = None) -> Video:
    """Reads the headers, every packet's time stamp, and decodes the first frame.

    Of several video streams the film is meant (`data.containers.demux`); cover pictures do not count.

    Args:
        source: a path, or a whole file in memory.
        counted: decode all frames to see which there are, even if time stamps seem to tell it.
        fps: frames a second of a folder of numbered frames.

    Raises:
        InputError: no video stream, damaged or cut short, or its frames cannot be shown as they were meant.
    """
    name = name_of(source)
    if (pictures := sequence_of(source, fps)) is not None:
        return _probe_pictures(pictures)
    with opened(source) as (container, stream):
        found = scan_stream(source, container, stream, counted)
        packets = packets_from(source, container, stream, found, 0, fresh=False)
        first = next(frames_of(packets, name, decoder(stream) if found.alpha else None), None)
        if first is None:
            raise broken(name, "no frame can be decoded")
        check_colours(first, name)
        if found.alpha_layer and not has_alpha(first):
            raise broken(name, "what is transparent is a layer that this FFmpeg does not read", LAY_OVER)
        turn, aspect = turn_of(first, name), stream.sample_aspect_ratio or Fraction(1)
        height, width = displayed(first.height, first.width, aspect, turn)
        fps, even = rate_of(found.pts, stream.time_base, stream.average_rate or stream.guessed_rate)
        if not SLOWEST <= fps <= FASTEST:
            raise broken(name, f"{float(fps):.3g} frames a second by its time stamps", RESTAMP)
        kind = container.metadata.get("major_brand", "").strip() or container.format.name
        return Video(
            frames=found.frames,
            fps=fps,
            even=even,
            begin=_begin(container, stream, found),
            height=height,
            width=width,
            stored=(first.height, first.width),
            aspect=aspect,
            turn=turn,
            interlaced=stream.codec_context.field_order in INTERLACED,
            time_base=stream.time_base,
            container="mp4" if container.format.name.startswith("mov") and kind != "qt" else kind,
            codec=stream.codec_context.name,
            pixel_format=first.format.name,
            video_streams=len(candidates(container)),
            scan=found,
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
    if isinstance(source, bytes) and (clip := fragmented_mp4.found(source)):
        found = _decode_clip(source, clip, start, clip.rows.stop if stop is None else stop, step, size)
        if found is not None:
            return found
    with _reading(source, None) as reading:
        stop = reading.scan.frames if stop is None else stop
        wanted = _wanted(range(reading.scan.frames), start, stop, step, reading.name)
        rgb = Rgb(reading.name, reading.aspect, size)
        return _stacked(reading.pictures(start, _end(wanted)), wanted, rgb)


def decode_slices(
    data: bytes, first_row: int, start: int, stop: int, step: int = 1, size: tuple[int, int] | None = None
) -> Frames:
    """As `decode`, of the header of a stored clip and a run of its slices, of which the first begins with `first_row`.

    Raises:
        InputError: the data is damaged, begins with another row, or does not have these rows.
    """
    clip = fragmented_mp4.read(data)
    if clip.rows.start != first_row:
        raise broken(name_of(data), f"the first slice begins with row {clip.rows.start}, not {first_row}")
    frames = _decode_clip(data, clip, start, stop, step, size)
    if frames is None:
        raise broken(name_of(data), "it is interlaced, which slices cannot be")
    return frames


def stream_frames(
    source: Source,
    start: int = 0,
    stop: int | None = None,
    step: int = 1,
    size: tuple[int, int] | None = None,
    video: Video | None = None,
) -> Iterator[Frames]:
    """As `decode`, one frame [height, width, 3] at a time, for clips larger than memory; `video` spares a scan."""
    with _reading(source, video) as reading:
        stop = reading.scan.frames if stop is None else stop
        wanted = _wanted(range(reading.scan.frames), start, stop, step, reading.name)
        size = size or ((video.height, video.width) if video else None)
        rgb = Rgb(reading.name, reading.aspect, size)
        frames = reading.pictures(start, _end(wanted))
        yield from (rgb(frame) for row, frame in enumerate(frames, start) if row in wanted)


def pictures(source: Source, video: Video) -> Iterator[Any]:
    """All decoded frames, deinterlaced if need be, before they are converted.

    Raises:
        InputError: one of them cannot be decoded.
    """
    with _reading(source, video) as reading:
        yield from reading.pictures(0, video.frames)


def _probe_pictures(pictures: PictureSequence) -> Video:
    (height, width), fps = next(pictures.read(0, 1)).shape[:2], 1 / pictures.time_base
    rate, even = rate_of(pictures.shown_at, pictures.time_base, fps if fps <= FASTEST else None)
    rows = len(pictures.shown_at)
    return Video(
        frames=rows,
        fps=rate,
        even=even,
        begin=0.0,
        height=height,
        width=width,
        stored=(height, width),
        aspect=Fraction(1),
        turn=UPRIGHT,
        interlaced=False,
        time_base=pictures.time_base,
        container=PICTURES,
        codec=pictures.kind,
        pixel_format=RGB,
        video_streams=1,
        scan=Scan(pictures.shown_at, tuple((row, row) for row in range(rows)), rows),
    )


@dataclass(frozen=True)
class _ReadingPictures:
    """As `_Reading`, of pictures one after the other."""

    name: str
    scan: Scan
    sequence: PictureSequence
    aspect: Fraction | None = None

    def pictures(self, start: int, stop: int) -> Iterator[Any]:
        """The frames of rows [start, stop)."""
        for frame in self.sequence.read(start, stop):
            yield av.VideoFrame.from_ndarray(frame, format=RGB)


@dataclass(frozen=True)
class _Reading:
    """An open file; `fresh` if none of it was read yet."""

    source: Source
    name: str
    container: Any
    stream: Any
    scan: Scan
    interlaced: bool
    fresh: bool

    @property
    def aspect(self) -> Fraction | None:
        """Width of a stored pixel, if its height is 1."""
        return self.stream.sample_aspect_ratio  # type: ignore[no-any-return]

    def pictures(self, start: int, stop: int) -> Iterator[Any]:
        """The decoded frames of rows [start, stop)."""
        if not self.interlaced:
            yield from self._decoded(start, stop)
            return
        first, last = max(0, start - 1), min(self.scan.frames, stop + 1)  # which deinterlacing looks at
        for row, frame in zip(range(first, last), deinterlaced(self._decoded(first, last)), strict=True):
            if start <= row < stop:
                yield frame

    def _decoded(self, start: int, stop: int) -> Iterator[Any]:
        packets = packets_from(self.source, self.container, self.stream, self.scan, start, self.fresh)
        made = frames_of(packets, self.name, decoder(self.stream) if self.scan.alpha else None)
        frames = numbered(made, self.scan, start, stop)
        return in_rows(frames, start, stop, self.name)


@contextmanager
def _reading(source: Source, video: Video | None) -> Iterator[_Reading | _ReadingPictures]:
    name = name_of(source)
    pictures = sequence_of(source) if video is None or video.container == PICTURES else None
    if pictures is not None:
        yield _ReadingPictures(name, (video or _probe_pictures(pictures)).scan, pictures)
        return
    with opened(source, video.scan.stream if video else None) as (container, stream):
        found = video.scan if video else scan_stream(source, container, stream)
        interlaced = video.interlaced if video else stream.codec_context.field_order in INTERLACED
        yield _Reading(source, name, container, stream, found, interlaced, fresh=video is not None)


def _decode_clip(
    data: bytes, clip: fragmented_mp4.Clip, start: int, stop: int, step: int, size: tuple[int, int] | None
) -> Frames | None:
    """Of a stored clip, or of some slices of it, straight from its boxes; None if it is interlaced."""
    name = name_of(data)
    wanted = _wanted(clip.rows, start, stop, step, name)
    if not wanted:
        return _empty(size)
    context = av.CodecContext.create("h264", "r")
    context.extradata, context.options, context.thread_count = clip.extradata, DECODING, 1
    context.reorder_depth = clip.reorder_depth
    context.color_primaries, context.color_trc, context.colorspace, context.color_range = clip.colour
    with told(name):
        frames = in_rows(_clip_frames(data, clip, start, context, name), start, _end(wanted), name)
        first = next(frames)
        if first.interlaced_frame:
            return None
        return _stacked(chain([first], frames), wanted, Rgb(name, context.sample_aspect_ratio, size))


def _clip_frames(
    data: bytes, clip: fragmented_mp4.Clip, start: int, context: Any, name: str
) -> Iterator[tuple[int, Any]]:
    """(row, frame) from the fragment on that holds row `start`; the decoder hands rows through as time stamps."""
    view = memoryview(data + PADDING)
    for first, last, row in clip.samples(data, start):
        packet = av.Packet(view[first:last])
        packet.pts = row
        yield from ((frame.pts, whole(frame, name)) for frame in context.decode(packet))
    yield from ((frame.pts, whole(frame, name)) for frame in context.decode(None))


def _stacked(frames: Iterator[Any], wanted: range, rgb: Rgb) -> Frames:
    """RGB [len(wanted), height, width, 3] of the wanted ones of decoded frames, of which the first is wanted[0]."""
    out: Frames | None = None
    for number, frame in enumerate(frames):
        if out is None:
            out = np.empty((len(wanted), *rgb.start(frame), 3), np.uint8)
        if number % wanted.step == 0:
            rgb(frame, out[number // wanted.step])
    return _empty(rgb.size) if out is None else out


def _wanted(there: range, start: int, stop: int, step: int, name: str) -> range:
    """The rows range(start, stop, step), if they are there."""
    if there.start <= start <= stop <= there.stop and step >= 1:
        return range(start, stop, step)
    what = f"of {there.stop} frames" if there.start == 0 else f"of frames {there.start} to {there.stop}"
    raise broken(name, f"rows {start} to {stop} {what} were asked for")


def _begin(container: Any, stream: Any, scan: Scan) -> float:
    """Seconds from where a player begins, which is with the first stream of the file, to row 0.

    Sound that begins a little before zero is what its encoder put there to begin with, and no beginning.
    """
    if not scan.pts:
        return 0.0
    first = float(scan.pts[0] * stream.time_base)
    began = first if container.start_time is None else max(0.0, container.start_time / av.time_base)
    return max(0.0, first - began)


def _end(wanted: range) -> int:
    """The row after the last."""
    return wanted[-1] + 1 if wanted else wanted.start


def _empty(size: tuple[int, int] | None) -> Frames:
    return np.zeros((0, *(size or (0, 0)), 3), np.uint8)
