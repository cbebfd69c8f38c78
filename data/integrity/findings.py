"""`Finding`: one thing that is wrong with a dataset: what, where, and what can be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    # the tar of a shard
    "missing shard",
    "short shard",
    "long shard",
    "changed shard",  # somewhere; what follows says where
    "changed header",
    "changed data",
    "changed padding",
    "changed end",
    "cut sample",
    "bad sample",  # the tar is as it was written, and a sample in it is not one
    "undecodable",
    # its rows
    "missing index",
    "changed index",
    "wrong row",
    "missing row",
    "extra row",
    "same sample",
    # records
    "missing commit",
    "changed commit",
    "missing manifest",
    "changed manifest",
    "unpublished",  # committed, in no generation
    "stray file",
    "unreadable",
]

RESTORE = "--repair writes it again, byte for byte"
REBUILD = "--repair makes it again from the shard"
LEAVE_OUT = "--repair leaves the sample out; or restore the shard from a copy"
# of bytes that are as they were written: a copy of the shard has the same
LEAVE_OUT_BAD = "--repair leaves the sample out; a copy of the shard is no better"
LEAVE_OUT_UNDECODED = "--repair with --decode leaves the sample out; a copy of the shard is no better"
LEAVE_OUT_SECOND = "--repair leaves the later one out"
LOOK = "look at the disk, then check again"
ACCEPT = "its samples are whole; --repair notes it, or restore the shard from a copy"


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        kind: of damage.
        file: path relative to the dataset.
        what: was found, in words.
        remedy: what can be done.
        shard: id of the shard; "" if it is about none.
        sample: uid; "" if it is about none or about all.
        part: suffix of the part, or columns of the row.
    """

    kind: Kind
    file: str
    what: str
    remedy: str
    shard: str = ""
    sample: str = ""
    part: str = ""
