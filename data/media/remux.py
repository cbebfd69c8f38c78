"""Remuxing: rows of an H.264 file become a stored clip without being encoded again, packet by packet.

    decode order     I0 P3 B1 B2 | I4 P7 B5 B6 | I8 ...
    rows             0  3  1  2     4  7  5  6    8
    remux(4, 8)                   [ I4 P7 B5 B6 ]            the very bytes, time stamps from 0, a fragment per restart
    remux(4, 6)                   [ I4 P7 B5               not exact: B5 needs P7, which is row 7

It is exact if the first row is a restart and the packets of all the rows come in one run with no other between them.
Then the frames are bit for bit those of the source, at the price of reading them. The parameter sets must lie in the
header alone, where every slice finds them.
"""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import islice
from typing import Any

import av

from data.containers import fragmented_mp4
from data.containers.demux import Source, name_of, opened, packets_from
from data.containers.packet_index import broken, units
from data.media.video import Video

PARAMETER_SETS = {7, 8, 13, 15}  # ITU-T H.264, table 7-1


def remux(source: Source, found: Video, start: int, stop: int, fps: Fraction | None = None) -> bytes | None:
    """Rows [start, stop) as a fragmented mp4 of the same packets, audio left out; None if that would not be exact.

    Args:
        source: an H.264 file.
        found: what `probe` says of it.
        start, stop: of the rows.
        fps: frames per second to write; None: as found.

    Raises:
        InputError: packets are missing.
    """
    scan = found.scan
    if found.codec != "h264" or not scan.pts or scan.numbers is not None or scan.restart(start)[0] != start:
        return None
    with opened(source, scan.stream) as (container, stream):
        extradata = stream.codec_context.extradata or b""
        if extradata[:1] != b"\x01":
            return None  # start codes in place of lengths (ISO/IEC 14496-15): the muxer would rewrite the packets
        if (stream.height, stream.width) != found.stored:
            return None  # the container crops what the stream holds
        packets = list(islice(packets_from(source, container, stream, scan, start, True), stop - start))
        row_of = {pts: row for row, pts in enumerate(scan.pts[start:stop])}
        if not all(packet.pts in row_of and _plain(packet, extradata) for packet in packets):
            return None
        if len(packets) < stop - start:
            raise broken(name_of(source), f"{len(packets)} of the {stop - start} packets from row {start} are there")
        rows = [row_of[packet.pts] for packet in packets]
        restarts = {row - start for row, _ in scan.restarts}
        return _muxed(stream, packets, rows, restarts, fps or found.fps)


def _plain(packet: Any, extradata: bytes) -> bool:
    """Whether a packet is shown and can be decoded with the parameter sets of the header."""
    if packet.is_discard or packet.has_sidedata("new_extradata"):
        return False
    data = bytes(packet)
    return all(
        first < last <= len(data) and (data[first] & 31 not in PARAMETER_SETS or data[first:last] in extradata)
        for first, last in units(data, extradata)
    )


def _muxed(template: Any, packets: list[Any], rows: list[int], restarts: set[int], fps: Fraction) -> bytes:
    """A packet of row r is shown at r beats, and decoded as late as its place allows."""
    out = io.BytesIO()
    depth = max(number - row for number, row in enumerate(rows))
    with av.open(out, "w", format="mp4", options=fragmented_mp4.WRITING) as container:
        stream = container.add_stream_from_template(template)
        stream.time_base = 1 / fps
        for number, (packet, row) in enumerate(zip(packets, rows, strict=True)):
            packet.stream, packet.time_base = stream, 1 / fps
            packet.pts, packet.dts, packet.duration = row, number - depth, 1
            packet.is_keyframe = row in restarts
            container.mux(packet)
    return out.getvalue()
