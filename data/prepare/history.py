"""`History`: what earlier runs did, read from the commits of a dataset: which files are done, with which captions, and
which pictures are there.

About 600 bytes a file and 150 a clip, or 500 with its picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet

from data.captions.captions import Caption
from data.curation.near_duplicates import Seen
from data.dataset import shards
from data.dataset.outcome import Rejection, Tally
from data.dataset.shards import COMMITS, digest_of
from parallel.errors import InputError


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an earlier run.

    Attributes:
        file: its name.
        caption: digest of it.
        kept: whether a clip of it is in the dataset.
        again: whether it is to be tried again.
    """

    file: str
    caption: str
    kept: bool
    rejected: tuple[Rejection, ...]
    again: bool


@dataclass
class History:
    """See the module.

    Attributes:
        versions, contents: files by what told them apart when they were listed, and by the digest of their bytes.
        new: files of this run that are done, with the digest of their captions, by that of their bytes.
        uids: of all samples.
        seen: their pictures; empty unless asked for.
        tally: of all files that need not be tried again.
    """

    versions: dict[str, Entry] = field(default_factory=dict)
    contents: dict[str, Entry] = field(default_factory=dict)
    new: dict[str, tuple[str, str]] = field(default_factory=dict)
    uids: set[str] = field(default_factory=set)
    seen: Seen = field(default_factory=Seen)
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def read(cls, dataset: Path, config: Mapping[str, Any], pictures: bool) -> History:
        """Of a dataset that is held.

        Args:
            dataset: the folder.
            config: the options that decide the bytes of a shard.
            pictures: whether to fill `seen`.

        Raises:
            InputError: a record cannot be read, or the dataset was made with other options.
        """
        history = cls()
        for path in sorted((dataset / COMMITS).glob("*.json")):
            record = shards.unsealed(path, shards.read_json(path))
            history._add_samples(dataset / record["index"][0], pictures)
            if "import" in record["config"]:  # tars of others: no files of ours, and no options
                continue
            _check(dataset, record["config"], config)
            for raw in record["inputs"]:
                history._add_file(raw)
            history.tally.add(Tally.from_json(record["tally"]))
        return history

    def twin(self, content: str) -> tuple[str, str] | None:
        """Which file, of this run or an earlier one, has these bytes, and the digest of its captions."""
        entry = self.contents.get(content)
        return self.new.get(content) if entry is None else (entry.file, entry.caption)

    def _add_samples(self, part: Path, pictures: bool) -> None:
        columns = ["uid", *(["phash", "file", "start", "stop"] if pictures else [])]
        table = pyarrow.parquet.read_table(io.BytesIO(part.read_bytes()), columns=columns)
        self.uids.update(table["uid"].to_pylist())
        for row in table.to_pylist() if pictures else ():
            if row["phash"] is not None:
                self.seen.add(f"{row['file']} {row['start']}:{row['stop']}", row["phash"])

    def _add_file(self, raw: Mapping[str, Any]) -> None:
        rejected = tuple(Rejection.from_json(one) for one in raw["rejected"])
        caption = Caption(raw["caption"], raw["caption_long"])
        entry = Entry(raw["file"], digest_of(caption), raw["kept"] > 0, rejected, any(one.again for one in rejected))
        if not entry.again or raw["version"] not in self.versions:  # it may have been tried again since
            self.versions[raw["version"]] = entry
        before = self.contents.get(raw["content"])
        if raw["content"] and not entry.again and (before is None or not before.kept):
            self.contents[raw["content"]] = entry


def _check(dataset: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """All shards of a dataset are made alike: else the same clip would be in it twice, in two sizes."""
    names = [name for name in sorted({*made, *asked}) if made.get(name) != asked.get(name)]
    if names:
        told = ", ".join(f"{name} {_said(made.get(name))} (now {_said(asked.get(name))})" for name in names)
        remedy = "give the same options, or another --out"
        raise InputError("a dataset is made with one set of options", f"{dataset} was made with {told}", remedy)


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
