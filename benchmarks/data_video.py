"""Decoding beside a bare PyAV loop, and preparing beside its limit: decoding once, small, and looking for cuts.

Files are those of ../shared/videos, or moving shapes of 480 x 480 where these are absent. A bare loop is what anybody
would write first: `for frame in container.decode(stream): frame.to_ndarray(format="rgb24")`, one thread. Ours checks
that every frame is there and undamaged, and whole clips stay in memory.

The limit of preparing is a bare loop at the detector's size and PySceneDetect's ContentDetector on its frames. Ours
does that, and reads time stamps, scores, draws previews, copies or encodes clips, hashes, and writes to disk.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import VideoReformatter
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from benchmarks.data_measure import Rates, Row, compared, take_turns
from data.containers.byte_ranges import Slices
from data.curation.clips import CutOptions
from data.curation.shot_detection import small_size
from data.dataset.index import Index
from data.media import video
from data.media.h264 import GOP_FRAMES
from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth

VIDEOS = Path(__file__).resolve().parent.parent.parent / "shared" / "videos"
SHORT_SIDE = 128  # of the preparing that has to encode
DECODE_GOAL, PREPARE_GOAL = 0.95, 0.85
FRAMES = "frames per CPU-second"


def films(place: Path) -> tuple[Path, str]:
    """The folder of the videos, and what they are."""
    if VIDEOS.is_dir():
        return VIDEOS, "../shared/videos"
    synth(place / "films", clips=3, seed=0, frames=120, size=480)
    return place / "films", "../shared/videos is absent: moving shapes of 480 x 480"


def decoding(folder: Path, place: Path, rounds: int) -> list[Row]:
    """Rows of whole files, of clips as they are stored, and of some slices of clips with short groups of pictures."""
    files = sorted(folder.glob("*.mp4"))
    prepare(folder, place / "copied", PrepareOptions(workers=0))
    prepare(folder, place / "encoded", PrepareOptions(workers=0, cut=CutOptions(max_gop=GOP_FRAMES)))
    copied, encoded = (longest_clips(Index.open(place / name)) for name in ("copied", "encoded"))
    whole = {file.name: _Film(file) for file in files}
    stored = {file.name: _Film(copied[file.name][0]) for file in files}
    middle = {file.name: _middle(*encoded[file.name]) for file in files}
    return [
        *_decoded("whole files", whole, rounds),
        *_decoded("whole stored clips", stored, rounds),
        *_decoded("a third of a stored clip, by slices", middle, rounds),
    ]


@dataclass(frozen=True)
class _Film:
    """A file or its bytes; or the header and some slices of a clip, which hold `rows`."""

    source: Path | bytes
    rows: tuple[int, int] | None = None

    def ours(self) -> int:
        if self.rows is None:
            return len(video.decode(self.source))
        assert isinstance(self.source, bytes)
        return len(video.decode_slices(self.source, self.rows[0], *self.rows))

    def bare(self) -> int:
        frames = 0
        for frame in _frames(self.source):
            frame.to_ndarray(format="rgb24")
            frames += 1
        return frames

    def kept(self) -> int:
        return len([frame.to_ndarray(format="rgb24") for frame in _frames(self.source)])


def _middle(data: bytes, slices: Slices) -> _Film:
    """The middle third of the slices of a clip, behind its header."""
    first, last = len(slices.rows) // 3, len(slices.rows) * 2 // 3
    stretch = data[: slices.offsets[0]] + data[slices.offsets[first] : slices.offsets[last]]
    return _Film(stretch, (slices.rows[first], slices.rows[last]))


def _decoded(what: str, films: dict[str, _Film], rounds: int) -> list[Row]:
    """Against a loop that drops its frames, and one that keeps them, as ours does: a row each for all films."""
    total: Rates = {"ours": [], "bare": [], "kept": []}
    frames = {name: film.bare() for name, film in films.items()}
    rows, seconds = [], [[0.0, 0.0, 0.0] for _ in range(rounds)]
    for name, film in films.items():
        found = take_turns({"ours": film.ours, "bare": film.bare, "kept": film.kept}, rounds)
        shown = f"{film.rows[0]}:{film.rows[1]} of {name}" if film.rows else name
        rows.append(compared("decode", f"{what}: {shown}", FRAMES, found, "ours", "bare", DECODE_GOAL))
        for number, at in enumerate(zip(*found.values(), strict=True)):
            seconds[number] = [s + frames[name] / rate for s, rate in zip(seconds[number], at, strict=True)]
    for of_a_round in seconds:
        for way, s in zip(total, of_a_round, strict=True):
            total[way].append(sum(frames.values()) / s)
    rows.append(compared("decode", f"{what}: all of them", FRAMES, total, "ours", "bare", DECODE_GOAL))
    rows.append(compared("decode", f"{what}: all, beside a loop that keeps its frames", FRAMES, total, "ours", "kept"))
    return rows


def longest_clips(index: Index) -> dict[str, tuple[bytes, Slices]]:
    """By source file: the longest clip, and its slice table."""
    found = {}
    for row in sorted(range(len(index)), key=lambda row: int(index.frames[row])):
        part, slices = index.part(row), index.slices(row)
        assert slices is not None, "stored clips have slices"
        with index.shard(row).open("rb") as tar:
            tar.seek(part.offset)
            found[index.file(row)] = tar.read(part.size), slices
    return found


def preparing(folder: Path, place: Path, rounds: int) -> list[Row]:
    """Rows of copying and of encoding."""
    files = sorted(folder.glob("*.mp4"))
    numbers = count()

    def ours(cut: CutOptions) -> int:
        out = place / f"prepared-{next(numbers)}"
        found = prepare(folder, out, PrepareOptions(workers=0, cut=cut))
        shutil.rmtree(out)
        return found.files

    ways: dict[str, Callable[[], float]] = {
        "ours": partial(ours, CutOptions()),
        "limit": partial(_limit, files),
        "decoding alone": partial(_limit, files, detect=False),
        "ours, encoding": partial(ours, CutOptions(short_side=SHORT_SIDE)),
        "limit, encoding": partial(_limit, files, short_side=SHORT_SIDE),
    }
    found = take_turns(ways, rounds)
    unit = "films per CPU-second"
    part = f"prepare, {len(files)} films"
    return [
        compared(part, "copied, beside decode + detect", unit, found, "ours", "limit", PREPARE_GOAL),
        compared(part, "copied, beside decoding alone", unit, found, "ours", "decoding alone"),
        compared(part, f"short side {SHORT_SIDE}, beside decode + detect + x264", unit, found, *list(ways)[3:]),
    ]


def _frames(source: Path | bytes) -> Iterator[Any]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        stream = max(container.streams.video, key=lambda s: (s.height * s.width, s.frames))
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
        yield from container.decode(stream)


def _limit(files: list[Path], detect: bool = True, short_side: int | None = None) -> int:
    """Decodes, small; looks for cuts; if asked, encodes all of it too."""
    for file in files:
        detector, scaler, encoder = ContentDetector(), VideoReformatter(), None
        for number, frame in enumerate(_frames(file)):
            height, width = small_size(frame.height, frame.width)
            pixels = scaler.reformat(frame, width, height, "bgr24").to_ndarray()
            if detect:
                detector.process_frame(FrameTimecode(number, 25.0), pixels)
            if short_side is not None:
                encoder = encoder or _encoder(frame, short_side)
                encoder(frame)
        if encoder:
            encoder(None)
    return len(files)


def _encoder(first: Any, short_side: int) -> Callable[[Any], None]:
    """What encodes frames into memory, with the settings of `data.h264`; None ends it."""
    container = av.open(io.BytesIO(), "w", format="mp4")
    stream = container.add_stream("libx264", rate=Fraction(25))
    scale = short_side / min(first.height, first.width)
    stream.height, stream.width = (round(side * scale) // 2 * 2 for side in (first.height, first.width))
    stream.pix_fmt, stream.options = "yuv420p", {"crf": "17", "preset": "veryfast", "x264-params": "mbtree=0"}
    stream.codec_context.thread_count, stream.codec_context.gop_size = 1, GOP_FRAMES
    numbers, scaler = count(), VideoReformatter()

    def encode(frame: Any) -> None:
        if frame is not None:
            frame = scaler.reformat(frame, stream.width, stream.height, "yuv420p")
            frame.pts, frame.time_base = next(numbers), Fraction(1, 25)
        container.mux(stream.encode(frame))
        if frame is None:
            container.close()

    return encode
