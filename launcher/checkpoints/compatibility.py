"""What a resumed run may change of what it began with: decided for each setting by the effect that its key declares.

    STATE             refused: weights and moments mean something under this setting alone
    DATA              refused in segments that have begun: the remedy is a new one, written out
    CONTENT           a path may change, what lies there may not: datasets have digests, all else `external_hashes.py`
    NUMBERS, UPDATE   told: the curve from here on is not that of the old settings
    RATE              told with both rates, where the schedule jumps
    ROUNDING, MEMORY  told: last digits at most, which nobody has to take for a fault
    NOTHING           not worth a word

All of it is a function of the settings of the checkpoint, those of now, and the step between them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.chat import chat_index
from data.dataset import manifest
from launcher.checkpoints.checkpoint_manifest import name_of
from launcher.checkpoints.reading import Checkpoint
from launcher.checkpoints.storage import Storage, open_storage
from launcher.config.config_schema import leaves
from launcher.config.lr_schedule import learning_rate
from launcher.config.proposed_commands import setting
from launcher.config.run_config import RunConfig
from launcher.config.sections import DataConfig, SegmentConfig
from launcher.core.run_folder import RunFolder, known_id, read_lines
from parallel.errors import InputError
from parallel.optimizers.optimizer import OptimizerConfig
from parallel.optimizers.optimizer_registry import OPTIMIZERS
from parallel.setting_effects import Effect

TOLD = (Effect.NUMBERS, Effect.UPDATE, Effect.RATE, Effect.ROUNDING, Effect.MEMORY)
LABELS = {"weights": "dataset, its weights"}  # there is no setting of that name
KEPT = tuple(leaf.key for leaf in leaves({}, DataConfig) if leaf.effect is Effect.DATA)  # what a segment is made of
IN_SEGMENTS = dict.fromkeys(SegmentConfig.model_fields).keys()  # in the order of the schema
ANOTHER = "start another run with out=FOLDER"


@dataclass(frozen=True)
class Change:
    """A setting that a resumed run has, and the checkpoint has not.

    Attributes:
        key: of the setting.
        effect: that it declares.
        before: its value in the checkpoint, as JSON.
        now: its value now.
    """

    key: str
    effect: Effect
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} became {self.now}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Settings that differ, in the order of the schema; those of data, which depend on the segment, are left out.

    Args:
        before: settings of a run, as JSON; a key that is not there has its default.
        now: like it.
    """
    was, has = ({leaf.key: leaf for leaf in leaves(each)} for each in (before, now))
    found = []
    for key in dict.fromkeys((*was, *has)):
        one, other = was.get(key), has.get(key)
        values = tuple(leaf.value if leaf else None for leaf in (one, other))
        leaf = other or one
        assert leaf is not None, "it was in one of them"
        if values[0] != values[1] and not (leaf.effect is Effect.DATA or key.startswith("data.segments.")):
            found.append(Change(key, leaf.effect, *values))
    return found


def data_changes(before: DataConfig, now: DataConfig, step: int) -> list[Change]:
    """What differs in segments of data that have begun before the checkpoint of `step`."""
    old, new = _begun(before, step), _begun(now, step)
    if len(old) != len(new):
        starts = [", ".join(str(each["segment begins"]) for each in all_) for all_ in (old, new)]
        return [Change("data.segments begin after steps", Effect.DATA, *starts)]
    found = []
    for number, (was, has) in enumerate(zip(old, new, strict=True)):
        place = "data" if number == len(old) - 1 else f"data.segments.{number}"
        found += [Change(f"{place}.{key}", Effect.DATA, was[key], has[key]) for key in was if was[key] != has[key]]
    return found


def refuse_changes(checkpoint: Checkpoint, config: RunConfig) -> None:
    """A resumed run keeps what its state depends on; segments of data that have not begun may change.

    Raises:
        InputError: the model, codec, what is predicted, seed or packing differ from the checkpoint's.
    """
    step, settings = checkpoint.state.step, checkpoint.manifest.config
    before = DataConfig.model_validate(settings["data"])
    found = changes(settings, config.model_dump(mode="json"))
    lasting = [each for each in found if each.effect is Effect.STATE or _is_unnamed(checkpoint, each)]
    of_data = [*data_changes(before, config.data, step), *_other_datasets(checkpoint, before, config.data)]
    if not (lasting or of_data):
        return
    raise InputError(
        "a run resumes with the model and data that it began with",
        f"{checkpoint.where}: {'; '.join(map(str, (*lasting, *of_data)))}",
        f"set it back, or {ANOTHER}" if lasting else _remedy(before, config.data, step, of_data),
    )


def refuse_foreign(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Checkpoints that lie outside of the run folder are of this run: it goes on from them, and removes old ones.

    Raises:
        InputError: they are of another run folder, and `checkpoint.adopt` does not say that they shall be ours.
    """
    of, ours = checkpoint.manifest.run, known_id(RunFolder(config.out))
    if config.checkpoint.location is None or config.checkpoint.adopt or not of or of == ours:
        return
    raise InputError(
        "checkpoint.location holds checkpoints of this run alone",
        f"{checkpoint.where} is of another run folder than {config.out}",
        "another checkpoint.location, or out= of that run; if its folder is gone, checkpoint.adopt=true",
    )


def refuse_left_behind(folder: RunFolder, storage: Storage, found: Checkpoint | None) -> None:
    """A run whose `checkpoint.location` changed does not begin anew while its checkpoints lie where they were.

    Args:
        folder: of the run, whose events tell of every checkpoint and its place.
        storage: where checkpoints are to lie now.
        found: the newest there.

    Raises:
        InputError: a newer one lies elsewhere, or that place cannot be asked.
    """
    saved = [event for event in read_lines(folder.events) if event.get("event") == "checkpoint" and "path" in event]
    place = str(saved[-1]["path"]).rpartition("/")[0] if saved else ""
    if not saved or place == storage.where("").rstrip("/"):
        return
    if Path(place).parent != folder.root and RunFolder(Path(place).parent).config.is_file():
        return  # of the run that this folder was copied from
    try:
        names = open_storage(Path(place), place).names()
    except Exception:  # drivers of stores raise what they like; nobody knows that it is gone
        names = [name_of(int(saved[-1]["step"]))]
    if names and names[-1] > name_of(found.state.step if found else 0):
        back = setting("checkpoint.location", None if place == str(folder.checkpoints) else place)
        raise InputError(
            "a run goes on from its newest checkpoint",
            f"{storage.where('')} has {found.name if found else 'none'}; {names[-1]} was saved to {place}",
            f"{back}, or copy {names[-1]} to where checkpoints are to lie; or {ANOTHER}",
        )


def changed_settings(checkpoint: Checkpoint, config: RunConfig) -> list[str]:
    """Settings that a resumed run may change, and did, one sentence each."""
    before, now = checkpoint.manifest.config, config.model_dump(mode="json")
    return told(before, now, checkpoint.state.step)


def told(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """What a person should know of the settings that differ between two runs, as JSON, after `step` steps.

    `steps` alone decide nothing but the rate, and of a constant one not even that. Where the rate of the next step is
    another, and not by its own key, both rates are told.
    """
    constant = all(_optimizer(settings).schedule == "constant" for settings in (before, now))
    found = [each for each in changes(before, now) if each.effect in TOLD and not (constant and each.key == "steps")]
    said = [str(each) for each in found]
    of_rate = [number for number, each in enumerate(found) if each.effect is Effect.RATE]
    old, new = _rate(before, step), _rate(now, step)
    if old != new and [found[number].key for number in of_rate] != ["optimizer.learning_rate"]:
        said[of_rate[-1]] += f", so the learning rate of step {step + 1} is {new:.6g} instead of {old:.6g}"
    old_data, new_data = (DataConfig.model_validate(settings["data"]) for settings in (before, now))
    return [*said, *_to_come(old_data, new_data, step)]


def _to_come(before: DataConfig, now: DataConfig, step: int) -> Iterator[str]:
    """What of the data will be other than it was to be, in segments that have not begun."""
    if step in before.starts or step in now.starts:  # else it has begun, and is as it was
        was, has = (_shown(data.merged()[bisect_right(data.starts, step) - 1]) for data in (before, now))
        for key in was:
            if was[key] != has[key]:
                yield f"data.{key}: {was[key]} became {has[key]} from step {step + 1} on"
        if was == has and step not in before.starts:
            yield f"data.segments: a segment begins here, so samples are dealt anew from step {step + 1} on"
        if was == has and step not in now.starts:
            yield f"data.segments: no segment begins here, so samples go on from step {step + 1} on, not dealt anew"
    if _after(before, step) != _after(now, step):
        yield f"data.segments: what comes after step {step + 1} was changed"


def _after(data: DataConfig, step: int) -> list[Any]:
    """Later segments than that of the next step: where each begins, and what it shows."""
    both = zip(data.starts, data.merged(), strict=True)
    return [(start, _shown(merged)) for start, merged in both if start > step]


def _shown(data: DataConfig) -> dict[str, Any]:
    """What decides the samples of a segment."""
    settings = data.model_dump(mode="json")
    return {key: settings[key] for key in (*KEPT, "dataset")}


def _optimizer(settings: Mapping[str, Any]) -> OptimizerConfig:
    found = settings.get("optimizer", {})
    return OPTIMIZERS[found.get("kind", next(iter(OPTIMIZERS)))].model_validate(found)


def _rate(settings: Mapping[str, Any], step: int) -> float:
    return learning_rate(_optimizer(settings), step, int(settings["steps"]))


def _is_unnamed(checkpoint: Checkpoint, change: Change) -> bool:
    """Whether it is a path of which no hash is known: old checkpoints tell none, and datasets have their own."""
    if change.effect is not Effect.CONTENT or change.key.startswith("data."):
        return False
    return not any(name.startswith(change.key) for name in checkpoint.manifest.outside)


def _other_datasets(checkpoint: Checkpoint, before: DataConfig, now: DataConfig) -> Iterator[Change]:
    """Datasets of begun segments that lie at another path, and are not those that the run began with."""
    begun = _begun(before, checkpoint.state.step)
    for number, (was, has) in enumerate(zip(before.merged()[: len(begun)], now.merged(), strict=False)):
        if [str(folder) for folder in was.folders] == [str(folder) for folder in has.folders]:
            continue  # whoever opens it compares digests
        digests = checkpoint.state.datasets[number]
        if len(digests) != len(has.folders) or not all(map(_holds, has.folders, digests)):
            place = "data" if number == len(begun) - 1 else f"data.segments.{number}"
            values = (each.model_dump(mode="json")["dataset"] for each in (was, has))
            yield Change(f"{place}.dataset", Effect.DATA, *values)


def _holds(folder: Path, digest: str) -> bool:
    """Whether these samples, or conversations, lie there."""
    try:
        if (folder / chat_index.MANIFEST).is_file():
            return bool(chat_index.manifest_of(folder)["digest"] == digest)
        return manifest.latest(folder, digest) is not None
    except InputError:
        return False


def _begun(data: DataConfig, step: int) -> list[dict[str, Any]]:
    """What each segment that has begun before `step` steps were done is made of."""
    found = []
    for start, merged in zip(data.starts, data.merged(), strict=True):
        if start >= step:
            break
        weights = list((merged.weights or {}).values())
        settings = merged.model_dump(mode="json") | {"weights": weights if len(weights) > 1 else None}
        kept = {LABELS.get(key, key): settings[key] for key in (*KEPT, "weights")}
        found.append({"segment begins": start, **kept})
    return found


def _remedy(before: DataConfig, now: DataConfig, step: int, found: Sequence[Change]) -> str:
    """A line that goes on with the old settings up to here, and with the new ones from here on, if there is one."""
    changed = {each.key.rpartition(".")[2] for each in found}
    begins = any("begin" in key for key in changed)
    if begins and len(now.starts) > 1:
        return f"let segments begin where they did, and new ones with step {step} or later; or {ANOTHER}"
    named = {"dataset" if key == LABELS["weights"] else key for key in changed}
    keys = [key for key in IN_SEGMENTS if key in KEPT or (key == "dataset" and key in named)]
    was, has = before.model_dump(mode="json"), now.model_dump(mode="json")
    whole = any(was[key] != has[key] for key in KEPT if key not in IN_SEGMENTS)  # no segment has it
    if whole or not (begins or named <= IN_SEGMENTS):
        return f"set it back, or {ANOTHER}"
    kept, later = _parts(before)[: len(_begun(before, step))], _parts(now)[bisect_right(now.starts, step) - 1 :]
    if "dataset" not in named:  # it may lie elsewhere by now, and is the same
        moved = (merged.dataset for merged in now.merged())
        kept = [(part, d.model_copy(update={"dataset": next(moved, d.dataset)})) for part, d in kept]
    # keys of data itself have their old values again; but none, which no segment can say, stands there alone
    lacks = {key for key in keys if any(shown.model_dump()[key] is None for _, shown in (*kept, *later))}
    base = has | {key: None if key in lacks else was[key] for key in keys}
    ends = [*before.starts[1 : len(kept)], step]
    segments = [{"until": end, **_written(*part, base)} for end, part in zip(ends, kept, strict=True)]
    segments += [({"until": part[0].until} if part[0].until else {}) | _written(*part, base) for part in later]
    typed = [*((f"data.{key}", base[key]) for key in keys if was[key] != has[key]), ("data.segments", segments)]
    line = " ".join(setting(key, value) for key, value in typed)
    return f"{line} for the steps to come; or set it back, or {ANOTHER}"


def _parts(data: DataConfig) -> list[tuple[SegmentConfig, DataConfig]]:
    """Each segment as it is written, and what it shows."""
    return list(zip(data.segments or (SegmentConfig(),), data.merged(), strict=True))


def _written(part: SegmentConfig, shown: DataConfig, base: Mapping[str, Any]) -> dict[str, Any]:
    """A segment that shows the same under the settings `base` of data; its mesh stays."""
    own, settings = part.model_dump(mode="json", exclude_none=True, include={"mesh"}), shown.model_dump(mode="json")
    return own | {key: settings[key] for key in SegmentConfig.model_fields if settings.get(key) != base.get(key)}
