"""The manifest: which committed shards make up a dataset, in which order. Generations, append only, the highest wins.

A run that names a generation's digest trains on exactly those samples, however much is appended later.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.dataset.shards import MANIFEST, read_json, sealed, unsealed, write_json
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


def latest(dataset: Path, digest: str | None = None) -> Manifest | None:
    """The highest generation, or the one of this digest; None if there is none yet, or none of it.

    Raises:
        InputError: it cannot be read, was changed, or another Longreel wrote it.
    """
    found = reversed(files(dataset))
    return next((m for m in map(read, found) if digest in (None, m.digest)), None)


def files(dataset: Path) -> list[Path]:
    """The files of all generations, the first one first."""
    return sorted((dataset / MANIFEST).glob("[0-9]" * 8 + ".json"))


def read(file: Path) -> Manifest:
    """One generation; raises as `latest`."""
    raw = read_json(file)
    if raw.get("schema") != SCHEMA:
        remedy = "use the Longreel that wrote it, or prepare the dataset anew into a new folder"
        raise InputError(f"a manifest has schema {SCHEMA}", f"{file}: {raw.get('schema')}", remedy)
    raw = unsealed(file, raw)
    return Manifest(
        **{**raw, "shards": tuple(raw["shards"]), "index": tuple((p, h, int(n)) for p, h, n in raw["index"])}
    )


def append(dataset: Path, manifest: Manifest) -> None:
    """Writes a generation by rename."""
    write_json(path_of(dataset, manifest.generation), sealed(asdict(manifest)))


def path_of(dataset: Path, generation: int) -> Path:
    """The file of a generation."""
    return dataset / MANIFEST / f"{generation:08d}.json"


def order(parent: Manifest | None, commits: Mapping[str, Mapping[str, Any]], dropped: Container[str] = ()) -> list[str]:
    """Shard ids of the next generation: the parent's, but for those dropped, then the new ones by their first source
    file. So the order does not depend on whether a run was killed between two shards.

    Raises:
        InputError: a shard of the parent has no commit.
    """
    old = [shard_id for shard_id in parent.shards if shard_id not in dropped] if parent else []
    lost = next((shard_id for shard_id in old if shard_id not in commits), None)
    if lost is not None:
        raise InputError(
            "every shard of a dataset has its commit", f"commits/{lost}.json is missing", "longreel data check --repair"
        )
    known = set(old)
    new = sorted((_first_file(commits[i]), i) for i in commits if i not in known)
    return old + [shard_id for _, shard_id in new]


def _first_file(commit: Mapping[str, Any]) -> str:
    return str(commit["inputs"][0]["file"]) if commit["inputs"] else ""
