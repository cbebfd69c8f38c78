"""`Inventory`: what the records of a dataset say, which of them can be trusted, and which files nobody names."""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.dataset import manifest, shards
from data.dataset.lock import check_place
from data.dataset.manifest import Manifest
from data.dataset.shards import COMMITS, INDEX, MANIFEST, PREVIEWS, QUARANTINE, SHARDS
from data.integrity.diagnosis import Part, ShardJob
from data.integrity.findings import Finding
from parallel.errors import InputError

ASIDE = f"{QUARANTINE}/strays"
NAMES = {  # of what we write
    SHARDS: r"[0-9a-f]{32}\.tar",
    INDEX: r"[0-9a-f]{32}(-[0-9a-f]{16})?\.parquet",
    COMMITS: r"[0-9a-f]{32}\.json",
    MANIFEST: r"[0-9]{8}\.json",
    PREVIEWS: r"[0-9a-f]{32}-[0-9]{4,}\.jpg",
}


@dataclass
class Inventory:
    """The records of a dataset.

    Attributes:
        generations: of the manifest, by number, those that are as they were written.
        broken: generations that are not, and those that are missing, by number.
        commits: that are as they were written, by shard.
        strays: files that no record names.
        findings: what is wrong with the records.
        jobs: the shards to look at, in the order of the index.
        in_use: another process writes to the dataset: what no record names may be about to be.
    """

    dataset: Path
    generations: dict[int, Manifest] = field(default_factory=dict)
    broken: list[int] = field(default_factory=list)
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    strays: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    jobs: list[ShardJob] = field(default_factory=list)
    in_use: bool = False

    @property
    def latest(self) -> Manifest | None:
        """The highest generation that can be trusted."""
        return self.generations[max(self.generations)] if self.generations else None


def inventory_of(dataset: Path, deep: bool = True, decode: bool = False, held: bool = False) -> Inventory:
    """Reads every record of a dataset.

    Args:
        dataset: the folder.
        deep, decode: of the jobs.
        held: the caller is its writer.

    Raises:
        InputError: it is no dataset.
    """
    if not dataset.is_dir() or not any((dataset / name).is_dir() for name in (SHARDS, COMMITS, MANIFEST)):
        what = "no such folder" if not dataset.exists() else "it has no shards/, commits/ or manifest/"
        raise InputError("a dataset is a folder with shards", f"{dataset}: {what}", "give the --out of a prepare")
    check_place(dataset)
    found = Inventory(dataset, in_use=not held and _in_use(dataset))
    _generations(found)
    _commits(found)
    _jobs(found, deep, decode)
    if not found.in_use:
        _strays(found)
    return found


def _generations(found: Inventory) -> None:
    for path in manifest.files(found.dataset):
        try:
            one = manifest.read(path)
            _record(path)
            if manifest.path_of(found.dataset, one.generation) != path:
                raise InputError("a generation has its own file", f"it is generation {one.generation}", "")
            found.generations[one.generation] = one
        except InputError as error:
            found.broken.append(int(path.stem))
            remedy = "--repair puts it aside, and publishes what is committed"
            found.findings.append(Finding("changed manifest", _name(found, path), error.value, remedy))
    aside = {int(path.name[:8]) for path in (found.dataset / ASIDE / MANIFEST).glob("[0-9]" * 8 + "*")}
    for number in range(1, max(found.generations, default=0)):
        if number not in found.generations and number not in found.broken and number not in aside:
            path = manifest.path_of(found.dataset, number)
            found.broken.append(number)
            what = "an older generation; the latest is there"
            found.findings.append(
                Finding("missing manifest", _name(found, path), what, "--repair notes that it is lost")
            )


def _commits(found: Inventory) -> None:
    for path in sorted((found.dataset / COMMITS).glob("[!.]*.json")):
        try:
            found.commits[path.stem] = _record(path)
        except InputError as error:
            remedy = "--repair makes it again from the shard and its index"
            found.findings.append(Finding("changed commit", _name(found, path), error.value, remedy, path.stem))


def _record(path: Path) -> dict[str, Any]:
    """A record that is the bytes that its values give, so that no byte can change unseen."""
    record = shards.read_json(path)
    if path.read_bytes() != shards.as_json(record):
        raise InputError("a record does not change once it is written", f"{path}: its bytes do not fit its values", "")
    return shards.unsealed(path, record)


def _jobs(found: Inventory, deep: bool, decode: bool) -> None:
    latest = found.latest
    published: dict[str, Part] = dict(zip(latest.shards, latest.index, strict=True)) if latest else {}
    known = {path.stem for path in (found.dataset / COMMITS).glob("[!.]*.json")}
    if latest is None and known and not found.broken and not found.in_use:
        remedy = "run the same prepare or import again; or --repair publishes what is committed"
        name = _name(found, manifest.path_of(found.dataset, 1))
        found.findings.append(Finding("missing manifest", name, "no generation is there", remedy))
    for shard_id in [*published, *sorted(known - published.keys())]:
        record, part = found.commits.get(shard_id), published.get(shard_id)
        name = f"{COMMITS}/{shard_id}.json"
        if shard_id not in known:
            remedy = "--repair makes it again from the shard and its index"
            found.findings.append(Finding("missing commit", name, "the manifest names it", remedy, shard_id))
        elif record is not None and _part(record) != part and latest is not None and not found.in_use:
            remedy = "run the same prepare or import again; or --repair publishes it"
            found.findings.append(Finding("unpublished", name, "the manifest does not have it so", remedy, shard_id))
        index = _part(record) if record is not None else part or (f"{INDEX}/{shard_id}.parquet", "", 0)
        found.jobs.append(ShardJob(found.dataset, shard_id, record, index, deep, decode))


def _strays(found: Inventory) -> None:
    generations = found.generations.values()
    known = {path.stem for path in (found.dataset / COMMITS).glob("[!.]*.json")}
    known.update(*(one.shards for one in generations))
    parts = {path for one in generations for path, _, _ in one.index} | {job.index[0] for job in found.jobs}
    for folder, pattern in NAMES.items():
        for path in sorted((found.dataset / folder).glob("*")):
            fits = re.fullmatch(pattern, path.name) and path.is_file()
            named = _name(found, path) in parts if folder == INDEX else shards.shard_of(path) in known
            if not fits or not (named or folder in (COMMITS, MANIFEST)):
                found.strays.append(path)
                half = path.name.startswith(".") and path.suffix == ".tmp" and path.is_file()
                what = "half written by a killed writer" if half else "no record names it"
                remedy = "--repair removes it" if half else f"--repair moves it to {QUARANTINE}/"
                found.findings.append(Finding("stray file", _name(found, path), what, remedy))


def _part(record: dict[str, Any]) -> Part:
    path, digest, rows = record["index"]
    return path, digest, int(rows)


def _name(found: Inventory, path: Path) -> str:
    return path.relative_to(found.dataset).as_posix()


def _in_use(dataset: Path) -> bool:
    """Whether a writer holds the dataset, or several share it."""
    folder = os.open(dataset, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back at once
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False
