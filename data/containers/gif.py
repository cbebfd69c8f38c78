"""GIF: its blocks, and when its pictures are shown.

    header | comment | control | picture | control | picture | comment | end
             \\________ packet 0 ________/  \\___ packet 1 ___/  \\_ packet 2: no picture

A delay of 0 or 10 ms means "as fast as you can" of machines that are gone: browsers show such pictures for 100 ms, as
their authors saw them, and so are they read here. (GIF89a, 20 to 27 and appendix D.)
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import BinaryIO

MAGIC = b"GIF8"
HEADER = 13  # bytes, before a table of colours
PICTURE, EXTENSION = 0x2C, 0x21
LEAST_DELAY, USUAL_DELAY = 2, 10  # hundredths of a second


def has_picture(packet: bytes) -> bool:
    """Whether a packet of FFmpeg's demuxer carries a picture, and not only what may stand behind the last one."""
    return any(kind == PICTURE for kind, _ in _blocks(io.BytesIO(packet)))


def shown_at(delays: Sequence[int]) -> list[int]:
    """When each picture is shown, in the unit of the delays, hundredths of a second."""
    shown = [delay if delay >= LEAST_DELAY else USUAL_DELAY for delay in delays]
    return [0, *accumulate(shown[:-1])]


def end(file: BinaryIO, size: int) -> int:
    """Byte after the last block of `size` bytes, more if that is cut; a missing end mark alone loses no picture."""
    return max((stop for _, stop in _blocks(file)), default=HEADER)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(kind, byte after the last) of the header, 0, and of each picture and extension."""
    head = file.read(HEADER)
    at = 0
    if head.startswith(MAGIC):
        at = HEADER + (_colours(head[10]) if len(head) == HEADER else 0)
        yield 0, at
    while True:
        file.seek(at)
        block = file.read(10)
        if block[:1] not in (bytes([PICTURE]), bytes([EXTENSION])):
            return  # the end mark, or what is no GIF any more
        if block[0] == PICTURE and len(block) < 10:
            yield PICTURE, at + 10
            return
        at += 2 if block[0] == EXTENSION else 10 + _colours(block[9]) + 1  # the last: size of codes
        length = 1
        while length:  # sub-blocks, to one without bytes
            file.seek(at)
            byte = file.read(1)
            length = byte[0] if byte else 0
            at += 1 + length
        yield block[0], at


def _colours(packed: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0
