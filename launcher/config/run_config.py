"""`RunConfig`: the whole run, one YAML file checked before anything starts.

    config = load(Path("recipes/quickstart.yaml"), ["steps=20", "mesh.ring=2"])

Every mistake is an InputError with a rule, the value with its file and line, and a remedy; an unknown key names the
nearest known one. Nothing else in the project reads YAML, environment variables or command-line flags for settings.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from data.planning.clip_sampling import Choice
from data.planning.mix import mix_of
from launcher.config.foreign_keys import meaning_of, value_of
from launcher.config.run_yaml import DEEPEST, LONGEST_NAME, parse_yaml, read_run, refuse_odd_path
from launcher.core.hardware import Device
from models.codecs.vae import CodecConfig
from models.registry import ModelConfig, ObjectiveConfig, refuse_other_objective, usual_objective
from parallel.errors import InputError
from parallel.kernels.kernel_benchmark import Asked
from parallel.mesh import Mesh
from parallel.parsing import shorter
from parallel.setting_effects import Content, Data, Nothing, Numbers, Rate, Rounding, State, Update
from parallel.zero.engine import AdamW, Offload, refuse_offload

EXAMPLES = {  # of keys without a default that shows their kind
    "out": "runs/mine",
    "steps": "100",
    "data.dataset": "datasets/mine",
    "data.frames": "16",
    "data.size": "[32,32]",
    "model.patch": "[1,4,4]",
    "faults": "[{kind: kill, rank: 1, step: 8}]",
    "sample.frames": "16",
    "sample.size": "[32,32]",
}


MOST_TOLD = 4  # keys of a section that is none
OF_A_KIND = ("model", "objective", "codec")  # sections whose kind alone may stand for them

Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Settings: no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeshConfig(Section):
    """The grid of ranks.

    Attributes:
        replica: groups of ranks that train on different packs.
        ring: ranks along which keys travel, across nodes.
        ulysses: ranks that share out attention heads, inside a node; at most as many as heads.
    """

    replica: Rounding[int] = Field(default=1, ge=1)
    ring: Rounding[int] = Field(default=1, ge=1)
    ulysses: Rounding[int] = Field(default=1, ge=1)

    def mesh(self) -> Mesh:
        """As the type that the rest of the code uses."""
        return Mesh(self.replica, self.ring, self.ulysses)


class KernelConfig(Section):
    """What computes attention; who sees whom is `model.attention`.

    Attributes:
        kernel: on CUDA: "aten" (torch's own), "fa2" (the flash-attn package), "fa3", "fa4" (FlashAttention 3 and 4),
            "cudnn"; "auto" measures those that can be had when a run starts, and takes the fastest that is right.
    """

    kernel: Rounding[Asked] = "auto"


class ZeroConfig(Section):
    """DeepSpeed ZeRO.

    Attributes:
        stage: 0 keeps everything on every rank; 1 shares out optimiser state, 2 also gradients, 3 also parameters.
        offload: what lies in the host's memory: nothing, the optimizer's state, or parameters too (stage 3).
    """

    stage: Rounding[int] = Field(default=2, ge=0, le=3)
    offload: Rounding[Offload] = "nothing"

    @model_validator(mode="after")
    def _stage_offloads(self) -> ZeroConfig:
        refuse_offload(self.stage, self.offload)
        return self


Datasets = Path | dict[str, float]


class SegmentConfig(Section):
    """A part of a curriculum: settings that differ from those of `data` for some steps.

    Attributes:
        until: the step with which it ends; the last segment has none.
        mesh: of these steps; the run's own if not given. Ranks stop with a checkpoint, and others go on from it.
        dataset, pack_tokens, frames, size, stride, window, caption, positions, rope, times: as in `data`.
    """

    until: Data[int | None] = Field(default=None, ge=1)
    mesh: MeshConfig | None = None
    dataset: Content[Datasets | None] = None
    pack_tokens: Data[int | None] = Field(default=None, ge=1)
    frames: Data[int | None] = Field(default=None, ge=1)
    size: Data[tuple[int, int] | None] = None
    stride: Data[int | None] = Field(default=None, ge=1)
    window: Data[int | None] = Field(default=None, ge=1)
    caption: Data[Choice | None] = None
    positions: Data[int | None] = Field(default=None, ge=1)
    rope: Data[dict[str, Any] | None] = None
    times: Data[bool | None] = None


class DataConfig(Section):
    """What is trained on, and in what portions.

    Attributes:
        dataset: folder that `longreel prepare` wrote, or several with their weights, {FOLDER: 3, FOLDER: 1}.
        pack_tokens: length of one packed sequence, in tokens; the ranks of a replica share it.
        packs_per_step: packed sequences of one step, over all replicas and micro-steps; one a replica, if not given.
        frames: at most this many frames per sample, from a random start; none for whole clips.
        size: [height, width] to scale and crop to; none for clips as they are stored.
        stride: take every stride-th frame.
        window: samples among which packs are put together; none chooses.
        caption: the short or the long one, where a sample has both.
        workers: threads of each rank that decode.
        tolerate: samples that may turn out unreadable before the run stops; each counts as weight zero.
        positions: of a video_lm: the longest document it is trained on; none for what its config says.
        rope: of a video_lm: rotary frequencies in the words of its config, such as {rope_theta: 1000000}; none for its
            own. A curriculum raises them as documents get longer.
        times: of a video_lm: the second of each view stands before its rows, as words such as 1.5s.
        segments: a curriculum, such as [{until: 1000, frames: 8}, {frames: 64, pack_tokens: 65536}].
    """

    dataset: Content[Datasets]
    pack_tokens: Data[int] = Field(default=32768, ge=1)
    packs_per_step: Data[int] = Field(default=1, ge=1)
    frames: Data[int | None] = Field(default=None, ge=1)
    size: Data[tuple[int, int] | None] = None
    stride: Data[int] = Field(default=1, ge=1)
    window: Data[int | None] = Field(default=None, ge=1)
    caption: Data[Choice] = "short"
    workers: Nothing[int] = Field(default=0, ge=0, le=256)
    tolerate: Nothing[int] = Field(default=16, ge=0)
    positions: Data[int | None] = Field(default=None, ge=1)
    rope: Data[dict[str, Any] | None] = None
    times: Data[bool] = False
    segments: tuple[SegmentConfig, ...] = ()

    @property
    def chosen_packs(self) -> bool:
        """Whether `packs_per_step` was given, rather than taken from the mesh."""
        return "packs_per_step" in self.model_fields_set

    def with_packs(self, packs: int) -> DataConfig:
        """The same with another number of packs a step, which nobody has chosen."""
        found = self.model_copy(update={"packs_per_step": packs})
        found.model_fields_set.discard("packs_per_step")
        return found

    @property
    def turning(self) -> tuple[tuple[str, Any], ...]:
        """`rope`, as a model takes it."""
        return tuple(sorted((self.rope or {}).items()))

    @property
    def folders(self) -> list[Path]:
        """The datasets."""
        return [Path(name) for name in self.dataset] if isinstance(self.dataset, dict) else [self.dataset]

    @property
    def weights(self) -> dict[str, float] | None:
        """Of the datasets, by name."""
        return self.dataset if isinstance(self.dataset, dict) else None

    @property
    def starts(self) -> tuple[int, ...]:
        """The first step of each segment."""
        return (0, *(s.until for s in self.segments[:-1] if s.until is not None))

    def merged(self) -> list[DataConfig]:
        """The settings of each segment."""
        changes = [s.model_dump(exclude={"until", "mesh"}, exclude_none=True) for s in self.segments]
        return [self.model_copy(update={"segments": (), **c}) for c in changes] or [self]

    def with_absolute(self, absolute: Callable[[Path], Path]) -> DataConfig:
        """The same with every dataset's path made absolute."""

        def moved(dataset: Datasets | None) -> Datasets | None:
            if isinstance(dataset, dict):
                return {str(absolute(Path(name))): weight for name, weight in dataset.items()}
            return dataset and absolute(dataset)

        segments = tuple(s.model_copy(update={"dataset": moved(s.dataset)}) for s in self.segments)
        return self.model_copy(update={"dataset": moved(self.dataset), "segments": segments})

    @model_validator(mode="after")
    def _segments_follow(self) -> DataConfig:
        ends = [s.until for s in self.segments]
        known = [e for e in ends[:-1] if e is not None]
        if ends and (ends[-1] is not None or len(known) < len(ends) - 1 or known != sorted(set(known))):
            raise InputError(
                "every segment but the last ends with a later step than the one before",
                f"data.segments until: {', '.join(map(str, ends))}",
                "for example [{until: 1000, frames: 8}, {frames: 16}]",
            )
        return self

    @field_validator("dataset", mode="before")
    @classmethod
    def _weights_are_numbers(cls, dataset: object) -> object:
        rule, remedy = "data.dataset is a folder, or several with their weights", "{FOLDER: 3, FOLDER: 1}"
        if isinstance(dataset, list):
            raise InputError(rule, f"a list of {len(dataset)}", remedy)
        if isinstance(dataset, dict):
            for name, weight in dataset.items():
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                    raise InputError("a weight is a positive number", f"{name}: {weight}", remedy)
            folders = [os.path.realpath(os.path.expanduser(str(name))) for name in dataset]
            twice = next((n for n, f in zip(dataset, folders, strict=True) if folders.count(f) > 1), None)
            if twice is not None:
                raise InputError("a mix names each dataset once", f"{twice} comes twice", "one weight for each folder")
        return dataset

    @field_validator("dataset")
    @classmethod
    def _some_dataset(cls, dataset: Datasets) -> Datasets:
        mix_of([1] * len(dataset), dataset) if isinstance(dataset, dict) and dataset else None
        if dataset == {}:
            raise InputError("a mix has datasets", "data.dataset={}", "{FOLDER: 3, FOLDER: 1}")
        return dataset


class OptimizerConfig(Section):
    """AdamW and its schedule.

    Attributes:
        learning_rate: the highest.
        warmup_steps: over which the rate rises in a straight line.
        schedule: "constant"; "cosine" down to final_ratio x learning_rate at the last step; "wsd": constant, then
            straight down to that over the last quarter (MiniCPM, arXiv:2404.06395).
        final_ratio: see schedule.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: on matrices only.
        clip: largest global norm of the gradient; 0 never clips.
        ema: decay of the moving average of the weights, which samples are drawn with, such as 0.999; 0 keeps none.
    """

    learning_rate: Rate[float] = Field(default=1e-4, gt=0)
    warmup_steps: Rate[int] = Field(default=0, ge=0)
    schedule: Rate[Literal["constant", "cosine", "wsd"]] = "constant"
    final_ratio: Rate[float] = Field(default=0.1, ge=0, le=1)
    betas: Update[tuple[Share, Share]] = (0.9, 0.95)
    eps: Update[float] = Field(default=1e-8, gt=0)
    weight_decay: Update[float] = Field(default=0.0, ge=0)
    clip: Update[float] = Field(default=1.0, ge=0)
    ema: Update[Share] = 0.0

    def adam(self) -> AdamW:
        """As the engine takes it."""
        return AdamW(self.betas, self.eps, self.weight_decay, self.clip)


class CheckpointConfig(Section):
    """When to save.

    Attributes:
        every: steps between two checkpoints; the last step is always saved.
        keep: newest checkpoints to keep.
        keep_every: also save those of every so many steps, and keep them for ever; none keeps the newest alone.
        to: where checkpoints lie: a folder that all machines see, or an object store such as s3://bucket/runs/mine;
            none: checkpoints/ in the run folder.
        adopt: if `to` holds checkpoints of another run folder, go on from them, and keep or remove them as ours.
        wait: write while training waits, instead of behind its back.
        retry_seconds: after which a save that failed is tried again; twice as long after each failure, to 300 s.
    """

    every: Nothing[int] = Field(default=100, ge=1)
    keep: Nothing[int] = Field(default=3, ge=1)
    keep_every: Nothing[int | None] = Field(default=None, ge=1)
    to: Nothing[str | None] = None
    adopt: Nothing[bool] = False
    wait: Nothing[bool] = False
    retry_seconds: Nothing[float] = Field(default=5, gt=0)


class GuardConfig(Section):
    """What to do with a step whose loss or gradient is not finite, or whose gradient norm spikes.

    Attributes:
        policy: "skip" makes no update from it; "rewind" goes back to the newest checkpoint, and makes none from the
            steps between it and this one either; "end" ends the run.
        spike: a norm of more than so many times the median of the last 32 updates spikes; none: no norm does.
        limit: such steps in a row after which the run ends.
    """

    policy: Nothing[Literal["skip", "rewind", "end"]] = "skip"
    spike: Update[float | None] = Field(default=None, gt=1)
    limit: Nothing[int] = Field(default=3, ge=1)


class RestartConfig(Section):
    """What to do when a rank dies or hangs, or a node goes away.

    Attributes:
        limit: restarts in a row without a new checkpoint before the run is given up.
        timeout_seconds: how long ranks wait for each other within a step before they give up by themselves; none: what
            the dearest step takes on a poor device, three times, and at least ten minutes.
        silence_seconds: a rank whose process does not answer for so long is taken for stopped or cut off.
        hang_seconds: so long no rank may get on before the one that is behind is named and all are restarted; none: ten
            times the slowest of the last steps, at least 20 s; ten minutes for start and first step; and never less
            than three times what the dearest step takes on a poor device.
        elastic: on a cluster, go on with the largest mesh that fits when nodes are lost, and grow back; else wait for
            them, for ten minutes at most.
        verify: compare the first steps after a resume with what they were before.
        patience_seconds: how long to wait for lost nodes to come back before going on with fewer.
    """

    limit: Nothing[int] = Field(default=3, ge=0)
    timeout_seconds: Nothing[float | None] = Field(default=None, gt=0)
    silence_seconds: Nothing[float] = Field(default=10, gt=0)
    hang_seconds: Nothing[float | None] = Field(default=None, gt=0)
    elastic: Nothing[bool] = True
    verify: Nothing[bool] = True
    patience_seconds: Nothing[float] = Field(default=5, ge=0)


class FaultConfig(Section):
    """A fault that a rank does to itself, for `longreel drill` and tests: once in the life of a run.

    Attributes:
        kind: "kill" (SIGKILL), "pause" (SIGSTOP), "raise" (an exception), "memory" (provokes the memory killer), "cut"
            (its connections to the other ranks are shut down), "slow" (sleeps), "nan" (a loss that is not finite),
            "terminate" (SIGTERM to the launcher), "full" (writes of checkpoints fail as on a full disk), "tear" (killed
            while it writes a checkpoint).
        rank: that it strikes.
        step: in which.
        phase: at the beginning of which.
        seconds: how long it lasts, where that has a meaning.
    """

    kind: Nothing[Literal["kill", "pause", "raise", "memory", "cut", "slow", "nan", "terminate", "full", "tear"]]
    rank: Nothing[int] = Field(default=0, ge=0)
    step: Nothing[int] = Field(ge=1)
    phase: Nothing[Literal["data", "agree", "forward", "backward", "update", "save"]] = "forward"
    seconds: Nothing[float] = Field(default=5, gt=0)


class SampleConfig(Section):
    """Defaults of `longreel sample`.

    Attributes:
        prompts: what to draw.
        steps: of the solver.
        guidance: classifier-free guidance scale; 1 for none.
        frames: of a sample; the training length if not given.
        size: [height, width] of a sample; the training size if not given.
        fps: frames a second of the written file.
    """

    prompts: Nothing[tuple[str, ...]] = ()
    steps: Nothing[int] = Field(default=50, ge=1)
    guidance: Nothing[float] = Field(default=4.0, ge=0)
    frames: Nothing[int | None] = Field(default=None, ge=1)
    size: Nothing[tuple[int, int] | None] = None
    fps: Nothing[int] = Field(default=8, ge=1)


class RunConfig(Section):
    """A run.

    Attributes:
        out: the run folder; everything the run writes is there.
        seed: of the first weights, the order of samples, and every noise.
        dtype: of the model; masters and sums are float32 for bf16. On a GPU float32 multiplies in TF32, of 10 bits.
        device: "auto": the GPUs, where there are any that torch can use; "cpu" insists on the CPU.
        determinism: "strict": steps on CUDA repeat themselves bit by bit, and are slower; an operation that cannot,
            fails. "fast": sums may add up in any order. On a CPU every step repeats itself.
        objective: what the model learns; the usual one of its kind, if not given: rectified_flow, or next_token.
        steps: of training; each makes an update of the model, unless `guard` finds it harmful.
    """

    out: Nothing[Path]
    seed: State[int] = Field(default=0, ge=0, lt=2**63)
    dtype: Numbers[Literal["float64", "float32", "bf16"]] = "bf16"
    device: Rounding[Device] = "auto"
    steps: Rate[int] = Field(ge=1, le=10**9)
    determinism: Rounding[Literal["strict", "fast"]] = "fast"
    mesh: MeshConfig = MeshConfig()
    attention: KernelConfig = KernelConfig()
    zero: ZeroConfig = ZeroConfig()
    data: DataConfig
    codec: CodecConfig = CodecConfig()
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    restart: RestartConfig = RestartConfig()
    sample: SampleConfig = SampleConfig()
    faults: tuple[FaultConfig, ...] = ()

    @property
    def meshes(self) -> tuple[Mesh, ...]:
        """Of all segments, each once."""
        return tuple(dict.fromkeys((s.mesh or self.mesh).mesh() for s in self.data.segments or (SegmentConfig(),)))

    def data_of(self, step: int) -> DataConfig:
        """Of a step, from 1 on."""
        return self.data.merged()[bisect_right(self.data.starts, max(0, step - 1)) - 1]

    def mesh_after(self, step: int) -> Mesh:
        """Of the step after `step` steps."""
        return ((self._segment_mesh(step) if self.data.segments else None) or self.mesh).mesh()

    def stretch_after(self, step: int) -> int:
        """The step up to which the mesh stays that of the step after `step` steps."""
        later = (s for s in self.data.starts if s > step and self._segment_mesh(s) != self._segment_mesh(step))
        return min(next(later, self.steps), self.steps)

    def _segment_mesh(self, step: int) -> MeshConfig | None:
        return self.data.segments[bisect_right(self.data.starts, step) - 1].mesh

    @model_validator(mode="before")
    @classmethod
    def _usual_objective(cls, settings: Any) -> Any:
        given = settings.get("objective") if isinstance(settings, dict) else ""
        if given is None or (isinstance(given, dict) and "kind" not in given):
            return {**settings, "objective": {"kind": usual_objective(settings.get("model")), **(given or {})}}
        return settings

    @field_validator("out")
    @classmethod
    def _not_empty(cls, out: Path) -> Path:
        if not out.name:
            raise InputError("a run has a folder of its own", f"out: {out}", "out=runs/NAME")
        return out

    @model_validator(mode="after")
    def _packs_for_all(self) -> RunConfig:
        """Fix the number of packs while the mesh is the one that was asked for: one that shrinks keeps it."""
        if not self.data.chosen_packs:
            object.__setattr__(self, "data", self.data.with_packs(max(mesh.replica for mesh in self.meshes)))
        return self

    @model_validator(mode="after")
    def _faults_strike(self) -> RunConfig:
        for fault in self.faults:
            ranks = max(mesh.ranks for mesh in self.meshes)
            if fault.rank >= ranks or fault.step > self.steps:
                raise InputError(
                    "a fault strikes a rank and a step of the run",
                    f"faults: rank {fault.rank} of {ranks}, step {fault.step} of {self.steps}",
                    "ranks are counted from 0, steps from 1",
                )
        return self

    @model_validator(mode="after")
    def _learns(self) -> RunConfig:
        refuse_other_objective(self.model, self.objective)
        return self

    @model_validator(mode="after")
    def _packs_reach(self) -> RunConfig:
        for segment, data in zip(self.data.segments or (SegmentConfig(),), self.data.merged(), strict=True):
            mesh = (segment.mesh or self.mesh).mesh()
            if data.pack_tokens < mesh.sequence_ranks:
                raise InputError(
                    "each rank of a replica holds tokens of its packs",
                    f"data.pack_tokens={data.pack_tokens}, mesh.ring x mesh.ulysses = {mesh.sequence_ranks} ranks",
                    f"mesh.replica={mesh.ranks} mesh.ring=1 mesh.ulysses=1, or more data.pack_tokens",
                )
            tokens = data.pack_tokens // mesh.sequence_ranks
            if self.model.mlp_tiles > tokens:
                raise InputError(
                    "a tile of an MLP has tokens",
                    f"model.mlp_tiles={self.model.mlp_tiles}, {tokens} tokens a rank",
                    f"model.mlp_tiles={min(8, tokens)}",
                )
        return self

    @model_validator(mode="after")
    def _heads_reach(self) -> RunConfig:
        for mesh in self.meshes:
            if mesh.ulysses > self.model.heads:
                raise InputError(
                    "a ulysses group shares out the heads of the model: no more ranks than heads",
                    f"mesh.ulysses={mesh.ulysses}, model.heads={self.model.heads}",
                    f"mesh.ulysses={self.model.heads} or fewer, and mesh.ring for the rest",
                )
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The checked run of a YAML file, with `key=value` overrides on top.

    Raises:
        InputError: no such file, no YAML, an unknown key, a wrong type, a value out of range.
    """
    settings, places = parse_yaml(read_run(path), str(path))
    if not isinstance(settings, dict):
        found = f"{path}: {shorter(settings)}"
        raise InputError("a run is a mapping of keys to values", found, "see recipes/ for examples")
    lines = {key: f"{path}, line {line}" for key, line in places.items()}
    for override in overrides:
        key, value = parse_override(override)
        _set(settings, key, value)
        lines[key] = f"command line, {override}"
    return check(settings, lines)


def parse_override(override: str) -> tuple[str, Any]:
    """`a.b=value` as key and YAML value."""
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")) or key.count(".") > DEEPEST:
        raise InputError("an override is key=value", shorter(override), "for example steps=20 or mesh.ring=2")
    if not value.strip():
        raise InputError("an override has a value", shorter(override), f"{key}=VALUE, or {key}=null for none")
    return key, parse_yaml(value, shorter(override), "the value of an override is YAML")[0]


def check(settings: Mapping[str, Any], lines: Mapping[str, str] | None = None) -> RunConfig:
    """The run of a plain mapping; `lines` says where each dotted key was written."""
    lines = lines or {}
    _refuse_unknown(settings, lines)
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise _first_mistake(error, lines) from None
    for key, path in paths_of(config):
        refuse_odd_path(key, path, _where(key, lines))
    return config


def paths_of(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The keys of a run that are paths, with their values; an address of a store is none."""
    yield "out", str(config.out)
    for data in config.data.merged():
        yield from (("data.dataset", str(folder)) for folder in data.folders)
    for key, path in (("codec.path", config.codec.path), ("model.path", getattr(config.model, "path", None))):
        if path is not None:
            yield key, str(path)
    if config.checkpoint.to is not None and "://" not in config.checkpoint.to:
        yield "checkpoint.to", config.checkpoint.to


def to_yaml(config: RunConfig) -> str:
    """The resolved run as YAML that `load` takes."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a run."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for inner in _sections_of(field.annotation):
            keys += [key for key in known_keys(inner, f"{prefix}{name}.") if key not in keys]
    return keys


def _refuse_unknown(settings: Mapping[str, Any], lines: Mapping[str, str]) -> None:
    known = known_keys()
    for key in _keys(settings, ""):
        if key in known:
            continue
        if any(key.startswith(k + ".") and k in known and not any(o.startswith(k + ".") for o in known) for k in known):
            continue  # below a plain value: pydantic says what is wrong with the type
        found, is_word = f"{shorter(key)[1:-1]} ({_where(key, lines)})", len(key) <= LONGEST_NAME
        inner = _value(settings, key)
        told = _meant_section(key, inner, known) if is_word and isinstance(inner, Mapping) else None
        remedy = told or (_meant(key, known) if is_word else "see docs/ for the keys of a run")
        raise InputError("every key of a run is known", found, remedy)


def _value(settings: Mapping[str, Any], key: str) -> Any:
    """What stands under a dotted key; None if that is no key of mappings of words."""
    here: Any = settings
    for name in key.split("."):
        here = here.get(name) if isinstance(here, Mapping) else None
    return here


def _meant_section(key: str, inner: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """Of an unknown section: the one that is spelled alike, or what its keys are here; None if nobody knows."""
    sections = list(dict.fromkeys(one.rpartition(".")[0] for one in known if "." in one))
    near = difflib.get_close_matches(key, sections, n=1, cutoff=0.7)
    if near:
        return f"did you mean {near[0]}?"
    meanings = {str(name): meaning_of(str(name)) for name in inner if len(str(name)) <= LONGEST_NAME}
    lasts = {one.rpartition(".")[2]: one for one in reversed(known)}
    found = [
        f"{name} is {meaning or lasts.get(name)}" for name, meaning in meanings.items() if meaning or name in lasts
    ]
    return f"there is no such section; {'; '.join(found[:MOST_TOLD])}" if found else None


def _meant(key: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown key: what other systems call so, the nearest one, or those that there are."""
    near, meaning = nearest_key(key, known), meaning_of(key)
    if meaning is not None and not (near and near.endswith(f".{key.rpartition('.')[2]}")):
        return f"here it is {meaning}" if meaning.keys else meaning.why
    if near is not None:
        return f"did you mean {near}?"
    section = key.rpartition(".")[0]
    there = [k for k in known if k.rpartition(".")[0] == section] or [k for k in known if "." not in k]
    return f"leave it out; there {'is' if len(there) == 1 else 'are'} {', '.join(there)}"


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The key that was probably meant: of the same last name, or spelled alike; None if none is."""
    section, _, last = key.rpartition(".")
    same = [k for k in known if k.rpartition(".")[2] == last]
    if same:
        return max(same, key=lambda k: (k.startswith(f"{section}."), -k.count(".")))
    inside = [k for k in known if section and k.rpartition(".")[0] == section]
    others = [k for k in known if k != section]
    for names in (inside, others):
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
        if near:
            return near[0]
    lasts = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in known], n=1, cutoff=0.7)
    return next((k for k in known if lasts and k.rpartition(".")[2] == lasts[0]), None)


def _first_mistake(error: ValidationError, lines: Mapping[str, str]) -> InputError:
    first = error.errors()[0]
    inner = first.get("ctx", {}).get("error")
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    known = known_keys()
    while "." in key and key not in known:  # below it pydantic names the kinds that a value may have
        key = key.rpartition(".")[0]
    where = _where(key, lines)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if isinstance(inner, InputError):
        return InputError(inner.rule, f"{inner.value} ({where}){more}" if key else inner.value + more, inner.remedy)
    if first["type"] in ("model_type", "model_attributes_type"):
        inside = [k for k in known if k.startswith(key + ".")]
        found = f"{shorter(first['input'])} ({where}){more}"
        return InputError(f"{key} has keys of its own", found, f"give {', '.join(inside)}")
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing" and not field.endswith(key):
        rule, found = f"each of {key} has {first['loc'][-1]}", f"{shorter(first['input'])} ({where}){more}"
        return InputError(rule, found, f"for example {key}={_example(key)}")
    if first["type"] == "missing" and key in known_keys():
        return InputError(f"a run has {key}", f"no such key{more}", f"add it, or give {key}=VALUE")
    if first["type"] == "extra_forbidden" and (kinds := _kinds_with(key)):
        section = key.partition(".")[0]
        rule = f"{key} is a key of {section}.kind={' and '.join(kinds)}"
        return InputError(rule, f"{first['input']!r} ({where}){more}", f"{section}.kind={kinds[0]}, or leave {key} out")
    rule, remedy = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}", f"for example {key}={_example(key)}"
    meant = value_of(key, first["input"])
    return InputError(rule, f"{shorter(first['input'])} ({where}){more}", f"{meant}; {remedy}" if meant else remedy)


def _kinds_with(key: str) -> list[str]:
    """Kinds of a section, such as of models, that have a key which the kind that was given has not."""
    section, _, name = key.partition(".")
    field = RunConfig.model_fields.get(section)
    kinds = [each for each in (_sections_of(field.annotation) if field else []) if "kind" in each.model_fields]
    return [str(kind.model_fields["kind"].default) for kind in kinds if name in kind.model_fields and len(kinds) > 1]


def _where(key: str, lines: Mapping[str, str]) -> str:
    """Where a key, or else the last one below it, was written."""
    below = [lines[k] for k in lines if key and k.startswith(key + ".")]
    return lines.get(key) or (below[-1] if below else "settings")


def _example(key: str) -> str:
    """A value of the right kind: the default, the first choice, or the kind's name."""
    section: type[BaseModel] = RunConfig
    parts = key.split(".")
    last = parts[-1]
    for name, after in pairwise(parts):
        having = [s for s in _sections_of(section.model_fields[name].annotation) if after in s.model_fields]
        if not having:
            return "VALUE"
        section = having[0]
    field = section.model_fields.get(last)
    if field is None:
        return "VALUE"
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
    if choices:
        return f"{choices[0]} (one of {', '.join(map(str, choices))})"
    if isinstance(field.default, bool | int | float | str):
        return str(field.default)
    for inner in _sections_of(field.annotation):
        return "{" + f"{next(iter(inner.model_fields))}: ..." + "}"
    return EXAMPLES.get(key, "VALUE")


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes inside `X`, `X | Y | None` or `Annotated[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [section for a in typing.get_args(annotation) for section in _sections_of(a)]
    return []


def _keys(settings: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in settings.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    here = settings
    for name in path:
        inner = here.setdefault(name, {})
        if isinstance(inner, str) and here is settings and name in OF_A_KIND:
            inner = here[name] = {"kind": inner}
        elif not isinstance(inner, dict):
            inner = here[name] = {}
        here = inner
    here[last] = value
