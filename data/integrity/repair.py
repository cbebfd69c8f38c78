"""`repair`: what can be made whole is made whole, what cannot is left out of a new generation and listed.

    check every shard -> list what will be lost in quarantine/ -> per shard: tar, rows, commit -> manifest

Older generations keep their files: a repaired shard gets its old rows back byte for byte, or a new part of the index
beside the old one. Bytes in a tar never move, so who still reads by the old rows reads the same. What is lost is listed
before, and files that cannot be used are moved, not removed; a kill at any moment costs another repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.dataset import index, shards
from data.dataset.lock import held, put_aside
from data.dataset.manifest import path_of
from data.dataset.publish import publish
from data.dataset.shards import COMMITS, SHARDS, digest_of
from data.integrity.check import CheckProgress, one_by_one, same_samples, wrong_digest
from data.integrity.diagnosis import Diagnosis
from data.integrity.findings import Finding
from data.integrity.inventory import ASIDE, Inventory, inventory_of
from data.integrity.repair_shard import is_gone, repair_shard
from data.integrity.shard_check import check_shard
from parallel.errors import InputError


@dataclass
class Repaired:
    """What a repair did.

    Attributes:
        findings: what was wrong.
        done: (file, what was done to it).
        lost: entries of the list in quarantine/, one for each sample or file that is no longer in the dataset.
        generation: the new one of the manifest, None if none was needed.
    """

    findings: list[Finding] = field(default_factory=list)
    done: list[tuple[str, str]] = field(default_factory=list)
    lost: list[dict[str, str]] = field(default_factory=list)
    generation: int | None = None


def repair(
    dataset: Path,
    decode: bool = False,
    workers: int | None = None,
    on_progress: Callable[[CheckProgress], None] | None = None,
) -> Repaired:
    """Mends a dataset as far as its own bytes allow; what cannot be mended is left out and listed.

    Args:
        dataset: the folder. Others may read it meanwhile.
        decode: leave out what does not decode, too.
        workers: processes; None chooses: this one if there is little to do, else one per core.
        on_progress: called after each shard.

    Raises:
        InputError: it is no dataset, another process writes to it, or none of its shards is there.
    """
    inventory_of(dataset)  # before the lock makes a folder of what is none
    with held(dataset):
        records = inventory_of(dataset, decode=decode, held=True)
        noted = {finding.shard for finding in records.findings}
        told = Repaired(list(records.findings))
        broken: dict[str, Diagnosis] = {}
        for job, found in one_by_one(records.jobs, workers, on_progress):
            told.findings += found
            if found or job.shard in noted:
                broken[job.shard] = check_shard(job)
        _check_any_left(records, broken)
        across = list(_across(records, broken))
        told.findings += across
        if told.findings:
            told.lost = [entry for one in broken.values() for entry in _losses(one)]
            shards.quarantine(dataset, told.lost)
            told.done += _records_aside(records)
            for one in broken.values():
                told.done += repair_shard(one, records.commits)
            dropped = {shard_id for shard_id, one in broken.items() if is_gone(one)}
            anew = any(finding.kind == "changed manifest" for finding in across)
            made = publish(dataset, _config(records), dropped, anew)
            told.generation = made.generation if made else None
            told.done += _strays_aside(inventory_of(dataset, deep=False, held=True))
    return told


def _check_any_left(records: Inventory, broken: Mapping[str, Diagnosis]) -> None:
    """A folder that was not mounted is not a dataset whose shards are lost."""
    missing = [one for one in broken.values() if any(f.kind == "missing shard" for f in one.findings)]
    if missing and len(missing) == len(records.jobs):
        found = f"{records.dataset / SHARDS} has none of {len(missing)}"
        raise InputError("a dataset that is repaired has shards", found, "mount the disk, or prepare anew")
    if records.jobs and len(broken) == len(records.jobs) and all(is_gone(one) for one in broken.values()):
        lost = sum(len(one.lost) for one in broken.values())
        found = f"{records.dataset}: all {lost} in {len(broken)} shards are damaged; nothing was changed"
        raise InputError(
            "a dataset that is repaired keeps samples", found, "restore shards from a copy, or prepare anew"
        )


def _across(records: Inventory, broken: dict[str, Diagnosis]) -> Iterator[Finding]:
    """What no shard shows by itself; takes samples that are there before out of `broken`."""
    jobs = {job.shard: job for job in records.jobs}
    uids = {i: index.read_uids(records.dataset, job.index[0]) for i, job in jobs.items() if i not in broken}
    yield from wrong_digest(records, uids)
    uids |= {shard_id: [row["uid"] for row in one.rows] for shard_id, one in broken.items()}
    for finding in same_samples(records, uids):
        yield finding
        one = broken.setdefault(finding.shard, check_shard(jobs[finding.shard]))
        last = max(number for number, row in enumerate(one.rows) if row["uid"] == finding.sample)
        one.lose(one.rows.pop(last), finding.what)


def _losses(one: Diagnosis) -> Iterator[dict[str, str]]:
    """What a shard loses, a line each."""
    shard = one.job.tar
    for row, reason in one.lost:
        yield {"file": row.get("file", ""), "reason": reason, "shard": shard, "sample": row["uid"]}
    if is_gone(one) and not one.lost:
        for entry in one.job.record["inputs"] if one.job.record else [{"file": ""}]:
            yield {"file": entry["file"], "reason": "nothing of its shard is left", "shard": shard, "sample": ""}


def _records_aside(records: Inventory) -> Iterator[tuple[str, str]]:
    """Records that are not as they were written go to quarantine/strays/; of missing generations, a note goes there."""
    dataset = records.dataset
    commits = [dataset / COMMITS / f"{job.shard}.json" for job in records.jobs if job.record is None]
    for path in [*(path_of(dataset, number) for number in records.broken), *commits]:
        name = path.relative_to(dataset).as_posix()
        if path.exists():
            yield name, f"moved to {put_aside(dataset, path)}"
        elif path not in commits:
            shards.write_json(dataset / ASIDE / name, {"file": name, "reason": "missing"})
            yield name, "noted as lost"


def _strays_aside(records: Inventory) -> Iterator[tuple[str, str]]:
    """Files that no record names go to quarantine/strays/; half-written ones go."""
    for path in records.strays:
        name = path.relative_to(records.dataset).as_posix()
        if path.name.startswith(".") and path.suffix == ".tmp" and path.is_file():
            path.unlink()
            yield name, "removed: half written"
        else:
            yield name, f"moved to {put_aside(records.dataset, path)}"


def _config(records: Inventory) -> str:
    """Of the latest generation, else of any commit."""
    if records.latest is not None:
        return records.latest.config
    return digest_of(next((record["config"] for record in records.commits.values()), {}))
