"""`publish`: what commits hold becomes the next generation of the manifest.

commits/*.json --order--> shards --uids of their rows--> digest --> manifest/<parent + 1>.json
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from data.dataset import index, manifest, shards
from data.dataset.manifest import Manifest


def publish(dataset: Path, config: str, dropped: Container[str] = (), anew: bool = False) -> Manifest | None:
    """Appends a generation if commits hold something that the latest one lacks, and returns it.

    Args:
        dataset: the folder, held by the caller.
        config: digest of the options of the run.
        dropped: shards of the latest generation that the next one leaves out; their commits are gone.
        anew: append one even if it holds nothing new.

    Raises:
        InputError: a record cannot be read or was changed, or a shard of the latest generation has no commit.
    """
    commits, parent = shards.commits(dataset), manifest.latest(dataset)
    order = manifest.order(parent, commits, dropped)
    parts = tuple((path, digest, rows) for path, digest, rows in (commits[shard_id]["index"] for shard_id in order))
    if not anew and parent is not None and (list(parent.shards), parent.index) == (order, parts):
        return None
    digest = index.content_digest(uid for path, _, _ in parts for uid in index.read_uids(dataset, path))
    number = parent.generation if parent else 0
    found = Manifest(number + 1, number, tuple(order), parts, config, digest)
    manifest.append(dataset, found)
    return found
