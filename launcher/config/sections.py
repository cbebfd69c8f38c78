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
        stage: 0 keeps everything on every rank; 1 shares out optimizer state, 2 also gradients, 3 also parameters.
        offload: what lies in the host's memory: nothing, the optimizer's state, or parameters too (stage 3).
    """

    stage: Rounding[int] = Field(default=2, ge=0, le=3)
    offload: Rounding[Offload] = "nothing"

    @model_validator(mode="after")
    def _stage_offloads(self) -> ZeroConfig:
        refuse_offload(self.stage, self.offload)
        return self


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
        prompts: what to sample.
        steps: of the sampler.
        sampler: how noise becomes a video: "euler", or "heun" with two evaluations a step.
        guidance: classifier-free guidance scale; 1 for none.
        frames: of a sample; the training length if not given.
        size: [height, width] of a sample; the training size if not given.
        fps: frames a second of the written file.
    """

    prompts: Nothing[tuple[str, ...]] = ()
    steps: Nothing[int] = Field(default=50, ge=1)
    sampler: Nothing[str] = "euler"
    guidance: Nothing[float] = Field(default=4.0, ge=0)
    frames: Nothing[int | None] = Field(default=None, ge=1)
    size: Nothing[tuple[int, int] | None] = None
    fps: Nothing[int] = Field(default=8, ge=1)
