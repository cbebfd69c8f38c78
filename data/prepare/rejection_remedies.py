"""Remedies: what a person can do about a file, or a clip of it, that is not in the dataset.

A rejection brings its own if its reason is of the file itself; of a limit, a caption or a worker its kind tells it.
"""

from __future__ import annotations

from dataclasses import fields

from data.captions.captions import NO_CAPTION
from data.containers.packet_index import AGAIN
from data.curation.filters import NEAR_DUPLICATES, Filters
from data.dataset.outcome import Rejection
from data.prepare.convert import MIN_FRAMES
from data.prepare.shard_writer import LOST, SAME_BYTES, SAME_CLIP
from data.sources.files import BAD_CAPTION, BAD_ROW, NO_ANSWER, NOT_FETCHED, NOT_READ
from data.workers.processes import Died, TimedOut, TooLarge

THERE = "none is needed: it is in the dataset"
KINDS = {
    NOT_READ: "check that it is there, that you may read it, and that nothing writes to it; then run again",
    NOT_FETCHED: "check its address, and that you may read it; then run again",
    NO_ANSWER: "check that this machine reaches its server; then run again",
    NO_CAPTION: "write its words beside it (clip.txt for clip.mp4), or give --allow-missing-captions",
    BAD_CAPTION: 'write {"clip.mp4": "what it shows"}, or {"short": ..., "long": ...} for each',
    BAD_ROW: "mend the row, or take it out; then run again",
    "other caption": "prepare into a new folder",
    "damaged shard": "run again: its source is prepared anew",
    MIN_FRAMES: "lower --min-frames, or leave it out",
    SAME_BYTES: THERE,
    SAME_CLIP: THERE,
    NEAR_DUPLICATES: "lower --near-duplicates to keep more",
    LOST[Died]: "run again with more --memory; if it dies again, leave the file out",
    LOST[TimedOut]: "raise --timeout, or cut the file into shorter ones",
    LOST[TooLarge]: "raise --memory, or scale the file down",
    **{one.name: f"loosen --{one.name.replace('_', '-')}" for one in fields(Filters) if one.name != NEAR_DUPLICATES},
}


def remedy_of(rejection: Rejection) -> str:
    """What to do about a rejection; those of earlier versions did not bring theirs."""
    return rejection.remedy or KINDS.get(rejection.kind, AGAIN)
