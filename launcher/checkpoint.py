"""Checkpoints: one moment of a run, committed by a rename, in tensors and JSON alone.

    checkpoints/step-00000100/
        manifest.json            step, position in the data, config, and for each part its size and BLAKE3 hash
        part-00000.safetensors   some parameters, each whole: "<name>.master", "<name>.exp_avg", "<name>.exp_avg_sq"

Every rank writes a part, flushed to disk; rank 0 then writes the manifest and renames the folder. So a kill at any
moment leaves whole checkpoints and perhaps one hidden folder that the next save removes. Parameters are stored whole,
whatever mesh, ZeRO stage or number of ranks wrote them, so any other can read them. A broken checkpoint is named and
passed over for the one before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch.distributed as dist
from blake3 import blake3
from torch import Tensor

from data.curriculum import Position
from launcher.config import DataConfig, RunConfig
from launcher.folder import flush_folder, write_whole
from parallel.errors import InputError
from parallel.zero import STATE_NAMES, Engine

FORMAT = 2
KEPT_DATA = (
    "pack_tokens",
    "packs_per_step",
    "frames",
    "size",
    "stride",
    "window",
    "caption",
    "weights",
)  # settings that decide what is in a pack


@dataclass(frozen=True)
class TrainState:
    """What a run is besides tensors.

    Attributes:
        position: in the data; its step counts the updates done.
        datasets: digests of those of each segment that has begun.
    """

    position: Position
    datasets: tuple[tuple[str, ...], ...]

    @property
    def step(self) -> int:
        """Updates done."""
        return self.position.step


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose hashes were verified."""

    path: Path
    manifest: dict[str, Any]

    @property
    def state(self) -> TrainState:
        """The moment that it holds."""
        m = self.manifest
        return TrainState(Position.from_json(json.dumps(m["position"])), tuple(map(tuple, m["datasets"])))

    def parameters(self, keys: tuple[str, ...] = STATE_NAMES) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Name and tensors of each parameter, in the model's order, read one at a time."""
        for part in self.manifest["parts"]:
            with safetensors.safe_open(self.path / part["file"], framework="pt") as file:
                for name in part["parameters"]:
                    yield name, {key: file.get_tensor(f"{name}.{key}") for key in keys}


def name_of(step: int) -> str:
    """The folder of a step."""
    return f"step-{step:08d}"


def save(folder: Path, state: TrainState, engine: Engine, config: RunConfig) -> Path:
    """Commit a checkpoint of this moment. Collective; returns its folder once it is committed.

    Args:
        folder: that holds the run's checkpoints.
        state: of this moment.
        engine: whose parameters and moments are saved.
        config: kept in the manifest; `checkpoint.keep` newest checkpoints stay.
    """
    rank = dist.get_rank()
    final, temporary = folder / name_of(state.step), folder / f".{name_of(state.step)}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    shares = share_out({n: getattr(p, "ds_numel", p.numel()) for n, p in engine.module.named_parameters()})
    tensors = engine.export(set(shares[rank]))
    part = _write_part(temporary / f"part-{rank:05d}.safetensors", shares[rank], tensors)
    parts: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, part)
    if rank == 0:
        manifest = {
            "format": FORMAT,
            "step": state.step,
            "position": json.loads(state.position.to_json()),
            "datasets": state.datasets,
            "config": config.model_dump(mode="json"),
            "parts": [p for p in parts if p["parameters"]],
        }
        write_whole(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        _commit(temporary, final)
        _retire(folder, config.checkpoint.keep)
    dist.barrier()
    return final


def newest(folder: Path, verify: bool = True) -> tuple[Checkpoint | None, list[tuple[str, str]]]:
    """The newest whole checkpoint, and (name, reason) of the broken ones that were passed over.

    Args:
        folder: that holds the run's checkpoints; it need not exist.
        verify: also compare the hash of every part.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    broken: list[tuple[str, str]] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return Checkpoint(path, check(path, verify)), broken
        except ValueError as error:
            broken.append((path.name, str(error)))
    if broken:
        raise InputError(
            "a run resumes from a whole checkpoint",
            f"{folder}: none of {len(broken)} is; {broken[0][0]}: {broken[0][1]}",
            "bring one back from a copy, or remove the folder to train from the start",
        )
    return None, broken


def check(path: Path, verify: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ValueError: it is broken; says which file and how.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
        found = manifest["format"]
        step, parts = manifest["step"], [(p["file"], p["bytes"], p["blake3"]) for p in manifest["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"manifest.json: {error!r}") from None
    if found != FORMAT:
        raise ValueError(f"manifest.json: format {found}, this version reads {FORMAT}")
    if name_of(step) != path.name:
        raise ValueError(f"manifest.json: is of step {step}")
    for name, size, digest in parts:
        if Path(name).name != name:
            raise ValueError(f"manifest.json: {name!r} lies outside of the checkpoint")
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name}: is missing")
        if file.stat().st_size != size:
            raise ValueError(f"{name}: {file.stat().st_size} bytes, not {size}")
        if verify and blake3().update_mmap(file).hexdigest() != digest:
            raise ValueError(f"{name}: its content is not what was written")
    return manifest


def refuse_changes(checkpoint: Checkpoint, config: RunConfig) -> None:
    """A resumed run keeps what its state depends on; segments of data that have not begun may change.

    Raises:
        InputError: the model, codec, objective, seed or packing differ from the checkpoint's.
    """
    changes = _changes(checkpoint, config, ("seed", "codec", "model", "objective"))
    step = checkpoint.state.step
    before = _segment(DataConfig.model_validate(checkpoint.manifest["config"]["data"]), step)
    changes += list(_differences("data", before, _segment(config.data, step)))
    if changes:
        raise InputError(
            "a run resumes with the model and data that it began with",
            f"{checkpoint.path}: {'; '.join(changes)}",
            "set it back, add data.segments for the steps to come, or start another run with out=FOLDER",
        )


def changed_settings(checkpoint: Checkpoint, config: RunConfig) -> list[str]:
    """Settings that a resumed run may change, and did: the curve from here on is not that of the old ones."""
    return _changes(checkpoint, config, ("dtype", "optimizer"))


def _segment(data: DataConfig, step: int) -> dict[str, Any]:
    """What decides the data around `step`: the settings of the segment that the step before it was of."""
    at = max(0, sum(start < step for start in data.starts) - 1)
    merged = data.merged()[at]
    weights = list((merged.weights or {}).values())
    settings = merged.model_dump(mode="json") | {"weights": weights if len(weights) > 1 else None}
    return {"segment begins": data.starts[at], **{key: settings[key] for key in KEPT_DATA}}


def _changes(checkpoint: Checkpoint, config: RunConfig, keys: Sequence[str]) -> list[str]:
    before, now = checkpoint.manifest["config"], config.model_dump(mode="json")
    return [c for key in keys for c in _differences(key, _get(before, key), _get(now, key))]


def share_out(sizes: Mapping[str, int]) -> list[list[str]]:
    """Parameters in stretches of the model's order, one for each rank, of nearly equal size."""
    ranks, total = dist.get_world_size(), sum(sizes.values())
    shares: list[list[str]] = [[] for _ in range(ranks)]
    before = 0
    for name, size in sizes.items():
        shares[min(ranks - 1, (before + size // 2) * ranks // max(1, total))].append(name)
        before += size
    return shares


def _write_part(path: Path, names: list[str], tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    flat = {f"{name}.{key}": tensors[name][key].contiguous() for name in names for key in STATE_NAMES}
    data = safetensors.torch.save(flat)
    write_whole(path, data)
    return {"file": path.name, "bytes": len(data), "blake3": blake3(data).hexdigest(), "parameters": names}


def _commit(temporary: Path, final: Path) -> None:
    """Rename into place; a broken checkpoint of the same step makes way."""
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    flush_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _retire(folder: Path, keep: int) -> None:
    for old in sorted(folder.glob("step-*"), reverse=True)[keep:]:
        gone = old.with_name(f".{old.name}.old")  # first a rename: a half-deleted checkpoint must not look whole
        shutil.rmtree(gone, ignore_errors=True)
        old.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _get(settings: Mapping[str, Any], key: str) -> Any:
    here: Any = settings
    for name in key.split("."):
        here = here.get(name) if isinstance(here, Mapping) else None
    return here


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield f"{key}: {before} became {now}"
