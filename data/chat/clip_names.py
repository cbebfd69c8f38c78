"""`ClipNames`: which clips of a dataset a video or an image of a conversation is, by its name in a record."""

from __future__ import annotations

from functools import cached_property
from posixpath import basename, splitext

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.captions.name_matching import Files, nearest
from data.dataset.index import Index
from data.media.timeline import Timelines
from parallel.errors import InputError

Ints = npt.NDArray[np.int64]


class ClipNames:
    """Which clips a name stands for: a uid, the path of the source file, or what can mean no other file."""

    def __init__(self, index: Index | None) -> None:
        self.by_name: dict[str, list[str]] = {}
        self.files = Files(())
        self.rows: dict[str, int] = {}  # of each clip in the index
        if index is None:
            return
        files = index.table["file"].cast(pa.string()).to_pylist()
        uids, starts = (index.table[name].to_pylist() for name in ("uid", "start"))
        self.frames, self.timelines = index.frames, Timelines(index.table)
        self.ends = self.timelines.ends(index.frames)  # seconds in its source, of each clip
        self.rows = {uid: row for row, uid in enumerate(uids)}
        for _, file, uid in sorted(zip(starts, files, uids, strict=True), key=lambda one: (one[0] or 0, one[2])):
            self.by_name.setdefault(file, []).append(uid)
        self.files = Files(self.by_name)
        self.by_name.update({uid: [uid] for uid in uids})

    @cached_property
    def stems(self) -> dict[str, str]:
        """Files by their names without the suffix, with and without their folders; made for the first record of words
        alone."""
        found: dict[str, str] = {}
        for file in self.files.names:
            stem = splitext(file)[0]
            found.setdefault(stem, file)
            found.setdefault(basename(stem), file)
        return found

    def clips(self, name: str, uid: str) -> list[str]:
        """Uids of the clips, in the order in which they were cut.

        Raises:
            InputError: no clip has this name, or files of several folders do.
        """
        if name in self.by_name:
            return self.by_name[name]
        files = self.files.meant(name)
        if len(files) == 1:
            return self.by_name[files[0]]
        if files:
            found = f"{uid}: {name} may be {' or '.join(files[:3])}"
            raise InputError("a visual is one file of the clips", found, "write the path as the dataset has it")
        near = " or ".join(nearest(name, self.files.names, 2))
        known = f"{len(self.files.names):,} files{f', the nearest is {near}' if near else ''}"
        remedy = "prepare it into the dataset (was it rejected there?), or write the path as the dataset has it"
        raise InputError(
            "the videos and images of a conversation are clips of a dataset",
            f"{uid}: {name}; {known if self.by_name else 'no clips were given'}",
            remedy if self.by_name else "--clips DATASET",
        )

    def frames_shown(self, rows: Ints, begin: float | None, end: float | None) -> int:
        """How many stored frames of these clips, rows of the index, are shown in the source from `begin` to `end`.

        Args:
            rows: of the clips of one visual.
            begin, end: seconds; None for those of the video.
        """
        if begin is None and end is None:
            return int(self.frames[rows].sum())
        begins, ends = (np.full(len(rows), np.nan if one is None else one) for one in (begin, end))
        first, last = self.timelines.between(rows, begins, ends, self.frames[rows])
        return int((last - first).sum())
