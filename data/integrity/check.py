"""`check`: whether a dataset is what it was written to be, every byte of it; what is not is named. Changes nothing.

    records --trusted?--> jobs, one per shard --hash, compare, in workers--> findings

`deep` reads all of it; without, sizes and structure tell most accidents: about a millisecond a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.dataset import index
from data.dataset.manifest import path_of
from data.integrity.diagnosis import ShardJob
from data.integrity.findings import LEAVE_OUT_SECOND, Finding
from data.integrity.inventory import Inventory, inventory_of
from data.integrity.shard_check import findings_of
from data.workers.processes import Limits, Lost, Workers, available_cores, fair_memory

SMALL_JOB_BYTES = 8 << 30  # below it, starting workers costs more than it saves
SECONDS = 7200.0  # that a shard may take
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class CheckProgress:
    """`done` of `total` bytes, the last of them of `shard`; `findings` so far."""

    done: int
    total: int
    shard: str
    findings: int


def check(
    dataset: Path,
    deep: bool = True,
    decode: bool = False,
    workers: int | None = None,
    on_progress: Callable[[CheckProgress], None] | None = None,
) -> list[Finding]:
    """What is wrong with a dataset; nothing is an empty list.

    Args:
        dataset: the folder. Others may read and write it meanwhile.
        deep: hash every byte and compare every row with its shard.
        decode: decode every sample, too.
        workers: processes; 0 works in this one; None chooses: this one if nothing is decoded and little to do, else one
            per core.
        on_progress: called after each shard.

    Raises:
        InputError: it is no dataset.
    """
    deep = deep or decode
    records = inventory_of(dataset, deep, decode)
    findings = list(records.findings)
    broken = {finding.shard for finding in findings}
    for job, found in one_by_one(records.jobs, workers, on_progress):
        findings += found
        broken |= {job.shard} if found else set()
    if deep:
        whole = [job for job in records.jobs if job.shard not in broken]
        uids = {job.shard: index.read_uids(dataset, job.index[0]) for job in whole}
        findings += [*same_samples(records, uids), *wrong_digest(records, uids)]
    return findings


def one_by_one(
    jobs: Sequence[ShardJob], workers: int | None, on_progress: Callable[[CheckProgress], None] | None
) -> Iterator[tuple[ShardJob, list[Finding]]]:
    """What is wrong with each shard; arguments as of `check`."""
    sizes = [_size(job) for job in jobs]
    if workers is None:
        much = sum(sizes) > SMALL_JOB_BYTES and any(job.deep for job in jobs)
        workers = available_cores() if much or any(job.decode for job in jobs) else 0
    done, told = 0, 0
    with Workers(workers, Limits(SECONDS, fair_memory(workers))) as pool:
        for job, size, found in zip(jobs, sizes, pool.map(findings_of, jobs), strict=True):
            if isinstance(found, Lost):
                what = f"{found.reason} while it was checked"
                found = [
                    Finding(
                        "unreadable",
                        job.tar,
                        what,
                        "look at the disk and at the memory of this machine, then check again",
                        job.shard,
                    )
                ]
            yield job, found
            done, told = done + size, told + len(found)
            if on_progress:
                on_progress(CheckProgress(done, sum(sizes), job.shard, told))


def _size(job: ShardJob) -> int:
    try:
        return (job.dataset / job.tar).stat().st_size
    except OSError:
        return 0


def same_samples(records: Inventory, uids: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Samples that are there twice; `uids` of each shard."""
    for job, uid in twice(uids, records.jobs):
        yield Finding("same sample", job.tar, "it is there before", LEAVE_OUT_SECOND, job.shard, uid)


def wrong_digest(records: Inventory, uids: Mapping[str, list[str]]) -> Iterator[Finding]:
    """A latest generation that names other samples than its shards have; `uids` of each shard that is whole."""
    latest = records.latest
    if latest is None or not all(shard_id in uids for shard_id in latest.shards):
        return
    digest = index.content_digest(uid for shard_id in latest.shards for uid in uids[shard_id])
    if digest != latest.digest:
        name = path_of(records.dataset, latest.generation).relative_to(records.dataset).as_posix()
        what = f"the digest of its samples is {digest}, it says {latest.digest}"
        yield Finding("changed manifest", name, what, "--repair publishes what is committed")


def twice(uids: Mapping[str, list[str]], jobs: Sequence[ShardJob]) -> Iterator[tuple[ShardJob, str]]:
    """Samples that an earlier shard has, or that stand in theirs before. Ten million take about a second."""
    if not uids:
        return
    words = np.sort(np.concatenate([_words(of_one) for of_one in uids.values()]))
    again = set(words[1:][words[1:] == words[:-1]].tolist())
    if not again:
        return
    seen: set[str] = set()
    for job in jobs:
        for uid in uids.get(job.shard, ()):
            if int(uid[:16], 16) in again:
                if uid in seen:
                    yield job, uid
                seen.add(uid)


def _words(uids: list[str]) -> Words:
    """The first half of each id; equal ids have equal ones."""
    return np.fromiter((int(uid[:16], 16) for uid in uids), np.uint64, len(uids))
