"""`Scan`: where decoding may begin, and which packet is which row, from packet headers alone.

Only restarts that clear the decoder's memory count (an H.264 recovery point does not), so that decoding from one gives
the very pixels of a full decode. 1 to 3 us a packet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from parallel.errors import InputError

MISSING_FRAMES, MISSING_SECONDS = 2, 0.05  # at the end of a stream: the last frame may be shown for longer
IDR = 5  # ITU-T H.264, table 7-1


@dataclass(frozen=True)
class Scan:
    """Time stamps of one stream, found without decoding.

    Attributes:
        pts: of each row, ascending; empty if the container has no time stamps (rows are then decode output in order).
        restarts: (row, packet number) from where decoding may begin, ascending.
        packets: how many carry a visible frame.
    """

    pts: tuple[int, ...]
    restarts: tuple[tuple[int, int], ...]
    packets: int

    @property
    def frames(self) -> int:
        """Rows of the stream."""
        return len(self.pts) or self.packets

    def restart(self, row: int) -> tuple[int, int]:
        """(row, packet number) from which decoding yields `row` exactly."""
        return max((found for found in self.restarts if found[0] <= row), default=(0, 0))


def scan_packets(packets: Iterable[Any], stream: Any, name: str) -> Scan:
    """The rows of a stream from all its packets; `name` is for messages.

    Raises:
        InputError: packets are missing or damaged, or there is nothing to start from.
    """
    codec, extradata = stream.codec_context.name, stream.codec_context.extradata or b""
    pts: list[int | None] = []
    keys: list[tuple[int | None, int, bool]] = []  # pts, packet number, is a clean restart
    shown: list[bool] = []
    for number, packet in enumerate(packets):
        if not packet.size:
            break  # the flush at the end
        if packet.is_corrupt:
            raise broken(name, f"packet {number} is damaged or cut short")
        if packet.is_keyframe:
            keys.append((packet.pts, number, codec != "h264" or is_restart(bytes(packet), extradata)))
        pts.append(packet.pts)
        shown.append(not packet.is_discard and (codec != "vp8" or bool(memoryview(packet)[0] & 0x10)))  # RFC 6386, 9.1
    if stream.frames > len(pts):
        raise broken(name, f"cut short: {len(pts)} of {stream.frames} frames are there")
    if not keys:
        raise broken(name, "no key frame to start from" if pts else "the video stream is empty")
    if any(p is None for p in pts):
        return Scan((), ((0, 0),), sum(shown))
    # What precedes the first restart, in decode order or in time, refers to frames that are not there.
    restarts = [(p, n) for p, n, clean in keys if clean] or [(p, n) for p, n, _ in keys[:1]]
    first_pts, first = restarts[0]
    rows = sorted(
        p
        for n, (p, s) in enumerate(zip(pts, shown, strict=True))
        if s and n >= first and p is not None and p >= (first_pts or 0)
    )
    if len(set(rows)) < len(rows):
        raise broken(name, "two frames have the same time stamp")
    if not rows:
        raise broken(name, "no frame is shown")
    row_of_restart = np.searchsorted(np.asarray(rows, np.int64), np.asarray([p for p, _ in restarts], np.int64))
    found = sorted((int(row), n) for row, (_, n) in zip(row_of_restart, restarts, strict=True))
    return Scan(tuple(rows), tuple(found), len(rows))


def check_declared(scan: Scan, stream: Any, name: str) -> None:
    """Matroska and WebM tell no number of frames, but how long a stream is: a file that was cut has less.

    Raises:
        InputError: seconds are missing at the end.
    """
    said = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    if said is None or len(scan.pts) < 2:
        return
    hours, minutes, seconds = said.groups()
    declared = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    there = float(scan.pts[-1] * stream.time_base)
    longest = float(max(np.diff(scan.pts)) * stream.time_base)  # that a frame is shown
    if there + longest < declared - max(MISSING_FRAMES * longest, MISSING_SECONDS):
        raise broken(name, f"cut short: its last frame is at {there:.2f} s, it says it is {declared:.2f} s long")


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


def broken(name: str, reason: str) -> InputError:
    """The error of a file that is no whole video."""
    return InputError(
        "a video decodes from its first frame to its last",
        f"{name}: {reason}",
        "export the file again (ffmpeg -i IN -c:v libx264 OUT.mp4), or leave it out",
    )
