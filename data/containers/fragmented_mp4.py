"""The files that clips are stored in: fragmented mp4, one fragment per restart, read without a demuxer.

    ftyp moov | moof mdat | moof mdat | moof mdat        moov: how to decode; moof: the sizes and times of frames
    header    | slice 0   | slice 1   | slice 2

Any player reads the whole, and the header with any run of fragments (ISO/IEC 14496-12, 8.8). Rows are told by time
stamps: a fragment that begins with row r says the time r x the duration of a frame. So a stretch of a clip knows which
frames it has, and a missing slice is noticed. Reading the boxes of a small clip takes 25 us, opening it with FFmpeg's
demuxer ten times as long.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain

from data.containers.byte_ranges import Slices, slices_of
from data.containers.packet_index import broken, is_restart

# One fragment per key packet; an edit list, so that B-frames do not delay the first frame; no index at the end, which
# would be wrong for a stretch of the file; colour tags, which else only get through if all of them are set.
MOVFLAGS = "frag_keyframe+empty_moov+delay_moov+default_base_moof+skip_trailer+write_colr"
WRITING = {"movflags": MOVFLAGS, "fflags": "+bitexact", "write_btrt": "0"}
UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # the display matrix of what is not turned
VISUAL_SAMPLE_ENTRY = 78  # bytes before its first box

Span = tuple[int, int]  # the payload of a box, in bytes from the start of the data


@dataclass(frozen=True)
class Fragment:
    """Frames from one restart to the next.

    Attributes:
        row: of its first frame.
        offset, end: of its bytes in the data.
        samples: (first byte, byte after the last, row) of each packet, in decode order.
    """

    row: int
    offset: int
    end: int
    samples: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Clip:
    """A stored clip, or its header and a run of its slices.

    Attributes:
        extradata: parameter sets of the H.264 stream (ISO/IEC 14496-15, 5.3.3.1).
        colour: (primaries, transfer, matrix, range) as FFmpeg numbers them, for what the stream itself leaves open.
        fragments: in order, their rows without a gap.
    """

    extradata: bytes
    colour: tuple[int, int, int, int]
    fragments: tuple[Fragment, ...]

    @property
    def rows(self) -> range:
        """The rows that are there."""
        last = self.fragments[-1]
        return range(self.fragments[0].row, last.row + len(last.samples))

    @property
    def reorder_depth(self) -> int:
        """How many packets a frame may come before its turn; a decoder that does not know it may give up too early."""
        return max(n - (row - f.row) for f in self.fragments for n, (_, _, row) in enumerate(f.samples))

    def samples(self, data: bytes, row: int) -> Iterator[tuple[int, int, int]]:
        """All from the last restart at or before `row` on; any fragment of ours is one."""
        first = bisect_right(self.fragments, row, key=lambda fragment: fragment.row) - 1
        while first and not _restarts(data, self.extradata, self.fragments[first]):
            first -= 1
        return chain.from_iterable(fragment.samples for fragment in self.fragments[first:])


def read(data: bytes) -> Clip:
    """The boxes of a clip, or of its header and a run of its slices.

    Raises:
        InputError: it is not of the form that we write, or slices are missing between others.
    """
    try:
        return _clip(data)
    except (struct.error, LookupError, ValueError) as error:
        raise broken(f"{len(data)} bytes in memory", f"not a clip in fragments: {error}") from error


def found(data: bytes) -> Clip | None:
    """As `read`, but None if it is something else."""
    try:
        return _clip(data)
    except (struct.error, LookupError, ValueError):
        return None


def is_clip(data: bytes) -> bool:
    """Whether it is a whole clip of the form that we write."""
    clip = found(data)
    return clip is not None and clip.rows.start == 0


def slices(data: bytes) -> Slices:
    """The slice table of a whole clip.

    Raises:
        InputError: it is not of the form that we write, or not whole.
    """
    fragments = read(data).fragments
    if fragments[0].row:
        raise broken(f"{len(data)} bytes in memory", f"it begins with row {fragments[0].row}")
    return slices_of(data, tuple(f.row for f in fragments), (*(f.offset for f in fragments), len(data)))


def _clip(data: bytes) -> Clip:
    top = list(_boxes(data, (0, len(data))))
    kinds = [kind for kind, _, _ in top]
    if kinds[:2] != [b"ftyp", b"moov"] or len(top) < 4 or kinds[2:] != [b"moof", b"mdat"] * ((len(top) - 2) // 2):
        raise ValueError(f"its boxes are {' '.join(kind.decode('latin1') for kind in kinds[:8])}")
    moov = top[1][2]
    track = _child(data, moov, b"trak")
    head = _child(data, track, b"tkhd")
    at = head[0] + (52 if data[head[0]] else 40)  # ISO/IEC 14496-12, 8.3.2
    if data[at : at + 36] != UPRIGHT:
        raise ValueError("it is displayed turned")
    media = _child(data, track, b"mdia")
    table = _child(data, _child(data, media, b"minf"), b"stbl")
    described = _child(data, table, b"stsd")
    entry = _child(data, (described[0] + 8, described[1]), b"avc1")
    inside = {kind: span for kind, _, span in _boxes(data, (entry[0] + VISUAL_SAMPLE_ENTRY, entry[1]))}
    if b"pasp" in inside and len({data[at : at + 4] for at in range(*inside[b"pasp"], 4)}) > 1:
        raise ValueError("its pixels are not square")
    extradata = data[slice(*inside[b"avcC"])]
    fragments: list[Fragment] = []
    for (_, offset, moof), (_, _, mdat) in zip(top[2::2], top[3::2], strict=True):
        fragment = _fragment(data, offset, moof, mdat)
        if fragments and fragment.row != fragments[-1].row + len(fragments[-1].samples):
            raise ValueError(f"a slice begins with row {fragment.row} after one that begins with {fragments[-1].row}")
        fragments.append(fragment)
    if not _restarts(data, extradata, fragments[0]):
        raise ValueError("its first frame cannot be decoded by itself")
    return Clip(extradata, _colour(data, inside.get(b"colr")), tuple(fragments))


def _fragment(data: bytes, offset: int, moof: Span, mdat: Span) -> Fragment:
    """Movie fragment box, ISO/IEC 14496-12, 8.8.4 to 8.8.12."""
    traf = _child(data, moof, b"traf")
    head, run, time = (_child(data, traf, kind)[0] for kind in (b"tfhd", b"trun", b"tfdt"))
    flags, at = _word(data, head) & 0xFFFFFF, head + 8
    defaults = {}
    for flag, size in ((0x1, 8), (0x2, 4), (0x8, 4), (0x10, 4), (0x20, 4)):
        if flags & flag:
            defaults[flag] = int.from_bytes(data[at : at + size])
            at += size
    began = int.from_bytes(data[time + 4 : time + (12 if data[time] else 8)])
    version, flags, count = data[run], _word(data, run) & 0xFFFFFF, _word(data, run + 4)
    at = run + 8 + (4 if flags & 0x1 else 0) + (4 if flags & 0x4 else 0)
    first_byte = offset + _word(data, run + 8) if flags & 0x1 else mdat[0]
    present = [flag for flag in (0x100, 0x200, 0x400, 0x800) if flags & flag]
    words = struct.unpack_from(f">{count * len(present)}I", data, at)
    columns = {flag: words[number :: len(present)] for number, flag in enumerate(present)}
    duration = defaults.get(0x8, 0)
    if any(d != duration for d in columns.get(0x100, ())) or not duration or began % duration or not count:
        raise ValueError("its frames are not of one duration")
    sizes = columns.get(0x200) or (defaults[0x10],) * count
    ends = tuple(accumulate(sizes, initial=first_byte))
    if ends[-1] != mdat[1]:
        raise ValueError(f"a slice has {mdat[1] - first_byte} bytes of frames where {ends[-1] - first_byte} are told")
    delays = columns.get(0x800, (0,) * count)
    if version:
        delays = tuple(d - (1 << 32) if d >> 31 else d for d in delays)
    times = [number * duration + delay for number, delay in enumerate(delays)]
    shown = sorted(range(count), key=times.__getitem__)
    rows = dict(zip(shown, range(began // duration, began // duration + count), strict=True))
    samples = tuple((ends[number], ends[number + 1], rows[number]) for number in range(count))
    return Fragment(began // duration, offset, mdat[1], samples)


def _restarts(data: bytes, extradata: bytes, fragment: Fragment) -> bool:
    first, last, _ = fragment.samples[0]
    return is_restart(data[first:last], extradata)


def _colour(data: bytes, span: Span | None) -> tuple[int, int, int, int]:
    """Colour information box, ISO/IEC 14496-12, 12.1.5."""
    if span is None or data[span[0] : span[0] + 4] != b"nclx":
        return 2, 2, 2, 0
    primaries, transfer, matrix, full = struct.unpack_from(">3HB", data, span[0] + 4)
    return primaries, transfer, matrix, 2 if full >> 7 else 1


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, int, Span]]:
    """(kind, offset, payload) of the boxes that fill a span."""
    at, stop = span
    while at < stop:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16]), 16
        elif size == 0:
            size = stop - at
        if size < head or at + size > stop:
            raise ValueError(f"the box {kind.decode('latin1')} at byte {at} is cut short")
        yield kind, at, (at + head, at + size)
        at += size


def _child(data: bytes, span: Span, kind: bytes) -> Span:
    found = [inner for name, _, inner in _boxes(data, span) if name == kind]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} boxes {kind.decode('latin1')}")
    return found[0]


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4])
