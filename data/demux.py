"""Demuxing: a file is opened, one video stream chosen, and its frames decoded from the nearest restart.

Every failure of FFmpeg is told as an InputError with the name of the file. Seeking by time is a guess, so it counts
only if it lands on the very packet; otherwise all packets are read from the start, at 1 to 3 us each.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import av

from data.scan import Scan, broken
from data.unreadable import why_unreadable

Source = Path | bytes

DECODING = {"err_detect": "explode"}  # else a damaged frame is patched up in silence
SEEK_FROM = 64  # packets; fewer are read as fast as a seek
INDEXED = ("mov", "matroska")  # demuxers that seek by an index of packets


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """The container and its chosen video stream: the one with most pixels, then most frames, then the first."""
    name = name_of(source)
    with _container(source, name) as container, told(name):
        streams = candidates(container)
        if not streams:
            kinds = sorted({s.type for s in container.streams})
            why = None if kinds else why_unreadable(source)
            raise broken(name, why or f"no video stream (it has: {', '.join(kinds) or 'nothing'})")
        stream = max(streams, key=lambda s: (s.height * s.width, s.frames, -s.index))
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
        stream.codec_context.options = DECODING
        yield container, stream


def _container(source: Source, name: str) -> Any:
    try:
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        said = error.strerror or str(error)
        why = why_unreadable(source)
        raise broken(name, why or f"no kind of video that FFmpeg knows, or damaged ({said})") from error


@contextmanager
def told(name: str) -> Iterator[None]:
    """What FFmpeg and the system complain of, as an InputError."""
    try:
        yield
    except av.error.InvalidDataError as error:
        raise broken(name, f"damaged ({error.strerror})") from error
    except (av.error.FFmpegError, EOFError) as error:
        raise broken(name, getattr(error, "strerror", None) or str(error)) from error
    except OSError as error:
        raise broken(name, error.strerror or str(error)) from error


def candidates(container: Any) -> list[Any]:
    """The video streams of a container that can be decoded; cover pictures are none."""
    pictures = av.stream.Disposition.attached_pic
    return [
        s for s in container.streams.video if s.codec_context is not None and not s.disposition & pictures and s.width
    ]


def packets_from(source: Source, container: Any, stream: Any, scan: Scan, row: int, fresh: bool) -> Iterator[Any]:
    """The packets from the last restart at or before a row; `fresh` if none of the container was read yet."""
    first, number = scan.restart(row)
    if fresh and number < SEEK_FROM:
        yield from islice(container.demux(stream), number, None)
        return
    if scan.pts and container.format.name.startswith(INDEXED):
        with suppress(av.error.FFmpegError):
            container.seek(scan.pts[first], stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts == scan.pts[first]:
                yield packet
                yield from packets
                return
            if packet.pts is None or packet.pts > scan.pts[first]:
                break
    with opened(source) as (container, stream):
        yield from islice(container.demux(stream), number, None)


def frames_of(packets: Iterable[Any], name: str) -> Iterator[Any]:
    """Decoded, in presentation order; demuxing ends with an empty packet that flushes the decoder."""
    for packet in packets:
        for frame in packet.decode():
            yield whole(frame, name)


def whole(frame: Any, name: str) -> Any:
    """The frame, if it is not damaged."""
    if frame.is_corrupt:
        raise broken(name, f"a damaged frame near {float(frame.time or 0):.2f} s")
    return frame


def numbered(frames: Iterable[Any], scan: Scan, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """(row, frame) of frames that were decoded from a restart; -1 for rows outside [start, stop)."""
    if not scan.pts:  # then decoding began with row 0
        return enumerate(frames)
    row_of = {pts: row for row, pts in enumerate(scan.pts[start:stop], start)}
    return ((row_of.get(frame.pts, -1), frame) for frame in frames)


def in_rows(frames: Iterable[tuple[int, Any]], start: int, stop: int, name: str) -> Iterator[Any]:
    """Of (row, frame), those of rows [start, stop), every one.

    Raises:
        InputError: one is missing.
    """
    expected = start
    for row, frame in frames if start < stop else ():
        if row > expected:
            break
        if row == expected:
            yield frame
            expected += 1
            if expected == stop:
                return
    if expected < stop:
        raise broken(name, f"frame {expected} cannot be decoded")


def name_of(source: Source) -> str:
    """For messages."""
    return f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)
