"""Sections of a run: their keys, units, defaults, and what changes with each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data.planning.clip_sampling import Choice
from data.planning.mix import mix_of
from parallel.errors import InputError
from parallel.kernels.kernel_benchmark import Asked
from parallel.mesh import Mesh
from parallel.setting_effects import Content, Data, Nothing, Rounding, Update
from parallel.zero.deepspeed_config import Offload, refuse_offload

Share = Annotated[float, Field(ge=0, lt=1)]
Datasets = Path | dict[str, float]


class Section(BaseModel):
    """Settings: no unknown keys, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeshConfig(Section):
    """The mesh of ranks: replica x ring x ulysses processes, one per GPU.

    Attributes:
        replica: data-parallel groups, which train on different packs.
        ring: ring attention (context parallel) size: ranks that pass keys and values around, across nodes.
        ulysses: Ulysses (head parallel) size: ranks that divide the heads, inside a node; at most model.heads.
    """

    replica: Rounding[int] = Field(default=1, ge=1)
    ring: Rounding[int] = Field(default=1, ge=1)
    ulysses: Rounding[int] = Field(default=1, ge=1)

    def mesh(self) -> Mesh:
        """As the type that the rest of the code uses."""
        return Mesh(self.replica, self.ring, self.ulysses)


class KernelConfig(Section):
    """The attention kernel; which tokens see which is `model.attention`.

    Attributes:
        kernel: implementation on CUDA: "aten" (torch's own), "fa2" (the flash-attn package), "fa3", "fa4"
            (FlashAttention 3 and 4), "cudnn"; "auto" measures the available ones at the start and takes the fastest
            that is right.
    """

    kernel: Rounding[Asked] = "auto"


class ZeroConfig(Section):
    """DeepSpeed ZeRO.

    Attributes:
        stage: 0 keeps everything on every rank (plain engine); 1 shards the optimizer state, 2 also the gradients, 3
            also the parameters.
        offload: what is kept in host memory: "nothing", the "optimizer" state, or the "parameters" too (stage 3).
    """

    stage: Rounding[int] = Field(default=2, ge=0, le=3)
    offload: Rounding[Offload] = "nothing"

    @model_validator(mode="after")
    def _stage_offloads(self) -> ZeroConfig:
        refuse_offload(self.stage, self.offload)
        return self


class SegmentConfig(Section):
    """A segment of a curriculum: settings that replace those of `data` up to a step.

    Attributes:
        until: last step of the segment [steps]; the last segment has none.
        mesh: mesh of the segment; the run's own if not given. Ranks stop with a checkpoint, others resume from it.
        dataset: replaces data.dataset.
        pack_tokens: replaces data.pack_tokens [tokens].
        frames: replaces data.frames [frames].
        size: replaces data.size [pixels].
        stride: replaces data.stride [frames].
        window: replaces data.window [samples].
        caption: replaces data.caption.
        max_positions: replaces data.max_positions [tokens].
        rope_scaling: replaces data.rope_scaling.
        timestamps: replaces data.timestamps.
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
    max_positions: Data[int | None] = Field(default=None, ge=1)
    rope_scaling: Data[dict[str, Any] | None] = None
    timestamps: Data[bool | None] = None


class DataConfig(Section):
    """Training data, and how it is sampled and packed.

    Attributes:
        dataset: folder that `longreel prepare` or `longreel data chat` wrote, or several with weights, such as
            {FOLDER: 3, FOLDER: 1}.
        pack_tokens: length of one packed sequence, shared by the ranks of a replica [tokens].
        packs_per_step: packed sequences per step, over all replicas and micro-steps; mesh.replica if not given.
        frames: maximum frames per sample, from a random start [frames]; null for whole clips.
        size: [height, width] to scale and crop frames to [pixels]; null for the stored size.
        stride: distance of the frames that are taken [frames]: 2 takes every second frame.
        window: number of samples among which packs are filled [samples]; null chooses it.
        caption: "short" or "long" caption, where a sample has both.
        workers: decoding threads per rank; 0 decodes in the loader's own thread.
        max_unreadable_samples: samples that may prove unreadable before the run stops [samples]; each weighs 0.
        max_positions: video_lm only: longest document to train on [tokens]; null for max_position_embeddings of its
            config.
        rope_scaling: video_lm only: rotary parameters that replace those of its config, such as {rope_theta: 1000000};
            null for its own. A curriculum raises them as documents get longer.
        timestamps: video_lm only: whether the time of each view stands before its tokens, as text such as 1.5s.
        segments: curriculum, such as [{until: 1000, frames: 8}, {frames: 64, pack_tokens: 65536}].
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
    max_unreadable_samples: Nothing[int] = Field(default=16, ge=0)
    max_positions: Data[int | None] = Field(default=None, ge=1)
    rope_scaling: Data[dict[str, Any] | None] = None
    timestamps: Data[bool] = False
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
    def rope_items(self) -> tuple[tuple[str, Any], ...]:
        """`rope_scaling`, as a model takes it."""
        return tuple(sorted((self.rope_scaling or {}).items()))

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


class CheckpointConfig(Section):
    """When and where checkpoints are saved.

    Attributes:
        every: steps between two checkpoints [steps]; the last step is always saved.
        keep: number of newest checkpoints to keep.
        keep_every: also save every N-th step, and keep those checkpoints for ever [steps]; null keeps the newest alone.
        location: folder that all machines see, or URL of an object store such as s3://bucket/runs/mine; null for
            checkpoints/ in the run folder.
        adopt: whether to resume from, keep and prune the checkpoints of another run folder at `location`.
        blocking: whether training waits until a checkpoint is written, instead of writing in the background.
        retry_seconds: delay before a failed save is tried again [s]; doubles with each failure, up to 300 s.
    """

    every: Nothing[int] = Field(default=100, ge=1)
    keep: Nothing[int] = Field(default=3, ge=1)
    keep_every: Nothing[int | None] = Field(default=None, ge=1)
    location: Nothing[str | None] = None
    adopt: Nothing[bool] = False
    blocking: Nothing[bool] = False
    retry_seconds: Nothing[float] = Field(default=5, gt=0)


class GuardConfig(Section):
    """The loss-anomaly guard: a step whose loss or gradient is not finite, or whose gradient norm spikes.

    Attributes:
        policy: "skip" drops the update; "rewind" resumes from the newest checkpoint and drops the updates from there
            to this step; "end" ends the run.
        spike_factor: gradient norm that counts as a spike / median norm of the last 32 updates; null for no limit.
        max_consecutive: anomalous steps in a row after which the run ends [steps].
    """

    policy: Nothing[Literal["skip", "rewind", "end"]] = "skip"
    spike_factor: Update[float | None] = Field(default=None, gt=1)
    max_consecutive: Nothing[int] = Field(default=3, ge=1)


class RestartConfig(Section):
    """What happens when a rank dies or hangs, or a node goes away.

    Attributes:
        max_restarts: restarts in a row without a new checkpoint before the run is given up.
        collective_timeout_seconds: longest wait of a rank for the others within a step before it gives up [s]; null
            for three times the most expensive step on a slow device, and at least 600.
        heartbeat_timeout_seconds: silence after which a rank's process is taken for stopped or disconnected [s].
        hang_timeout_seconds: time without progress of any rank after which the rank that is behind is named and all are
            restarted [s]; null for ten times the slowest recent step, at least 20; 600 for start and first step; and
            never less than three times the most expensive step on a slow device.
        elastic: whether a run on a cluster resumes on the largest mesh that fits when nodes are lost, and grows back;
            else it waits for them, for 600 s at most.
        verify: whether the first steps after a resume are compared with their earlier results.
        rejoin_timeout_seconds: wait for lost nodes to come back before resuming with fewer [s].
    """

    max_restarts: Nothing[int] = Field(default=3, ge=0)
    collective_timeout_seconds: Nothing[float | None] = Field(default=None, gt=0)
    heartbeat_timeout_seconds: Nothing[float] = Field(default=10, gt=0)
    hang_timeout_seconds: Nothing[float | None] = Field(default=None, gt=0)
    elastic: Nothing[bool] = True
    verify: Nothing[bool] = True
    rejoin_timeout_seconds: Nothing[float] = Field(default=5, ge=0)


class FaultConfig(Section):
    """A fault that a rank injects into itself, for `longreel drill` and tests: once in the life of a run.

    Attributes:
        kind: "kill" (SIGKILL), "pause" (SIGSTOP), "raise" (an exception), "memory" (provokes the out-of-memory killer),
            "cut" (shuts down its connections to the other ranks), "slow" (sleeps), "nan" (a loss that is not finite),
            "terminate" (SIGTERM to the launcher), "full" (checkpoint writes fail as on a full disk), "tear" (is killed
            while it writes a checkpoint).
        rank: rank that fails, from 0.
        step: step in which it fails, from 1.
        phase: phase of the step at whose beginning it fails.
        seconds: duration of "pause", "slow" and "full" [s].
    """

    kind: Nothing[Literal["kill", "pause", "raise", "memory", "cut", "slow", "nan", "terminate", "full", "tear"]]
    rank: Nothing[int] = Field(default=0, ge=0)
    step: Nothing[int] = Field(ge=1)
    phase: Nothing[Literal["data", "agree", "forward", "backward", "update", "save"]] = "forward"
    seconds: Nothing[float] = Field(default=5, gt=0)


class SampleConfig(Section):
    """Defaults of `longreel sample`.

    Attributes:
        prompts: texts to make videos of; captions of the dataset if empty.
        steps: sampler steps.
        sampler: integrator of the noise ODE: "euler", or "heun" with two evaluations per step.
        guidance: classifier-free guidance scale; 1 for none.
        frames: length of a sample [frames]; the training length if not given.
        size: [height, width] of a sample [pixels]; the training size if not given.
        fps: frame rate of the written file [frames/s].
    """

    prompts: Nothing[tuple[str, ...]] = ()
    steps: Nothing[int] = Field(default=50, ge=1)
    sampler: Nothing[str] = "euler"
    guidance: Nothing[float] = Field(default=4.0, ge=0)
    frames: Nothing[int | None] = Field(default=None, ge=1)
    size: Nothing[tuple[int, int] | None] = None
    fps: Nothing[int] = Field(default=8, ge=1)
