"""Demuxing: a file is opened, one video stream chosen, and its frames decoded from the nearest restart.

Every failure of FFmpeg is told as an InputError with the name of the file. Seeking by time is a guess, so it counts
only if it lands on the very packet; otherwise all packets are read from the start, at 1 to 3 us each.

Of several video streams the film is meant, which is one of many frames: a cover or a title that is not marked as one
has a single frame, whatever its size. Of those with at least a quarter as many frames as the longest, the one with most
pixels is chosen, then the one with most frames, then the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from typing import Any

import av
from av.format import Flags

from data.containers import gif
from data.containers.edit_lists import why_edited
from data.containers.file_diagnosis import PICTURE, PICTURE_BRANDS, why_unreadable
from data.containers.joined_files import later_streams, second_file, why_joined
from data.containers.open_media import DECODER, MOST_PIXELS, is_refused, open_container
from data.containers.open_media import Source as Source
from data.containers.packet_index import (
    AGAIN,
    CONVERT,
    WITH_ALPHA,
    Scan,
    broken,
    by_output,
    by_time,
    damaged,
    read_headers,
)
from data.containers.truncation import why_cut
from parallel.errors import InputError

DECODING = {"err_detect": "explode", **DECODER}  # else a damaged frame is patched up in silence
SEEK_FROM = 64  # packets; fewer are read as fast as a seek
INDEXED = ("mov", "matroska")  # demuxers that seek by an index of packets
# decoders that take a first picture of less than the header's height for one of two fields
LEARNS_SIZE = ("mjpeg",)
LISTED = ("mov", "avi")  # demuxers whose index has every packet of a file from the beginning
TIMELESS = ("avi",)  # formats without time stamps, beside those that FFmpeg marks so
NO_PICTURES = "give the file that has the pictures, or leave it out"
SPLIT = "give it pixels of one shape (ffmpeg -i IN -vf scale=W:H,setsar=1 OUT.mp4), or split it there"
FILM_SHARE = 4  # a film has at least one in so many frames of the longest stream


class RowMissingError(InputError):
    """Decoding did not give a row where its time stamp puts it."""


@contextmanager
def opened(source: Source, index: int | None = None) -> Iterator[tuple[Any, Any]]:
    """The container and a video stream of it: the one of this index, or the film."""
    name = name_of(source)
    with _container(source, name) as container, told(name):
        brand = container.metadata.get("major_brand", "").encode()
        if brand in PICTURE_BRANDS:
            raise broken(name, f"no video but a picture ({PICTURE_BRANDS[brand]})", PICTURE)
        streams = candidates(container)
        if not streams:
            raise broken(name, *_why_no_film(source, container))
        if index is None and len(streams) > 1:
            index = _film(streams, _lengths(source, container, streams))
        stream = streams[0] if index is None else container.streams[index]
        if stream.height * stream.width > MOST_PIXELS:
            raise broken(
                name,
                f"{stream.width} x {stream.height} pixels, more than {MOST_PIXELS:,}",
                "scale it down, or leave it out",
            )
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
        stream.codec_context.options = DECODING
        yield container, stream


def _why_no_film(source: Source, container: Any) -> tuple[str, str]:
    """Why no stream of a container is a film, and what to do."""
    videos = container.streams.video
    if any(s.disposition & av.stream.Disposition.attached_pic for s in videos):
        return "no video stream, only a sound and its cover", NO_PICTURES
    with suppress(OSError):  # whoever reads it says why
        if (cut := why_cut(source)) is not None:
            return cut, AGAIN
    if videos:
        codec = next((s.codec_context.name for s in videos if s.codec_context is not None), "an unknown codec")
        return f"its video ({codec}) cannot be decoded, or tells no size, or more than {MOST_PIXELS:,} pixels", CONVERT
    kinds = sorted({s.type for s in container.streams})
    why = None if set(kinds) & {"audio", "subtitle"} else why_unreadable(source)
    return why or (f"no video stream (it has: {', '.join(kinds) or 'nothing'})", NO_PICTURES)


def _film(streams: Sequence[Any], lengths: Counter[int]) -> int:
    """The index of the stream that is meant, of those with so many frames."""
    longest = max(lengths[s.index] for s in streams)
    films = [s for s in streams if FILM_SHARE * lengths[s.index] >= longest]
    return int(max(films, key=lambda s: (s.height * s.width, lengths[s.index], -s.index)).index)


def _lengths(source: Source, container: Any, streams: Sequence[Any]) -> Counter[int]:
    """Packets of each stream, by its index: out of the file's own, or for want of one by reading them all."""
    if container.format.name.startswith(LISTED) and all(s.frames for s in streams):
        return Counter({s.index: len(s.index_entries) for s in streams})
    with _container(source, name_of(source)) as other:
        packets = other.demux([other.streams[s.index] for s in streams])
        return Counter(packet.stream_index for packet in packets if packet.size)


def _container(source: Source, name: str) -> Any:
    try:
        return open_container(source)
    except (av.error.FFmpegError, OSError) as error:
        said = error.strerror or str(error)
        cut: str | None = None
        with suppress(OSError):  # it is said below
            cut = why_cut(source)
        why = why_unreadable(source) or (None if cut is None else (cut, AGAIN))
        kind = "that is read here" if is_refused(error) else "that FFmpeg knows"
        raise broken(name, *(why or (f"no kind of video {kind}, or damaged ({said})", CONVERT))) from error


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


def scan_stream(source: Source, container: Any, stream: Any, counted: bool = False) -> Scan:
    """The rows of a stream, of which nothing was read yet; all its packets are read.

    Args:
        source, container, stream: as `opened`.
        counted: decode it to see what comes out, even if its time stamps seem to tell the rows.

    Raises:
        InputError: packets are missing or damaged, or there is nothing to start from.
    """
    name = name_of(source)
    made_up = bool(container.format.flags & Flags.no_timestamps.value) or container.format.name in TIMELESS
    if (reason := why_cut(source)) is not None:
        raise broken(name, reason, AGAIN)
    if (joined_at := second_file(source)) is not None:
        raise broken(name, *why_joined(joined_at))
    mov = container.format.name.startswith("mov")
    if mov and (reason := why_edited(source)) is not None:
        raise broken(name, reason, CONVERT)
    headers = read_headers(container.demux(stream), stream, made_up, name)
    if headers.suspects and (number := damaged(headers, later_streams(source))) is not None:
        raise broken(name, f"packet {number} is damaged or cut short")
    if mov and len(headers.pts) < len(stream.index_entries):
        raise broken(name, f"cut short: {len(headers.pts)} of {len(stream.index_entries)} frames are there", AGAIN)
    if container.format.name == "gif":
        headers.pts, headers.keys = list(gif.shown_at(headers.durations)), headers.keys[:1]
        found: Scan | None = by_output(headers, [n for n, shown in enumerate(headers.shown) if shown], name)
    else:
        found = None if counted else by_time(headers, name)
    if found is None:
        first = headers.restarts[0]
        with opened(source, stream.index) as (again, same):
            packets = _numbered(islice(again.demux(same), first, None), first)
            frames = frames_of(packets, name, decoder(same) if headers.alpha else None)
            found = by_output(headers, [frame.pts for frame in frames], name)
    return replace(found, stream=stream.index, alpha_layer=headers.alpha_layer)


def packets_from(source: Source, container: Any, stream: Any, scan: Scan, row: int, fresh: bool) -> Iterator[Any]:
    """The packets from the last restart at or before a row; `fresh` if none of the container was read yet."""
    first, number = scan.restart(row)
    if number and stream.codec_context.name in LEARNS_SIZE:
        yield from _behind_the_first(
            source, scan, scan.pts[first] if scan.numbers is None and scan.pts else None, number
        )
        return
    if scan.numbers is not None:
        with opened(source, scan.stream) as (container, stream):
            yield from _numbered(islice(container.demux(stream), number, None), number)
        return
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
    with opened(source, scan.stream) as (container, stream):
        yield from islice(container.demux(stream), number, None)


def _behind_the_first(source: Source, scan: Scan, pts: int | None, number: int) -> Iterator[Any]:
    """The first packet, which shows a decoder in which size the film begins, and those from `number`, at `pts`, on."""
    with opened(source, scan.stream) as (container, stream):
        if pts is not None and number >= SEEK_FROM and container.format.name.startswith(INDEXED):
            yield next(container.demux(stream))
            with suppress(av.error.FFmpegError):
                container.seek(pts, stream=stream)
            packets = container.demux(stream)
            packet = next(packets)
            if packet.is_keyframe and packet.pts == pts:
                yield packet
                yield from packets
                return
    with opened(source, scan.stream) as (container, stream):
        packets = container.demux(stream) if scan.numbers is None else _numbered(container.demux(stream), 0)
        yield next(packets)
        yield from islice(packets, number - 1, None)


def _numbered(packets: Iterable[Any], first: int) -> Iterator[Any]:
    """Packets with their numbers for time stamps, which the decoder hands through to the frames."""
    for number, packet in enumerate(packets, first):
        if packet.size:
            packet.pts = packet.dts = number
        yield packet


def decoder(stream: Any) -> Any:
    """A decoder that reads the transparencies beside the pictures of a stream.

    Raises:
        InputError: there is none.
    """
    codec = WITH_ALPHA[stream.codec_context.name]
    try:
        context = av.CodecContext.create(codec, "r")
    except av.codec.codec.UnknownCodecError as error:
        raise broken(
            stream.container.name, f"what is transparent needs FFmpeg's {codec}, which is not here", CONVERT
        ) from error
    context.extradata, context.thread_count, context.options = stream.codec_context.extradata, 1, DECODING
    return context


def frames_of(packets: Iterable[Any], name: str, decoder: Any = None) -> Iterator[Any]:
    """Decoded, in presentation order; demuxing ends with an empty packet that flushes the decoder.

    `decoder` is another than that of their stream.
    """
    aspect: Fraction | None = None
    for packet in packets:
        if not packet.size and packet.dts is not None:
            continue  # the picture before it, once more; a decoder would take it for the end
        for frame in packet.decode() if decoder is None else decoder.decode(packet if packet.size else None):
            yield whole(frame, name)
            aspect = aspect or _aspect(packet)
        # a decoded frame does not tell of which shape its pixels are; the decoder says what holds from here on
        if aspect and packet.is_keyframe and (now := _aspect(packet)) != aspect:
            old, new = (f"{a.numerator}:{a.denominator}" for a in (aspect, now))
            raise broken(name, f"the shape of its pixels changes from {old} to {new} within the film", SPLIT)


def _aspect(packet: Any) -> Fraction:
    """Width of a pixel whose height is 1, as the decoder of a packet has it by now."""
    return packet.stream.codec_context.sample_aspect_ratio or Fraction(1)


def whole(frame: Any, name: str) -> Any:
    """The frame, if it is not damaged."""
    if frame.is_corrupt:
        raise broken(name, f"a damaged frame near {float(frame.time or 0):.2f} s")
    return frame


def numbered(frames: Iterable[Any], scan: Scan, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """(row, frame) of frames that were decoded from a restart; -1 for rows outside [start, stop)."""
    if not scan.keys:  # then decoding began with row 0
        return enumerate(frames)
    row_of = {key: row for row, key in enumerate(scan.keys[start:stop], start)}
    return ((row_of.get(frame.pts, -1), frame) for frame in frames)


def in_rows(frames: Iterable[tuple[int, Any]], start: int, stop: int, name: str) -> Iterator[Any]:
    """Of (row, frame), those of rows [start, stop), every one.

    Raises:
        RowMissingError: one is missing.
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
        missing = broken(name, f"frame {expected} cannot be decoded")
        raise RowMissingError(missing.rule, missing.value, missing.remedy)


def name_of(source: Source) -> str:
    """For messages."""
    return f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)
