"""`Stretch`: what every byte of a tar that we wrote must be, known from its index rows alone.

    | header | json ... 0 | header | mp4 ... 0 | ... | 0 0 0 |
      header   data  padding                           end

So damage has a name, and whatever is not the data of a sample can be written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blake3 import blake3

from data.dataset import tar_format
from data.integrity.rebuild_index import Row

CHUNK = 4 << 20  # bytes read at a time


@dataclass(frozen=True)
class Stretch:
    """Bytes [start, stop) of a tar.

    Attributes:
        sample, part: whose they are; "" at the end.
        expected: the bytes, or for data their BLAKE3.
    """

    start: int
    stop: int
    what: Literal["header", "data", "padding", "end"]
    sample: str
    part: str
    expected: bytes | str


def layout(rows: Iterable[Row]) -> Iterator[Stretch]:
    """All of a tar of ours, in its order."""
    at = 0
    for row in sorted(rows, key=lambda row: min(offset for _, offset, _, _ in parts(row))):
        for part, offset, size, digest in sorted(parts(row), key=lambda found: found[1]):
            head = tar_format.header(f"{row['uid']}.{part}", size)
            stop, after = offset + size, offset + tar_format.padded(size)
            yield Stretch(offset - len(head), offset, "header", row["uid"], part, head)
            yield Stretch(offset, stop, "data", row["uid"], part, digest)
            if after > stop:
                yield Stretch(stop, after, "padding", row["uid"], part, bytes(after - stop))
            at = after
    ending = tar_format.ending(at)
    yield Stretch(at, at + len(ending), "end", "", "", ending)


def parts(row: Mapping[str, Any]) -> list[tuple[str, int, int, str]]:
    """(suffix, offset, size, BLAKE3) of the parts of a row."""
    found = [("json", row["json_offset"], row["json_size"], row["json_hash"])] if row["json_hash"] else []
    media = [(row["media"], row["media_offset"], row["media_size"], row["media_hash"])] if row["media"] else []
    return found + media


def is_as_expected(file: int, stretch: Stretch) -> bool:
    """Whether a file has there what it must have; what the disk refuses to read, it has not."""
    try:
        if isinstance(stretch.expected, bytes):
            return os.pread(file, len(stretch.expected), stretch.start) == stretch.expected
        return digest_range(file, stretch.start, stretch.stop) == stretch.expected
    except OSError:
        return False


def digest_range(file: int, start: int, stop: int) -> str:
    """As `digest_bytes`, of bytes [start, stop) of an open file, or as many as there are."""
    hasher = blake3()
    while start < stop and (chunk := os.pread(file, min(CHUNK, stop - start), start)):
        hasher.update(chunk)
        start += len(chunk)
    return str(hasher.hexdigest(length=16))


def begin(row: Row) -> int:
    """Where the first header of a sample of ours begins."""
    return min(offset - len(tar_format.header(f"{row['uid']}.{part}", size)) for part, offset, size, _ in parts(row))
