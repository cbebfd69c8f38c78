"""From a run folder to the state that training goes on from, and the saver of those to come. All of it collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from data.streams.curriculum import Position
from launcher.batches.idle_replicas import as_begun
from launcher.batches.loader import BatchLoader
from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState, layout_of, verify
from launcher.checkpoints.compatibility import changed_settings, refuse_changes, refuse_foreign, refuse_left_behind
from launcher.checkpoints.part import Part
from launcher.checkpoints.reading import Checkpoint, newest
from launcher.checkpoints.saver import Keep, Saver
from launcher.checkpoints.storage import Storage
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, run_id, take_id
from launcher.training.metrics_log import MetricsLog
from launcher.training.number_digests import Made, differences
from launcher.training.resume_check import ResumeCheck, distrusted
from parallel.fragments import trained
from parallel.zero.ema import EMA, Ema
from parallel.zero.engine import Engine


def find_checkpoint(config: RunConfig, folder: RunFolder, storage: Storage) -> Checkpoint | None:
    """The newest whole checkpoint, the same for all ranks, each of which compares the hashes of its share of the files.

    Raises:
        InputError: none is whole, or the config changes what the state depends on.
    """
    found: list[Any] = [None, None, [], None]
    if dist.get_rank() == 0:
        doubts = distrusted(folder) if config.restart.verify else {}
        try:
            checkpoint, broken = newest(storage, lambda s, n, m: doubts.get(n) or _verified_by_all(s, n, m))
            found = [checkpoint.name, checkpoint.manifest, broken, None] if checkpoint else [None, None, broken, None]
            refuse_left_behind(folder, storage, checkpoint)
            if checkpoint is not None:
                refuse_foreign(checkpoint, config)
                if config.checkpoint.adopt and checkpoint.manifest.run:
                    take_id(folder, checkpoint.manifest.run)
        except Exception as error:  # every rank must hear of it, or the others would wait
            found[3] = error
        _send(None)
    else:
        while (asked := _receive()) is not None:
            _verify_share(storage, *asked)
    dist.broadcast_object_list(found)
    name, manifest, broken, failure = found
    if failure is not None:
        raise failure
    if dist.get_rank() == 0:
        for passed_over, reason in broken:
            folder.record("fallback", checkpoint=passed_over, reason=reason)
    if name is None:
        return None
    checkpoint = Checkpoint(storage, name, manifest)
    refuse_changes(checkpoint, as_begun(config, checkpoint))
    return checkpoint


def resume(
    folder: RunFolder,
    found: Checkpoint | None,
    loader: BatchLoader,
    engine: Engine,
    ema: Ema | None,
    changed: Sequence[str] = (),
) -> TrainState:
    """The state to go on from; parameters, moments and average are restored. `changed` is told with it."""
    if found is None:
        return TrainState(Position(), ())
    state = found.state
    loader.curriculum.verify(state.position)
    found.fill(engine.held(), engine.tensor_names)
    engine.refresh(state.updates.done)
    if ema is not None and EMA in found.manifest.keys:
        found.fill(ema.fragments, (EMA,))
    elif ema is not None:
        ema.restart()
    if dist.get_rank() == 0:
        folder.record(
            "resume", step=state.step, checkpoint=found.name, layout=found.manifest.layout, changed=list(changed)
        )
    return state


def changed_since(config: RunConfig, found: Checkpoint | None, made: Made) -> list[str]:
    """What is not as it was when the checkpoint was written, one sentence each: settings, versions, machine."""
    if found is None:
        return []
    old = {name: has for name, has in found.manifest.versions.items() if name in made.versions}
    of_machine = differences(found.manifest.machine, made.machine)
    return [*changed_settings(found, config), *of_machine, *differences(old, made.versions)]


def resume_check_of(
    config: RunConfig, found: Checkpoint | None, device: torch.device, changed: Sequence[str]
) -> ResumeCheck | None:
    """What compares the first steps after a resume with what they were; None if there is nothing to compare."""
    if found is None or not config.restart.verify:
        return None
    exact = device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    stages = (config.zero.stage, found.manifest.config.get("zero", {}).get("stage", 0))
    masters = (
        "float32" if config.dtype == "float64" and any(stages) else config.dtype
    )  # of DeepSpeed (parallel.zero.deepspeed_engine)
    tf32 = device.type == "cuda" and config.dtype == "float32"
    return ResumeCheck(found.name, exact, masters, tf32, changed, found.manifest.recent)


def saver_for(
    config: RunConfig, storage: Storage, engine: Engine, ema: Ema | None, log: MetricsLog, made: Made
) -> Saver:
    """What saves this engine, and its average if there is one."""
    settings = config.model_dump(mode="json")
    shapes = {n: tuple(getattr(p, "ds_shape", p.shape)) for n, p in trained(engine.module).items()}
    layout = layout_of(settings)
    run = run_id(RunFolder(config.out)) if dist.get_rank() == 0 else ""  # who commits writes the manifest

    def manifest(state: TrainState, parts: Sequence[Part], recent: Sequence[dict[str, Any]]) -> Manifest:
        told = tuple(recent)
        return Manifest(
            state, settings, layout, dict(made.versions), told, shapes, tuple(parts), run, made.outside, made.machine
        )

    fragments = ema.fragments if ema is not None else engine.owned()
    keep = Keep(config.checkpoint.keep, config.checkpoint.keep_every)
    return Saver(storage, fragments, manifest, keep, config.checkpoint.retry_seconds, log.event)


def _verified_by_all(storage: Storage, name: str, manifest: Manifest) -> str | None:
    _send((name, manifest))
    return _verify_share(storage, name, manifest)


def _verify_share(storage: Storage, name: str, manifest: Manifest) -> str | None:
    """What any rank found wrong with the parts that it compared."""
    mine = verify(storage, name, manifest.parts[dist.get_rank() :: dist.get_world_size()])
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return next((reason for reason in found if reason is not None), None)


def _send(asked: tuple[str, Manifest] | None) -> None:
    dist.broadcast_object_list([asked])


def _receive() -> tuple[str, Manifest] | None:
    asked: list[tuple[str, Manifest] | None] = [None]
    dist.broadcast_object_list(asked)
    return asked[0]
