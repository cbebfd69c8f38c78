"""The manifest: which committed shards make up a dataset, in which order. Generations, append only, the highest wins.

A run that names a generation's digest trains on exactly those samples, however much is appended later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.shards import MANIFEST, read_json, write_json
from parallel.errors import InputError

SCHEMA = 2


@dataclass(frozen=True)
class Manifest:
    """One generation.

    Attributes:
        generation: 1, 2, 3 ...; `parent` is the one before, 0 for the first.
        shards: ids in the order of the index.
        index: [path relative to the dataset, BLAKE3, rows] of each shard's rows, in that order.
        config: digest of the options of the run that wrote it.
        digest: of the samples; the identity of the dataset.
    """

    generation: int
    parent: int
    shards: tuple[str, ...]
    index: tuple[tuple[str, str, int], ...]
    config: str
    digest: str
    schema: int = SCHEMA


def latest(dataset: Path) -> Manifest | None:
    """The highest generation, None if there is none yet.

    Raises:
        InputError: it cannot be read, or a newer Longreel wrote it.
    """
    files = sorted((dataset / MANIFEST).glob("[0-9]*.json"))
    if not files:
        return None
    raw = read_json(files[-1])
    if raw.get("schema") != SCHEMA:
        raise InputError(
            f"a manifest has schema {SCHEMA}", f"{files[-1]}: {raw.get('schema')}", "use the Longreel that wrote it"
        )
    return Manifest(
        **{**raw, "shards": tuple(raw["shards"]), "index": tuple((p, h, int(n)) for p, h, n in raw["index"])}
    )


def append(dataset: Path, manifest: Manifest) -> None:
    """Writes a generation by rename."""
    write_json(dataset / MANIFEST / f"{manifest.generation:08d}.json", asdict(manifest))


def order(parent: Manifest | None, commits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Shard ids of the next generation: the parent's, then the new ones by their first source file.

    So the order does not depend on whether a run was killed between two shards.
    """
    old = list(parent.shards) if parent else []
    new = sorted((c["inputs"][0]["file"], shard_id) for shard_id, c in commits.items() if shard_id not in set(old))
    return old + [shard_id for _, shard_id in new]
