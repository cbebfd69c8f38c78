"""The index row of a sample that others made: its parts hashed, its words read, its media probed.

Frames, rate and size come from the media themselves; there are no scores. The part that stands for our JSON is theirs,
if they have one: json, else txt, else cls. About a millisecond a sample.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.captions.captions import LARGEST_WORDS, Caption, NoCaptionError, Tell, of_sides
from data.captions.sidecars import Sides
from data.containers import fragmented_mp4
from data.containers.byte_ranges import Slices, digest_bytes
from data.containers.regular_file import open_regular
from data.dataset import latents_file
from data.dataset.shards import SHARDS, Part, uid_of
from data.dataset.tar_format import Member
from data.media import image, video
from data.media.color import UPRIGHT
from data.media.picture_changes import check_steady
from data.media.video import Video
from data.sources.files import readable
from data.sources.webdataset import IMAGES, WORDS, Candidate
from parallel.errors import InputError

SEVERAL = "several captions"  # no column: whether the sample has more captions than the row
LARGEST_MEDIA = 2 << 30  # bytes; a part without slices is read whole by every rank that needs a frame of it


def read_sample(tar: Path, label: str, shard_id: str, found: Candidate, need_caption: bool) -> dict[str, Any] | str:
    """The index row of a sample, or why it has none. Reads the sample, hashes its parts, probes its media.

    Args:
        tar: where its bytes are.
        label: name of the tar for people.
        shard_id: of the shard that the tar is or will be.
        found: in the tar.
        need_caption: whether media without a caption are refused.
    """
    try:
        return _row(tar, label, shard_id, found, need_caption)
    except InputError as error:
        return error.value.split(" in memory: ")[-1]
    except Exception as error:  # whatever a strange file provokes must not stop the job; it is counted and shown
        return f"{type(error).__name__}: {error}"


def _row(tar: Path, label: str, shard_id: str, found: Candidate, need_caption: bool) -> dict[str, Any] | str:
    with open_regular(tar) as file:
        for member in found.parts.values():
            if member.size > LARGEST_WORDS:
                return f"{member.name} has {member.size} bytes of words"
        texts = {name: read_part(file.fileno(), member) for name, member in found.parts.items()}
        several: list[str] = []
        short, long = _caption(found.sides, texts, need_caption or found.media is None, several.append)
        row: dict[str, Any] = {
            "uid": "",
            "shard": f"{SHARDS}/{shard_id}.tar",
            "media": found.suffix,
            **dict.fromkeys(("motion", "sharpness", "brightness", "black", "text", "phash")),
            "caption": short,
            "caption_long": long,
            "file": readable(f"{label}/{found.key}"),
        }
        said = next((found.words[kind] for kind in WORDS if kind in found.words), None)
        words = Part(0, 0, "")
        if said is not None:
            words = Part(said.offset, said.size, digest_bytes(read_part(file.fileno(), said)))
        row.update({"json_offset": words.offset, "json_size": words.size, "json_hash": words.hash})
        row.update(_media(file.fileno(), found))
    return {**row, "uid": uid_of(row["media_hash"], short, long), SEVERAL: bool(several)}


def _caption(sides: Sides, texts: Mapping[str, bytes], needed: bool, tell: Tell) -> Caption:
    try:
        return of_sides(sides, texts.__getitem__, tell, tell)
    except NoCaptionError:
        if needed:
            raise
        return Caption("")


def _media(file: int, found: Candidate) -> dict[str, Any]:
    """Columns of the media part."""
    empty = {"media_offset": 0, "media_size": 0, "media_hash": "", "frames": 0, "fps": 0.0, "height": 0, "width": 0}
    nothing: dict[str, Any] = {
        **dict.fromkeys(("slice_rows", "slice_offsets", "slice_hashes", "time_rows", "time_seconds"), ()),
        **dict.fromkeys(("start", "stop"), 0),
    }
    if found.media is None:
        return {**empty, **nothing}
    if not 0 < found.media.size <= LARGEST_MEDIA:
        said = f"{found.media.name} has {found.media.size} bytes"
        raise InputError("a media part has bytes, and fits into memory", said, "leave it out")
    data = read_part(file, found.media)
    columns = {"media_offset": found.media.offset, "media_size": len(data), "media_hash": digest_bytes(data)}
    if found.suffix in IMAGES:
        _, height, width, _ = image.decode(data).shape
        return {**nothing, **columns, "frames": 1, "fps": 0.0, "height": height, "width": width, "stop": 1}
    probed = video.probe(data)
    check_steady(data, probed)
    slices = slices_of_media(found.suffix, data) if _is_plain(probed) else None
    tables: dict[str, Any] = {}
    if slices and set(slices.rows) <= {row for row, _ in probed.scan.restarts}:  # each can be decoded by itself
        tables = {"slice_rows": slices.rows, "slice_offsets": slices.offsets, "slice_hashes": slices.hashes}
    timeline = probed.timeline()
    times = {"time_rows": timeline.rows, "time_seconds": timeline.seconds}
    sizes = {"frames": probed.frames, "fps": float(probed.fps), "height": probed.height, "width": probed.width}
    return {**nothing, **columns, **sizes, **times, **tables, "stop": probed.frames}


def _is_plain(found: Video) -> bool:
    """Whether nothing but the frames themselves says how they are shown, so that a slice shows them alike."""
    as_stored = found.turn == UPRIGHT and found.stored == (found.height, found.width) and not found.interlaced
    return found.codec == "h264" and found.video_streams == 1 and as_stored


def slices_of_media(media: str, data: bytes) -> Slices | None:
    """The slice table of a part, None if it can only be read whole."""
    how = {"mp4": fragmented_mp4.slices, latents_file.MEDIA: latents_file.slices}.get(media)
    try:
        return how(data) if how else None
    except InputError:
        return None


def read_part(file: int, member: Member) -> bytes:
    """The bytes of a member.

    Raises:
        InputError: the file is shorter than it was.
    """
    data = os.pread(file, member.size, member.offset)
    while len(data) < member.size:  # one call reads 2 GB at most
        more = os.pread(file, member.size - len(data), member.offset + len(data))
        if not more:
            raise InputError("a tar does not change while it is read", f"{member.name} is cut off", "import it again")
        data += more
    return data
