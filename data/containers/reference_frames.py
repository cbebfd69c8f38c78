"""`References`: whether frames that others refer to are missing from an H.264 stream.

    frame_num    0  1  2  3  3  4  7        each reference frame counts on from the one before; 5 and 6 are lost
    reference    x  x  x     x  x  x        others have the number that the next reference frame will have

A decoder fills such a gap with copies and says nothing, so what comes out looks whole and is not. The numbers stand in
the heads of pictures and say so. Of HEVC, whose pictures name those that they refer to, FFmpeg says it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

START = re.compile(rb"\x00\x00\x01")
SLICES, IDR, SPS, PPS = (1, 2, 5), 5, 7, 8  # kinds of NAL units, table 7-1
WITH_CHROMA = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}  # profiles, 7.3.2.1.1
FEW = 2  # frames that are missing where numbers seem to begin anew, and may have
HEAD, LONGEST = 24, 512  # bytes of a picture that hold its number, and of a parameter set


class _Bits:
    """Reads the bits of a NAL unit, behind its first byte."""

    def __init__(self, unit: bytes) -> None:
        payload = unit[1:].replace(b"\x00\x00\x03", b"\x00\x00")  # 7.4.1.1
        self.value, self.left = int.from_bytes(payload), 8 * len(payload)

    def take(self, count: int) -> int:
        """u(n), 7.2."""
        self.left -= count
        if self.left < 0:
            raise ValueError("cut short")
        return self.value >> self.left & ((1 << count) - 1)

    def number(self) -> int:
        """ue(v), 9.1."""
        zeros = self.left - (self.value & ((1 << self.left) - 1)).bit_length()
        return self.take(2 * zeros + 1) - 1

    def signed(self) -> int:
        """se(v), 9.1.1."""
        number = self.number()
        return (number + 1) // 2 if number % 2 else -(number // 2)


@dataclass(frozen=True)
class _Sequence:
    """Of a sequence parameter set: bits of a frame's number, whether gaps are allowed and planes coded apart."""

    bits: int
    gaps: bool
    planes: bool


@dataclass
class References:
    """Follows the pictures of a stream in decode order.

    Attributes:
        extradata: of the stream: parameter sets, and whether NAL units have their lengths before them.
    """

    extradata: bytes
    _sequences: dict[int, _Sequence] = field(default_factory=dict)
    _pictures: dict[int, int] = field(default_factory=dict)  # the sequence of each picture parameter set
    _last: int | None = None  # number of the last reference frame

    def __post_init__(self) -> None:
        for unit in _header(self.extradata):
            self._note(unit)

    def missing_before(self, packet: memoryview, key: bool) -> tuple[int, int] | None:
        """(number, that of the reference before it) if frames are missing between; `key`: it refers to none before."""
        for unit in _units(packet, self.extradata):
            kind = unit[0] & 31
            if kind in SLICES:
                return self._picture(unit, key)
            self._note(unit)
        return None

    def _picture(self, unit: bytes, key: bool) -> tuple[int, int] | None:
        bits = _Bits(unit[:HEAD])
        try:
            bits.number(), bits.number()  # first macroblock, kind of slice
            sequence = self._sequences[self._pictures[bits.number()]]
            bits.take(2 * sequence.planes)
            number = bits.take(sequence.bits)
        except (KeyError, ValueError):
            return None  # the decoder will say what it cannot read
        before = self._last
        if unit[0] >> 5 & 3:
            self._last = number
        if before is None or key or sequence.gaps:
            return None
        missing = (number - before) % (1 << sequence.bits) - 1
        # memory_management_control_operation 5, which hardly any encoder uses, lets numbers begin anew at any place
        return (number, before) if 0 < missing <= FEW or (number > 1 and missing > FEW) else None

    def _note(self, unit: bytes) -> None:
        """Keeps a parameter set."""
        if not unit or unit[0] & 31 not in (SPS, PPS):
            return
        bits = _Bits(unit)
        try:
            if unit[0] & 31 == PPS:
                self._pictures[bits.number()] = bits.number()
            else:
                identity, sequence = _sequence(bits)
                self._sequences[identity] = sequence
        except ValueError:
            return


def _sequence(bits: _Bits) -> tuple[int, _Sequence]:
    """7.3.2.1.1."""
    profile, planes = bits.take(8), False
    bits.take(16)
    identity = bits.number()
    if profile in WITH_CHROMA:
        chroma = bits.number()
        planes = chroma == 3 and bool(bits.take(1))
        bits.number(), bits.number(), bits.take(1)
        if bits.take(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    size = bits.number() + 4
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1), bits.signed(), bits.signed()
        for _ in range(bits.number()):
            bits.signed()
    bits.number()  # reference frames
    return identity, _Sequence(size, bool(bits.take(1)), planes)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """7.3.2.1.1.1."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def _header(extradata: bytes) -> Iterator[bytes]:
    """Parameter sets of a header; ISO/IEC 14496-15, 5.3.3.1, or start codes."""
    if extradata[:1] != b"\x01":
        yield from _units(memoryview(extradata), extradata)
        return
    at, count = 6, extradata[5] & 31 if len(extradata) > 5 else 0
    for which in range(2):
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2])
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size
        if which == 0:
            count, at = (extradata[at] if at < len(extradata) else 0), at + 1


def _units(packet: memoryview, extradata: bytes) -> Iterator[bytes]:
    """The NAL units of a packet, up to its first slice; of each the beginning."""
    if extradata[:1] == b"\x01" and len(extradata) > 4:
        prefix, at = (extradata[4] & 3) + 1, 0
        while at + prefix < len(packet):
            start = at + prefix
            at = start + int.from_bytes(packet[at:start])
            if start < at:
                yield bytes(packet[start : min(at, start + LONGEST)])
        return
    start = 0
    for found in START.finditer(packet):
        if start:
            yield bytes(packet[start : min(found.start(), start + LONGEST)])
        start = found.end()
        if start < len(packet) and packet[start] & 31 in SLICES:
            break  # what is behind it does not matter, and is not searched
    if 0 < start < len(packet):
        yield bytes(packet[start : start + LONGEST])
