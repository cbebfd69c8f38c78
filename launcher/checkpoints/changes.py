"""What a resumed run may change of what it began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from launcher.checkpoints.reading import Checkpoint
from launcher.config import DataConfig, RunConfig
from launcher.folder import RunFolder, known_id
from models.kinds import ModelConfig
from parallel.errors import InputError

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
SPARING = ("recompute", "offload", "mlp_tiles", "compile")  # settings of a model that only decide what memory it takes
LABELS = {"weights": "dataset, its weights"}  # there is no setting of that name


def refuse_changes(checkpoint: Checkpoint, config: RunConfig) -> None:
    """A resumed run keeps what its state depends on; segments of data that have not begun may change.

    Raises:
        InputError: the model, codec, objective, seed or packing differ from the checkpoint's.
    """
    changes = _changes(checkpoint, config, ("seed", "codec", "objective"))
    changes += list(_differences("model", _lasting(_model(checkpoint)), _lasting(config.model.model_dump(mode="json"))))
    step = checkpoint.state.step
    before = _segment(DataConfig.model_validate(checkpoint.manifest.config["data"]), step)
    changes += list(_differences("data", before, _segment(config.data, step)))
    if changes:
        raise InputError(
            "a run resumes with the model and data that it began with",
            f"{checkpoint.where}: {'; '.join(changes)}",
            "set it back, add data.segments for the steps to come, or start another run with out=FOLDER",
        )


def refuse_foreign(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Checkpoints that lie outside of the run folder are of this run: it goes on from them, and removes old ones.

    Raises:
        InputError: they are of another run folder, and `checkpoint.adopt` does not say that they shall be ours.
    """
    of, ours = checkpoint.manifest.run, known_id(RunFolder(config.out))
    if config.checkpoint.to is None or config.checkpoint.adopt or not of or of == ours:
        return
    raise InputError(
        "checkpoint.to holds checkpoints of this run alone",
        f"{checkpoint.where} is of another run folder than {config.out}",
        "another checkpoint.to, or out= of that run; if its folder is gone, checkpoint.adopt=true to go on for it",
    )


def changed_settings(checkpoint: Checkpoint, config: RunConfig) -> list[str]:
    """Settings that a resumed run may change, and did: the curve from here on is not that of the old ones."""
    before, now = (_sparing(m) for m in (_model(checkpoint), config.model.model_dump(mode="json")))
    return [*_changes(checkpoint, config, ("dtype", "optimizer")), *_differences("model", before, now)]


def _model(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of the checkpoint, with what keys that did not exist then mean now."""
    settings = checkpoint.manifest.config["model"]
    known: BaseModel = TypeAdapter(ModelConfig).validate_python(settings)
    return known.model_dump(mode="json")


def _lasting(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in SPARING}


def _sparing(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model.get(key) for key in SPARING}


def _segment(data: DataConfig, step: int) -> dict[str, Any]:
    """What decides the data around `step`: the settings of the segment that the step before it was of."""
    at = max(0, sum(start < step for start in data.starts) - 1)
    merged = data.merged()[at]
    weights = list((merged.weights or {}).values())
    settings = merged.model_dump(mode="json") | {"weights": weights if len(weights) > 1 else None}
    return {"segment begins": data.starts[at], **{LABELS.get(key, key): settings[key] for key in KEPT_DATA}}


def _changes(checkpoint: Checkpoint, config: RunConfig, keys: Sequence[str]) -> list[str]:
    before, now = checkpoint.manifest.config, config.model_dump(mode="json")
    return [c for key in keys for c in _differences(key, _get(before, key), _get(now, key))]


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
