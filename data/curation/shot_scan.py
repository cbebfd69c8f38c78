"""Watching: a film is decoded once, and told apart into shots with what can be said of each.

    decode --small frames--> a cut?  figures, pictures for the preview
    rows   0 . . . . . . . . | . . . . . . . . . . . . . | . .          shots
           |-- segment 0 --| |-- segment 1 -|-- 2 --| ...               figures are of segments

A picture of another size, or turned otherwise, begins a new shot: a phone that is turned goes on in the same file. So
does a frame after a pause, or with which another rate begins (`data.media.frame_rate`), or another of files put end to
end. A shot that may be cut further is watched in segments, because how long it is only shows at its end; the figures of
a part are put together from those of its segments. Everything but decoding costs a third of it at 1280 x 720.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from data.containers.demux import RowMissingError, Source, name_of
from data.curation.scores import Scorer, Scores
from data.curation.shot_detection import Detector, small_size
from data.dataset.previews import CELL_HEIGHT, Strip
from data.media.color import Frames, Rgb, Turn, displayed, turn_of
from data.media.frame_rate import Stretch
from data.media.video import Video, pictures, probe


@dataclass(frozen=True)
class Look:
    """Of which size pictures are.

    Attributes:
        stored: (height, width) as coded.
        turn: from stored to upright.
        size: (height, width) as displayed.
    """

    stored: tuple[int, int]
    turn: Turn
    size: tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Rows [start, stop) of one shot; `picture` is the first of them, see `thumbnail`."""

    look: Look
    start: int
    stop: int
    scores: Scores
    preview: bytes
    picture: Frames


Shot = Sequence[Segment]


@dataclass(frozen=True)
class Film:
    """What was seen.

    Attributes:
        found: as it turned out to be.
        shots: in order, end to end.
        steady: whether no picture changed its size or kind.
        stretches: of one rate each, end to end; no shot lies in two.
    """

    found: Video
    shots: Sequence[Shot]
    steady: bool
    stretches: Sequence[Stretch]


def watch(source: Source, found: Video, segment: int | None = None) -> Film:
    """The shots of a film in their order, end to end.

    Args:
        source: the file.
        found: what `probe` says of it.
        segment: rows after which a segment ends; None: with its shot.

    Raises:
        InputError: the file does not decode to its end.
    """
    try:
        return _watch(source, found, segment)
    except RowMissingError:
        if found.scan.numbers is not None:
            raise
        # its time stamps do not tell which frames come out, or not in which order
        counted = probe(source, counted=True)
        if counted.frames < found.frames and not (counted.interlaced or found.interlaced):
            raise  # packets are frames, of which some do not come out: those that they refer to are missing
        return _watch(source, counted, segment)


def _watch(source: Source, found: Video, segment: int | None) -> Film:
    name, look, steady = name_of(source), Look(found.stored, found.turn, (found.height, found.width)), True
    rgb, detector = Rgb(name, None, small_size(*look.size)), Detector()
    shots: list[list[Segment]] = [[]]
    stretches = found.stretches()
    begins = {*(stretch.rows[0] for stretch in stretches[1:]), *found.scan.joins}
    watched = _Watched(look, 0)
    for row, frame in enumerate(pictures(source, found)):
        if frame.interlaced_frame and not found.interlaced:  # the header did not say so
            return _watch(source, replace(found, interlaced=True), segment)
        stored, turn = (frame.height, frame.width), turn_of(frame, name) if frame.key_frame else look.turn
        steady &= (stored, frame.format.name) == (found.stored, found.pixel_format)
        new_shot = (stored, turn) != (look.stored, look.turn)
        if new_shot:
            look = Look(stored, turn, displayed(*stored, found.aspect, turn))
            rgb, detector, steady = Rgb(name, None, small_size(*look.size)), Detector(), False
        small = rgb(frame)
        new_shot |= detector.begins(small) | (row in begins)
        if new_shot or row - watched.start == segment:
            shots[-1].append(watched.closed())
            watched = _Watched(look, row)
            if new_shot:
                shots.append([])
        watched.add(small)
    shots[-1].append(watched.closed())
    return Film(found, shots, steady, stretches)


def part(shot: Shot, start: int, stop: int) -> tuple[Scores, bytes]:
    """Figures and preview of rows [start, stop) of a shot, from the segments that lie in it for the most part."""
    inside = [s for s in shot if start <= (s.start + s.stop - 1) / 2 < stop]
    inside = inside or [next(s for s in shot if s.stop > (start + stop) // 2)]
    if len(inside) == 1:
        return inside[0].scores, inside[0].preview
    rows = np.array([s.stop - s.start for s in inside])

    def mean(name: str) -> float:
        return float(np.average([getattr(s.scores, name) for s in inside], weights=rows))

    scores = Scores(
        motion=mean("motion"),
        sharpness=max(s.scores.sharpness for s in inside),
        brightness=mean("brightness"),
        black=mean("black"),
        text=max(s.scores.text for s in inside),
        phash=inside[len(inside) // 2].scores.phash,
    )
    strip = Strip()
    for s in inside:
        strip.add(s.picture)
    return scores, strip.jpeg()


def thumbnail(frame: Frames) -> Frames:
    """Of RGB [height, width, 3] at `small_size`: not higher than a cell of a preview."""
    scale = min(1.0, CELL_HEIGHT / frame.shape[0])
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


class _Watched:
    """The segment that is being watched."""

    def __init__(self, look: Look, start: int) -> None:
        self.look, self.start, self.stop = look, start, start
        self.scorer, self.strip = Scorer(), Strip()
        self.picture: Frames | None = None

    def add(self, frame: Frames) -> None:
        if self.picture is None:
            self.picture = thumbnail(frame)
        self.scorer.add(frame)
        self.strip.add(frame)
        self.stop += 1

    def closed(self) -> Segment:
        assert self.picture is not None, "a segment has frames"
        return Segment(self.look, self.start, self.stop, self.scorer.result(), self.strip.jpeg(), self.picture)
