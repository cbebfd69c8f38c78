"""`Outcome`: what became of files and of the clips in them, with every loss counted by its reason.

    files found -> readable -> shots -> one stage for each limit -> kept

What a stage lost is what its reasons add up to, so nothing can go missing between two of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["list", "caption", "fetch", "read", "cut", "filter", "duplicate"]


@dataclass(frozen=True)
class Rejection:
    """A file, or clips of it, that are not in the dataset.

    Attributes:
        file: its name.
        stage: where it fell out.
        kind: a reason that others may share, such as the name of a limit; losses are counted by it.
        reason: a sentence, with value and limit.
        rows: "start:stop" of the clip in its file; "" if it is about the whole file.
        clips: how many clips it is about; 0 for a whole file.
        again: whether the next run tries again.
        remedy: what to do about it, where that is not known by its kind (`data.prepare.rejection_remedies`).
    """

    file: str
    stage: Stage
    kind: str
    reason: str
    rows: str = ""
    clips: int = 0
    again: bool = False
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the quarantine and for commits: what is empty is left out."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rejection:
        """Back from `as_json`."""
        return cls(**value)


@dataclass
class Tally:
    """Counts.

    Attributes:
        readable: files with at least one shot.
        shots: in them; what `max_frames` divides is counted in its parts.
        kept: clips stored.
        files, clips: lost, by kind.
    """

    readable: int = 0
    shots: int = 0
    kept: int = 0
    files: Counter[str] = field(default_factory=Counter)
    clips: Counter[str] = field(default_factory=Counter)

    @property
    def found(self) -> int:
        """Files."""
        return self.readable + self.files.total()

    def reject(self, rejection: Rejection) -> None:
        """Counts a loss."""
        if rejection.clips:
            self.clips[rejection.kind] += rejection.clips
        else:
            self.files[rejection.kind] += 1

    def add(self, other: Tally) -> None:
        """Counts all that another counted."""
        self.readable += other.readable
        self.shots += other.shots
        self.kept += other.kept
        self.files += other.files
        self.clips += other.clips

    def as_json(self) -> dict[str, Any]:
        """For commits."""
        return {**vars(self), "files": dict(self.files), "clips": dict(self.clips)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """Back from `as_json`."""
        return cls(**{**value, "files": Counter(value["files"]), "clips": Counter(value["clips"])})

    def funnel(self, limits: Mapping[str, str]) -> tuple[list[tuple[str, int]], dict[str, dict[str, int]]]:
        """Stages (name, count) from the first to the last, and by the name of a stage what did not get there, and why.

        Args:
            limits: kinds that have a stage of their own even if they cost nothing, in their order, and in words.
        """
        stages = [("files found", self.found), ("readable", self.readable), ("shots", self.shots)]
        dropped = {"readable": dict(self.files)} if self.files else {}
        left = self.shots
        kinds = list(dict.fromkeys([*limits, *sorted(self.clips)]))
        for number, kind in enumerate(kinds, 1):
            left -= self.clips[kind]
            name = f"after {kind}" if number < len(kinds) else "kept"
            stages.append((name, left))
            if self.clips[kind]:
                dropped[name] = {limits.get(kind, kind): self.clips[kind]}
        return stages, dropped


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        tally: of the files that it worked on.
        skipped: files that were in the dataset already.
        rejected: (number of the file in the source, what), those of earlier runs over the same files included.
        frames, bytes, shards: written.
        long: bytes of captions beyond `LONG_CAPTION`, and whose they are.
        shared: clips of each file that was cut into several, which have its one caption.
        several: files that have several video streams.
        headless: files that begin without a key frame, with the number of frames lost.
    """

    tally: Tally = field(default_factory=Tally)
    skipped: int = 0
    rejected: list[tuple[int, Rejection]] = field(default_factory=list)
    frames: int = 0
    bytes: int = 0
    shards: int = 0
    long: list[tuple[int, str]] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    headless: list[str] = field(default_factory=list)

    def reject(self, number: int, rejection: Rejection) -> None:
        """A loss of this run."""
        self.tally.reject(rejection)
        self.rejected.append((number, rejection))
