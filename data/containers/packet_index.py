"""`Scan`: where decoding may begin, and which packet is which row.

    time stamps tell            rows are time stamps, sorted: packet headers alone, 1 to 3 us a packet
    time stamps do not tell     rows are decode output in order: the stream is decoded once, and packets are numbered

A packet need not be a frame: it may belong to an edit that is not shown, be half of an interlaced picture, or say
"as before", with some bytes or none. And time stamps need not be the file's: AVI and raw streams have none, and FFmpeg
makes them up in the order of decoding, which is not that of B-frames.

Files put end to end (`cat a.ts b.ts`) are one stream whose counters and time stamps begin again: where decoding time
goes back, another part begins, and its time stamps are moved to go on after those before it. (In MP4 an edit list does
that, and tells the times.) FFmpeg says "damaged" of the packet before a jump of the counters of MPEG-TS, whether bytes
are missing there or a new file begins; so what it says counts only if none does (`data.containers.joined_files`).

Only restarts that clear the decoder's memory count (an H.264 recovery point does not), so that decoding from one gives
the very pixels of a full decode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from data.containers import gif
from data.containers.hevc import has_alpha_layer
from data.containers.reference_frames import References
from parallel.errors import InputError

IDR = 5  # ITU-T H.264, table 7-1
MOST_OFF = 16  # frames
REORDERED = 32  # frames: H.264 and HEVC put a frame at most 16 before its turn
HELD_BACK = 2  # packets from the one that FFmpeg says is damaged to the first of a new file, one of them in its parser
ALPHA = 1  # BlockAddID of a second picture of transparencies (WebM's alpha guidelines)
# what to do about a file; `ffmpeg -i IN OUT.mp4` decodes IN and encodes what it sees
EXPORT = "export it again from its source, or let ffmpeg -i IN OUT.mp4 patch what is damaged, or leave it out"
AGAIN = "copy or download it again, or leave it out"
RESTAMP = "let ffmpeg -i IN OUT.mp4 write new time stamps, or leave it out"
CONVERT = "convert it with a program that plays it, or leave it out"
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that read it


# of codecs some of whose packets are shown as no picture: VP8 by RFC 6386, 9.1
HAVE_PICTURES: dict[str, Callable[[memoryview], bool]] = {
    "vp8": lambda packet: bool(packet[0] & 0x10),
    "gif": lambda packet: gif.has_picture(bytes(packet)),
}


@dataclass(frozen=True)
class Scan:
    """The rows of one stream.

    Attributes:
        pts: time stamp of each row, ascending; empty if nothing tells when a frame is shown.
        restarts: (row, packet number) from where decoding may begin, ascending.
        packets: how many carry a visible frame.
        numbers: packet number of each row, if time stamps do not tell which packet is which row; empty: not even
            packets tell it, and rows can only be counted from the first.
        alpha: whether transparencies lie beside the pictures.
        alpha_layer: whether frames must come with transparencies.
        stream: index of the stream in its file.
        joins: rows with which another part of joined files begins.
        headless: frames before the first from which decoding can begin; they are lost.
    """

    pts: tuple[int, ...]
    restarts: tuple[tuple[int, int], ...]
    packets: int
    numbers: tuple[int, ...] | None = None
    alpha: bool = False
    alpha_layer: bool = False
    stream: int | None = None
    joins: tuple[int, ...] = ()
    headless: int = 0

    @property
    def frames(self) -> int:
        """Rows of the stream."""
        return len(self.pts) or self.packets

    @property
    def keys(self) -> tuple[int, ...]:
        """By which a decoded frame is known to be of a row; empty if only its place tells."""
        return self.pts if self.numbers is None else self.numbers

    def restart(self, row: int) -> tuple[int, int]:
        """(row, packet number) from which decoding yields `row` exactly."""
        return max((found for found in self.restarts if found[0] <= row), default=(0, 0))


@dataclass
class Headers:
    """What the headers of all packets of a stream say, in decode order.

    Attributes:
        pts, dts: time stamps; None: absent.
        durations: how long a picture is shown, 0 if it is not said.
        shown: whether it carries a picture that is shown.
        keys: (packet number, whether decoding may begin there) of key packets.
        alpha: whether transparencies lie beside the pictures.
        alpha_layer: whether they are a layer of the stream.
        made_up: whether time stamps count frames in the order of decoding.
        joins: packets with which time begins anew.
        positions: in bytes of the file.
        suspects: packets that the demuxer says are damaged.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    keys: list[tuple[int, bool]] = field(default_factory=list)
    alpha: bool = False
    alpha_layer: bool = False
    made_up: bool = False
    joins: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    suspects: list[int] = field(default_factory=list)

    @property
    def restarts(self) -> list[int]:
        """Packets from where decoding may begin: clean ones, or for want of them the first key packet."""
        return [n for n, clean in self.keys if clean] or [n for n, _ in self.keys[:1]]


def read_headers(packets: Iterable[Any], stream: Any, made_up: bool, name: str) -> Headers:
    """The headers of all packets of a stream; `made_up` is for codecs that reorder frames, `name` for messages.

    Raises:
        InputError: a packet is damaged, or there is nothing to start from.
    """
    context = stream.codec_context
    codec, extradata = context.name, context.extradata or b""
    headers = Headers(made_up=made_up and context.codec.reorder)
    references = References(extradata) if codec == "h264" else None
    has_picture, may_have_alpha = HAVE_PICTURES.get(codec), codec in WITH_ALPHA
    for number, packet in enumerate(packets):
        if not packet.size and packet.dts is None:
            break  # the flush at the end
        if packet.is_corrupt:
            headers.suspects.append(number)
        if packet.is_keyframe and packet.size:
            headers.keys.append((number, codec != "h264" or is_restart(bytes(packet), extradata)))
        if references is not None and packet.size:
            gap = references.missing_before(memoryview(packet), packet.is_keyframe)
            if gap is not None and headers.keys:
                what = f"frames that others refer to are missing before packet {number}: number {gap[0]} after {gap[1]}"
                raise broken(name, f"{what} (frame_num)")
        headers.positions.append(packet.pos or 0)
        headers.pts.append(packet.pts)
        headers.dts.append(packet.dts)
        headers.durations.append(packet.duration or 0)
        headers.shown.append(
            packet.size > 0 and not packet.is_discard and (has_picture is None or has_picture(memoryview(packet)))
        )
        if codec == "hevc" and not number:
            headers.alpha_layer = has_alpha_layer(extradata, bytes(packet))
        if may_have_alpha and packet.size and not headers.alpha:
            headers.alpha = _has_alpha(packet)
    if stream.container.format.name.startswith("mov"):
        _close_edits(headers)
    else:
        _straighten(headers)
    # as some programs write B-frames: the time of decoding in place of that of showing
    if context.reorder_depth > 0:
        stamps = (p for p in headers.pts if p is not None)
        headers.made_up |= all(a < b for a, b in pairwise(stamps))
    if not headers.keys:
        raise broken(name, "no key frame to start from" if headers.pts else "the video stream is empty")
    return headers


def damaged(headers: Headers, joined: Sequence[int]) -> int | None:
    """The first packet that is damaged, and not only the last one before a further file begins there."""
    for number in headers.suspects:
        behind = headers.positions[number : number + 1 + HELD_BACK]
        if not any(behind[0] < byte <= behind[-1] for byte in joined):
            return number
    return None


def _straighten(headers: Headers) -> None:
    """Finds where time begins anew, and lets each part go on when the one before it is over.

    That is a key packet that is shown before what was read before it; or any packet that goes back, in decoding too, by
    more than frames are reordered: a clock was put right.
    """
    known = [p for p in headers.pts if p is not None]
    if headers.made_up or len(known) < len(headers.pts) or not known:
        return
    steps, keys = np.diff(sorted(set(known))), {number for number, _ in headers.keys}
    most = REORDERED * int(np.median(steps)) if len(steps) else 0
    latest, found = known[0], headers.joins
    for number, (shown, decoded) in enumerate(zip(known, headers.dts, strict=True)):
        before = headers.dts[number - 1] if number else None
        back = decoded is not None and before is not None and decoded < before and shown < latest - most
        if back or (number in keys and shown < latest):
            found.append(number)
            latest = shown
        latest = max(latest, shown)
    for begin, end in pairwise([*found, len(known)]):
        there = sorted(p for p in headers.pts[:begin] if p is not None)
        step = int(np.median(np.diff(there))) if len(there) > 1 else 1
        later = there[-1] + max(1, step) - min(known[begin:end])
        for stamps in (headers.pts, headers.dts):
            stamps[begin:end] = [None if p is None else p + later for p in stamps[begin:end]]


def _close_edits(headers: Headers) -> None:
    """Lets each part of a list of edits go on when the one before it is over.

    FFmpeg tells the time of all but the first by some frames too early or too late where B-frames delay it; what is
    later by more than that is a part in which nothing is shown.
    """
    dts = headers.dts
    back = [n for n in range(1, len(dts)) if (a := dts[n - 1]) is not None and (b := dts[n]) is not None and b < a]
    headers.joins += back
    for begin, end in pairwise([*back, len(dts)]):
        before, part = _shown(headers, 0, begin), _shown(headers, begin, end)
        if not before or not part:
            continue
        steps = np.diff(before if len(before) > 1 else part)
        step = max(1, int(np.median(steps))) if len(steps) else 1
        later = before[-1] + step - part[0]
        if later >= -MOST_OFF * step:
            headers.pts[begin:end] = [None if p is None else p + later for p in headers.pts[begin:end]]


def _shown(headers: Headers, begin: int, end: int) -> list[int]:
    """The time stamps of some packets, of those that are shown, ascending."""
    pairs = zip(headers.pts[begin:end], headers.shown[begin:end], strict=True)
    return sorted(p for p, shown in pairs if shown and p is not None)


def by_time(headers: Headers, name: str) -> Scan | None:
    """The rows of a stream whose time stamps tell them; None if they do not.

    Raises:
        InputError: no frame is shown.
    """
    pts, restarts = headers.pts, headers.restarts
    if headers.made_up or headers.joins or any(p is None for p in pts):
        return None
    # What precedes the first restart, in decode order or in time, refers to frames that are not there.
    first, first_pts = restarts[0], pts[restarts[0]] or 0
    shown = enumerate(zip(pts, headers.shown, strict=True))
    rows = sorted(p for n, (p, s) in shown if s and n >= first and p is not None and p >= first_pts)
    if not rows:
        raise broken(name, "no frame is shown")
    if len(set(rows)) < len(rows):
        return None
    row_of_restart = np.searchsorted(np.asarray(rows, np.int64), np.asarray([pts[n] for n in restarts], np.int64))
    found = sorted((int(row), n) for row, n in zip(row_of_restart, restarts, strict=True))
    return Scan(tuple(rows), tuple(found), len(rows), alpha=headers.alpha, headless=sum(headers.shown) - len(rows))


def by_output(headers: Headers, numbers: Sequence[int | None], name: str) -> Scan:
    """The rows of a stream as they were decoded: `numbers` are the packets that the frames came from, in their order.

    A row is shown at the time stamp of its packet, if these ascend; else the rows share, in order, those at which
    their packets are decoded.

    Raises:
        InputError: frames have the same time stamp.
    """
    if not numbers:
        raise broken(name, "no frame can be decoded")
    known = [n for n in numbers if n is not None]
    headless = sum(headers.shown[: headers.restarts[0]])
    if len(set(known)) < len(numbers):
        return Scan((), ((0, 0),), len(numbers), (), headers.alpha, headless=headless)
    row_of = {number: row for row, number in enumerate(known)}
    restarts = tuple(sorted((row_of[n], n) for n in headers.restarts if n in row_of))
    firsts = (min((row_of[n] for n in known if n >= join), default=0) for join in headers.joins)
    joins = tuple(sorted({row for row in firsts if row}))
    return Scan(
        _times(headers, known, name), restarts, len(known), tuple(known), headers.alpha, joins=joins, headless=headless
    )


def _times(headers: Headers, numbers: Sequence[int], name: str) -> tuple[int, ...]:
    """Ascending, one for each of these packets; empty if nothing tells them."""
    shown = [p for n in numbers if (p := headers.pts[n]) is not None]
    decoded = [d for n in numbers if (d := headers.dts[n]) is not None]
    if len(shown) == len(numbers) and not headers.made_up and all(np.diff(shown) > 0):
        return tuple(shown)
    stamps = [sorted(times) for times in (decoded, shown) if len(times) == len(numbers)]
    ascending = next((times for times in stamps if all(np.diff(times) > 0)), None)
    if stamps and ascending is None:
        raise broken(name, "two frames have the same time stamp", RESTAMP)
    if ascending is None and not headers.made_up and not headers.joins and len(shown) > 1 and all(np.diff(shown) > 0):
        return tuple(_filled([headers.pts[n] for n in numbers]))
    return tuple(ascending or ())


def _filled(times: Sequence[int | None]) -> list[int]:
    """Times, of which some are not known: evenly between those that are, and before and behind them at their step."""
    rows = [row for row, time in enumerate(times) if time is not None]
    known = [time for time in times if time is not None]
    step = float(np.median(np.diff(known) / np.diff(rows)))
    first, last = rows[0], rows[-1]
    found = np.interp(np.arange(len(times)), rows, known)
    found[:first] = known[0] - step * np.arange(first, 0, -1)
    found[last + 1 :] = known[-1] + step * np.arange(1, len(times) - last)
    return [int(time) for time in np.rint(found)]


def _has_alpha(packet: Any) -> bool:
    sides = (side for side in packet.iter_sidedata() if side.data_type == "matroska_block_additional")
    return any(int.from_bytes(bytes(side)[:8]) == ALPHA for side in sides)


def is_restart(packet: bytes, extradata: bytes) -> bool:
    """Whether an H.264 key packet clears the decoder's memory: it holds an IDR picture."""
    if extradata[:1] != b"\x01":  # Annex B: start codes
        return any(nal[0] & 31 == IDR for nal in re.findall(rb"\x00\x00\x01(.)", packet, re.DOTALL))
    return any(packet[start] & 31 == IDR for start, _ in units(packet, extradata))


def units(packet: bytes, extradata: bytes) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of the NAL units of a packet that has their lengths in it."""
    prefix, at = (extradata[4] & 3) + 1, 0
    while at + prefix < len(packet):
        start = at + prefix
        at = start + int.from_bytes(packet[at:start])
        yield start, at


def broken(name: str, reason: str, remedy: str = EXPORT) -> InputError:
    """The error of a file that is no whole video."""
    return InputError("a video decodes from its first frame to its last", f"{name}: {reason}", remedy)
