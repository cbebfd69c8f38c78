"""`check_steady`: whether all pictures of a file that stays as it is are of one size, without decoding them all.

A picture changes its size with a key frame alone. H.264 and HEVC say the size in a parameter set, so their key frames
are decoded only if one comes that is not the first; of other codecs all key frames are: one or two of a usual clip.
"""

from __future__ import annotations

from typing import Any

from data.containers.demux import Source, frames_of, name_of, opened
from data.containers.packet_index import broken, units
from data.containers.reference_frames import START
from data.media.color import SPLIT, turn_of
from data.media.video import Video

SPS = {"h264": (0x1F, 0, 7), "hevc": (0x3F, 1, 33)}  # mask, shift and kind of a NAL unit, in its first byte


def check_steady(source: Source, found: Video) -> None:
    """Compares the key frames of a file with the first.

    Args:
        source: the file.
        found: what `probe` says of it.

    Raises:
        InputError: one is of another size, or turned otherwise.
    """
    if found.scan.stream is None or len(found.scan.restarts) < 2 or found.scan.alpha:
        return
    name = name_of(source)
    with opened(source, found.scan.stream) as (container, stream):
        keys = [packet for packet in container.demux(stream) if packet.size and packet.is_keyframe]
        if found.codec in SPS and not _differ(keys, stream.codec_context.extradata or b"", *SPS[found.codec]):
            return
    with opened(source, found.scan.stream) as (container, stream):
        stream.codec_context.skip_frame = "NONKEY"
        for frame in frames_of(container.demux(stream), name):
            stored, turn = (frame.height, frame.width), turn_of(frame, name)
            if (stored, turn) != (found.stored, found.turn):
                old, new = (f"{height} x {width}" for height, width in (found.stored, stored))
                how = f"changes from {old} to {new}" if old != new else "is turned"
                raise broken(name, f"its picture {how} within the film", SPLIT)


def _differ(keys: list[Any], extradata: bytes, mask: int, shift: int, kind: int) -> bool:
    """Whether key packets bring parameter sets that are not those of the header, or of the first of them."""
    lengths, known = extradata[:1] == b"\x01", set[bytes]()
    for packet in keys:
        data = bytes(packet)
        if lengths:
            found = [data[a:b] for a, b in units(data, extradata if shift == 0 else _as_avc(extradata))]
        else:
            starts = [match.end() for match in START.finditer(data)]
            ends = [*(start - 3 for start in starts[1:]), len(data)]
            found = [data[a:b].rstrip(b"\0") for a, b in zip(starts, ends, strict=False)]
        sets = {unit for unit in found if unit and unit[0] >> shift & mask == kind}
        if packet.has_sidedata("new_extradata") or (lengths and any(one not in extradata for one in sets)):
            return True
        known |= sets
    return not lengths and len(known) > 1


def _as_avc(extradata: bytes) -> bytes:
    """Of HEVC, the size of lengths where H.264 has it: ISO/IEC 14496-15, 8.3.3.1."""
    return b"\x01\0\0\0" + extradata[21:22]
