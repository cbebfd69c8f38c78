"""Frames of a visual that a question is about: from a file, or a clip of a dataset, as a model was trained on them.

A file gives the stretch in its middle, if only some frames are taken; a clip the one that its first epoch took.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.chat.clip_names import ClipNames
from data.containers.regular_file import read_regular
from data.media import image, video
from data.media.timeline import STILL, Timeline
from data.media.video import Frames
from data.planning.clip_sampling import Sampling
from data.streams.clip_reader import ClipReader
from parallel.errors import InputError


class FrameIndexer:
    """Finds visuals by name.

    Args:
        sampling: how clips are taken; its size is what the model sees.
        clips: of a dataset, a frame a token; None to look for files.
        folder: that names of files are relative to.
    """

    def __init__(self, sampling: Sampling, clips: ClipReader | None = None, folder: Path = Path()) -> None:
        self.sampling, self.clips, self.folder = sampling, clips, folder
        self.names = ClipNames(clips.index if clips else None)
        self.rows = {uid: row for row, uid in enumerate(clips.index.table["uid"].to_pylist())} if clips else {}

    def frames(self, name: str, uid: str = "") -> list[Frames]:
        """Of each clip that the name stands for: uint8 [n, height, width, 3].

        Raises:
            InputError: there is no such clip or file, or it cannot be read.
        """
        if self.clips is None:
            return [frames_of(self.folder / name, self.sampling)]
        return [self.clips.frames(self.rows[clip]) for clip in self.names.clips(name, uid)]

    def timelines(self, name: str, uid: str = "") -> list[Timeline]:
        """Of each clip that the name stands for, from its first frame that `frames` gives on; raises as it."""
        if self.clips is not None:
            return [self.clips.index.timeline(self.rows[clip]) for clip in self.names.clips(name, uid)]
        path = self.folder / name
        if image.still_suffix(path):
            return [STILL]
        told = video.probe(path)
        return [told.timeline().part(_first(told.frames, self.sampling), told.frames)]


def frames_of(path: Path, sampling: Sampling) -> Frames:
    """Of a video or an image file.

    Raises:
        InputError: there is no such file, it cannot be decoded, or has too few frames.
    """
    if not path.is_file():
        raise InputError("a video or an image is a file", f"{path}: no such file", "give its path")
    if image.still_suffix(path):
        found = image.decode(read_regular(path))
        return _cropped(image.decode(read_regular(path), sampling.scaled(*found.shape[1:3])), sampling)
    told = video.probe(path)
    used = sampling.frames_used(told.frames)
    if not used:
        raise InputError("a video has the frames that are taken", f"{path}: {told.frames}", "a longer one")
    start, span = _first(told.frames, sampling), (used - 1) * sampling.stride + 1
    frames = video.decode(path, start, start + span, sampling.stride, sampling.scaled(told.height, told.width))
    return _cropped(frames, sampling)


def _first(frames: int, sampling: Sampling) -> int:
    """The first frame that is taken of a file of so many: those in the middle are."""
    return (frames - (sampling.frames_used(frames) - 1) * sampling.stride - 1) // 2


def _cropped(frames: Frames, sampling: Sampling) -> Frames:
    """The middle of each frame."""
    height, width = sampling.crop(*frames.shape[1:3])
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])
