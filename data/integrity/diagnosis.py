"""`ShardJob` and `Diagnosis`: what the records say of a shard, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.dataset.shards import SHARDS
from data.integrity.findings import Finding, Kind
from data.integrity.rebuild_index import Row

Part = tuple[str, str, int]  # path, BLAKE3 and number of rows of a part of the index


@dataclass(frozen=True)
class ShardJob:
    """A shard and what the records say of it.

    Attributes:
        dataset: the folder.
        shard: its id.
        record: its commit; None if that is missing or was changed.
        index: the part of the index with its rows.
        deep: hash everything; else sizes and structure alone.
        decode: decode every sample as well.
    """

    dataset: Path
    shard: str
    record: Mapping[str, Any] | None
    index: Part
    deep: bool = True
    decode: bool = False

    @property
    def tar(self) -> str:
        """The shard, relative to the dataset."""
        return f"{SHARDS}/{self.shard}.tar"

    @property
    def size(self) -> int | None:
        """Bytes that the tar must have."""
        return None if self.record is None else int(self.record["size"])

    @property
    def imported(self) -> bool:
        """Whether others made the tar."""
        return self.record is not None and "import" in self.record["config"]

    @property
    def damaged(self) -> bool:
        """Whether the tar was damaged before, and kept for what is whole in it."""
        return self.record is not None and bool(self.record.get("damaged"))


@dataclass
class Diagnosis:
    """What is wrong with a shard, and what is left of it.

    Attributes:
        findings: what is wrong.
        rows: of the samples that are whole, or can be made whole.
        lost: (row, or what is known of one, reason) of the others.
        patches: (offset, bytes) to write into the tar.
        end: where end blocks must follow; None: the tar ends well, or must stay as it is.
    """

    job: ShardJob
    findings: list[Finding] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    lost: list[tuple[Row, str]] = field(default_factory=list)
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    end: int | None = None

    def tell(
        self, kind: Kind, what: str, remedy: str, sample: str = "", part: str = "", file: str | None = None
    ) -> None:
        """Adds a finding; `file` is the tar if it is not given."""
        self.findings.append(Finding(kind, file or self.job.tar, what, remedy, self.job.shard, sample, part))

    def lose(self, row: Row, reason: str) -> None:
        """A sample cannot be saved."""
        self.lost.append((row, reason))
