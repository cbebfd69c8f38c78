"""What is asked of `longreel sample`, and what it means where something is left open: the run's own settings.

    --frames 8    else sample.frames    else the usual length of what the checkpoint's segment was trained on
    --prompt      else sample.prompts   else captions of its dataset

The defaults are those of the segment of the checkpoint: in a curriculum from 16 frames to 64, step 5000 samples 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from data.planning.clip_sampling import Size
from launcher.config.run_config import RunConfig
from launcher.core.hardware import memory
from launcher.generation.given_frames import GivenFiles, files_of
from launcher.generation.sample_prompts import Shape, captions_of, shape_of_run
from models.diffusion.sampler import SAMPLERS
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

BYTES_PER_PIXEL = 30  # the least: noise, velocity and result in float32, and the frames


@dataclass(frozen=True)
class Request:
    """What to sample; None takes the run's own setting.

    Attributes:
        prompts: one video each.
        seed: of the noise.
        steps: of the solver.
        guidance: classifier-free guidance scale, 1 for none.
        frames: of each video.
        size: (height, width).
        checkpoint_step: which checkpoint; the newest if None.
        averaged: with the moving average of the weights; None if the run kept one.
        sampler: one of `SAMPLERS`.
        given: (conditioning task, file) of what is given clean: one for all prompts, or one for each.
    """

    prompts: tuple[str, ...] = ()
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    checkpoint_step: int | None = None
    averaged: bool | None = None
    sampler: str | None = None
    given: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Settled:
    """A request with nothing left open; the fields of `Request`, and what a person should know of them."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance: float
    frames: int
    size: Size
    sampler: str = "euler"
    given: GivenFiles | None = None
    notes: tuple[str, ...] = ()


def settle(request: Request, config: RunConfig, step: int, geometry: Geometry) -> Settled:
    """The request with the run's settings where it leaves something open.

    Args:
        request: what was asked for.
        config: of the run.
        step: of the checkpoint.
        geometry: of the run's codec and model.

    Raises:
        InputError: nothing to sample, or a video that cannot be.
    """
    data = config.data_of(step)
    usual = shape_of_run(config, data, geometry)
    frames = config.sample.frames if request.frames is None else request.frames
    size = config.sample.size if request.size is None else request.size
    if usual is not None:
        frames, size = usual.frames if frames is None else frames, usual.size if size is None else size
    steps = config.sample.steps if request.steps is None else request.steps
    guidance = config.sample.guidance if request.guidance is None else request.guidance
    if frames is None or size is None:
        found = f"the run trains on whole clips, and {data.folders[0]} has none"
        least = geometry.frames_per_token
        raise InputError("a sample has a length and a size", found, str(Shape(least, _cells(geometry))))
    if steps < 1 or not 0 <= guidance < math.inf:
        raise InputError("steps is at least 1, guidance at least 0", f"{steps}, {guidance}", "--steps 50 --guidance 4")
    if not 0 <= request.seed < 2**63:
        raise InputError("a seed is from 0 to 2^63 - 1", str(request.seed), "--seed 0")
    if min(frames, *size) < 1:
        example = usual or Shape(geometry.frames_per_token, _cells(geometry))
        raise InputError("a video has frames and pixels", f"{frames} of {size[0]}x{size[1]}", str(example))
    _refuse_large(frames, size, geometry)
    sampler = config.sample.sampler if request.sampler is None else request.sampler
    SAMPLERS[sampler]  # refuses one that is not there
    settled = Settled(request.prompts or config.sample.prompts, request.seed, steps, guidance, frames, size, sampler)
    if not settled.prompts:
        settled = _with_captions(settled, config, step)
    given = files_of(request.given, len(settled.prompts), getattr(config.objective, "conditioning", {}))
    return replace(settled, given=given)


def _with_captions(settled: Settled, config: RunConfig, step: int) -> Settled:
    data = config.data_of(step)
    try:
        captions, folder = captions_of(data.folders, data.caption)
    except InputError as error:
        found = f"none, the run has no sample.prompts, and its dataset is gone: {error.value}"
        raise InputError("a sample has a prompt", found, '--prompt "what is to be seen"') from None
    number = f"{len(captions)} captions" if len(captions) > 1 else "a caption"
    return replace(settled, prompts=captions, notes=(f'no --prompt: {number} of {folder}; your own: --prompt "..."',))


def _refuse_large(frames: int, size: Size, geometry: Geometry) -> None:
    need, (_, free) = BYTES_PER_PIXEL * frames * size[0] * size[1], memory()
    if need <= free:
        return
    found = f"{frames} frames of {size[0]}x{size[1]} take about {need / 1e9:,.0f} GB, {free / 1e9:,.0f} GB are free"
    fewer = geometry.usable_frames(int(frames * free / need))
    cell_y, cell_x = _cells(geometry)
    scale = math.sqrt(free / need)
    smaller = (int(size[0] * scale) // cell_y * cell_y, int(size[1] * scale) // cell_x * cell_x)
    remedies = [f"--frames {fewer}"] * bool(fewer) + [f"--size {smaller[0]}x{smaller[1]}"] * bool(min(smaller))
    raise InputError("a video fits into memory while it is sampled", found, " or ".join(remedies) or "a larger machine")


def _cells(geometry: Geometry) -> Size:
    """Pixels of one token."""
    return geometry.stride[1] * geometry.patch[1], geometry.stride[2] * geometry.patch[2]
