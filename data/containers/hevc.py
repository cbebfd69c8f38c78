"""HEVC with transparencies: they are a second layer of the stream, as telephones of one maker write it.

A decoder that does not read layers gives the first one, with the colours that were to be hidden. So a stream that says
what its second layer is must give frames with transparencies, or is no film that can be shown as it was meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SEI, ALPHA = 39, 165  # ITU-T H.265, table 7-1, and alpha channel information, D.2.37
HEADER = 23  # bytes of a decoder configuration record (ISO/IEC 14496-15, 8.3.3.1) before its arrays


def has_alpha_layer(extradata: bytes, packet: bytes) -> bool:
    """Whether a stream says that a layer of it is transparencies; `packet` is its first."""
    if extradata[:1] == b"\x01":
        units = [*_arrays(extradata), *_lengths(packet, (extradata[21] & 3) + 1 if len(extradata) > 21 else 4)]
    else:
        units = [*_start_codes(extradata), *_start_codes(packet)]
    return any(len(unit) > 2 and unit[0] >> 1 & 63 == SEI and ALPHA in _payloads(unit[2:]) for unit in units)


def _payloads(message: bytes) -> Iterator[int]:
    """Types of the messages of a unit, 7.3.5."""
    at = 0
    while at + 1 < len(message):
        values = []
        for _ in range(2):  # type, size
            value = 0
            while at < len(message) and message[at] == 0xFF:
                value, at = value + 255, at + 1
            if at >= len(message):
                return
            values.append(value + message[at])
            at += 1
        yield values[0]
        at += values[1]


def _arrays(record: bytes) -> Iterator[bytes]:
    at = HEADER
    for _ in range(record[HEADER - 1] if len(record) >= HEADER else 0):
        count, at = int.from_bytes(record[at + 1 : at + 3]), at + 3
        for _ in range(count):
            size, at = int.from_bytes(record[at : at + 2]), at + 2
            yield record[at : at + size]
            at += size


def _lengths(packet: bytes, prefix: int) -> Iterator[bytes]:
    at = 0
    while at + prefix < len(packet):
        size, at = int.from_bytes(packet[at : at + prefix]), at + prefix
        yield packet[at : at + size]
        at += size


def _start_codes(data: bytes) -> list[bytes]:
    return re.split(rb"\x00\x00\x01", data)[1:]
