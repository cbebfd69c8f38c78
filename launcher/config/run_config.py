"""`RunConfig`: the whole run, as sections whose keys agree with each other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from launcher.config.extensions import import_extensions
from launcher.config.sections import (
    CheckpointConfig,
    DataConfig,
    FaultConfig,
    GuardConfig,
    KernelConfig,
    MeshConfig,
    RestartConfig,
    SampleConfig,
    Section,
    SegmentConfig,
    ZeroConfig,
)
from launcher.core.hardware import Device
from models.codecs.open_codec import AnyCodecConfig
from models.codecs.pixel import PixelCodecConfig
from models.core.specs import memory_of
from models.registry import ModelConfig, ObjectiveConfig, refuse_other_objective, spec_of, usual_objective
from parallel.errors import InputError
from parallel.mesh import Mesh
from parallel.optimizers.adamw import AdamWConfig
from parallel.optimizers.optimizer import refuse_stage
from parallel.optimizers.optimizer_registry import OptimizerChoice
from parallel.setting_effects import Content, Nothing, Numbers, Rate, Rounding, State


class RunConfig(Section):
    """The keys without a section.

    Attributes:
        out: run folder, which everything the run writes goes to.
        seed: random seed of the initial weights, the order of samples and all noise.
        dtype: type of the model; bf16 has float32 masters and sums. On a GPU float32 multiplies in TF32 (10 bits).
        device: "auto" uses the GPUs that torch can use, else the CPU; "cpu" uses the CPU.
        determinism: "strict" makes steps on CUDA repeat bit for bit, and slower; an operation that cannot fails. "fast"
            lets sums add up in any order. On a CPU every step repeats.
        steps: length of the training [steps]; each step updates the model, unless `guard` drops its update.
        extensions: Python files, relative to the YAML file, or modules; imported first, each registers kinds of its
            own, such as a model, an objective or an optimizer. A resume needs the same content.
    """

    out: Nothing[Path]
    extensions: Content[tuple[str, ...]] = ()
    seed: State[int] = Field(default=0, ge=0, lt=2**63)
    dtype: Numbers[Literal["float64", "float32", "bf16"]] = "bf16"
    device: Rounding[Device] = "auto"
    steps: Rate[int] = Field(ge=1, le=10**9)
    determinism: Rounding[Literal["strict", "fast"]] = "fast"
    mesh: MeshConfig = MeshConfig()
    attention: KernelConfig = KernelConfig()
    zero: ZeroConfig = ZeroConfig()
    data: DataConfig
    codec: AnyCodecConfig = PixelCodecConfig()
    model: ModelConfig
    objective: ObjectiveConfig
    optimizer: OptimizerChoice = AdamWConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    restart: RestartConfig = RestartConfig()
    sample: SampleConfig = SampleConfig()
    faults: tuple[FaultConfig, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Whoever unpickles it imports the extensions first: sections, which follow, may be of their classes."""
        return _blank, (self.extensions,), self.__getstate__()

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
    def _optimizer_runs(self) -> RunConfig:
        refuse_stage(self.optimizer, self.zero.stage)
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
            tiles = memory_of(self.model).mlp_tiles
            if tiles > tokens:
                raise InputError(
                    "a tile of an MLP has tokens",
                    f"model.mlp_tiles={tiles}, {tokens} tokens a rank",
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


def _blank(extensions: tuple[str, ...]) -> RunConfig:
    import_extensions(extensions)
    return RunConfig.__new__(RunConfig)


def paths_of(config: RunConfig) -> Iterator[tuple[str, str]]:
    """The keys of a run that are paths, with their values; an address of a store is none."""
    yield "out", str(config.out)
    for data in config.data.merged():
        yield from (("data.dataset", str(folder)) for folder in data.folders)
    for key, path in (("codec.path", config.codec.folder), ("model.path", spec_of(config.model).folder(config.model))):
        if path is not None:
            yield key, str(path)
    if config.checkpoint.location is not None and "://" not in config.checkpoint.location:
        yield "checkpoint.location", config.checkpoint.location
