"""`longreel sample`: videos from a run's checkpoint, as mp4, one contact sheet, and what they were made from.

A sample depends on (weights, prompt, seed, steps, guidance, size) alone: each is drawn by itself, so that the same
request gives the same bytes whatever else is asked for with it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from data.video import encode
from launcher.checkpoints.manifest import name_of
from launcher.checkpoints.reading import Checkpoint, newest, one
from launcher.checkpoints.storage import open_storage
from launcher.config import RunConfig, load
from launcher.folder import RunFolder, write_whole
from launcher.hardware import device_here, memory
from launcher.outside import Hashes, outside_of, refuse_other_outside
from launcher.weights import fill, folder_of_weights
from models.dit import VideoDiT, VideoDiTConfig
from models.kinds import DTYPES, build, build_flow
from models.latents import open_codec
from models.patches import unpatchify
from models.sampler import sample
from models.video_lm import VideoLM
from parallel.ema import EMA
from parallel.errors import InputError
from parallel.random import key_of
from parallel.zero import Fragment

Frames = npt.NDArray[np.uint8]
SMALLEST_SHOWN = 128  # pixels on the shorter side of what is written; smaller videos are shown enlarged
SHEET_FRAMES = 8
BYTES_PER_PIXEL = 30  # the least: noise, velocity and result in float32, and the frames


@dataclass(frozen=True)
class Request:
    """What to draw; None takes the run's own setting.

    Attributes:
        prompts: one video each.
        seed: of the noise.
        steps: of the solver.
        guidance: classifier-free guidance scale, 1 for none.
        frames: of each video.
        size: (height, width).
        checkpoint_step: which checkpoint; the newest if None.
    """

    prompts: tuple[str, ...] = ()
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    checkpoint_step: int | None = None


@dataclass(frozen=True)
class Settled:
    """A request with nothing left open; the fields of `Request`."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance: float
    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Sampled:
    """One video that was written, and how it was made."""

    file: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    frames: int
    height: int
    width: int
    checkpoint_step: int


def draw(
    run: Path, request: Request, out: Path | None = None, on_progress: Callable[[int, int], None] | None = None
) -> tuple[list[Sampled], Path]:
    """Draw videos; returns what was written, and the contact sheet.

    Args:
        run: the run folder.
        request: what to draw.
        out: folder for the files; `samples/` of the run if not given.
        on_progress: called with (done, total).

    Raises:
        InputError: no run, no checkpoint, no prompt, or a size that does not fill whole tokens.
    """
    config, found = open_run(run, request.checkpoint_step)
    if not isinstance(config.model, VideoDiTConfig):
        found_there, remedy = f"model.kind: {config.model.kind}", '--video FILE --prompt "What is it?", to ask'
        raise InputError("videos are drawn by a model that draws", found_there, remedy)
    asked = with_defaults(request, config)
    device = device_here(config.device)
    codec = open_codec(config.codec, config.model.patch, DTYPES[config.dtype], device)
    grid = codec.geometry.grid(asked.frames, *asked.size)
    model = load_model(config, found, codec.geometry.channels, device)
    assert isinstance(model, VideoDiT), "a model that speaks was refused"
    objective = build_flow(config.objective)
    folder = out or RunFolder(run).samples
    folder.mkdir(parents=True, exist_ok=True)
    written, rows = [], []
    for number, prompt in enumerate(asked.prompts):
        (tokens,) = sample(
            model, objective, [grid], [prompt], [key_of(asked.seed, prompt)], steps=asked.steps,
            guidance=asked.guidance, shift=objective.shift_of(prod(grid)), dtype=DTYPES[config.dtype],
        )  # fmt: skip
        latents = unpatchify(tokens, grid, config.model.patch, codec.geometry.channels)
        frames: Frames = codec.decode(latents).cpu().numpy()
        made = Sampled(
            f"{slug(prompt)}-{asked.seed}.mp4", prompt, asked.seed, asked.steps, asked.guidance,
            len(frames), frames.shape[1], frames.shape[2], found.state.step,
        )  # fmt: skip
        write_whole(folder / made.file, encode(enlarged(frames), Fraction(config.sample.fps)))
        write_whole((folder / made.file).with_suffix(".json"), json.dumps(asdict(made), indent=1).encode())
        written.append(made)
        rows.append((prompt, frames))
        if on_progress is not None:
            on_progress(number + 1, len(asked.prompts))
    sheet = folder / f"sheet-step-{found.state.step}-seed-{asked.seed}.png"
    contact_sheet(rows).save(sheet)
    return written, sheet


def open_run(run: Path, step: int | None = None) -> tuple[RunConfig, Checkpoint]:
    """A run's config and one of its checkpoints, the newest whole one if no step is given."""
    folder = RunFolder(run)
    if not folder.config.exists():
        raise InputError("a run folder holds config.yaml", f"{run} does not", "give the `out` folder of a run")
    config = load(folder.config)
    storage = open_storage(folder.checkpoints, config.checkpoint.to)
    if step is None:
        found, _ = newest(storage)
        if found is None:
            raise InputError(
                "samples come from a checkpoint", f"{run} has none yet", "train at least one checkpoint.every"
            )
        return config, found
    return config, one(storage, name_of(step))


def with_defaults(request: Request, config: RunConfig) -> Settled:
    """The request with the run's settings where it leaves something open."""
    prompts = request.prompts or config.sample.prompts
    frames = next((n for n in (request.frames, config.sample.frames, config.data.frames) if n is not None), None)
    size = next((s for s in (request.size, config.sample.size, config.data.size) if s is not None), None)
    steps = config.sample.steps if request.steps is None else request.steps
    guidance = config.sample.guidance if request.guidance is None else request.guidance
    if not prompts:
        raise InputError("a sample has a prompt", "none, and the run has no sample.prompts", '--prompt "..."')
    if frames is None or size is None:
        raise InputError(
            "a sample has a length and a size", "the run trains on whole clips", "--frames 16 --size 256x256"
        )
    if steps < 1 or not 0 <= guidance < math.inf:
        raise InputError("steps is at least 1, guidance at least 0", f"{steps}, {guidance}", "--steps 50 --guidance 4")
    if not 0 <= request.seed < 2**63:
        raise InputError("a seed is from 0 to 2^63 - 1", str(request.seed), "--seed 0")
    if min(frames, *size) < 1:
        raise InputError(
            "a video has frames and pixels", f"{frames} of {size[0]}x{size[1]}", "--frames 16 --size 256x256"
        )
    need, (_, free) = BYTES_PER_PIXEL * frames * size[0] * size[1], memory()
    if need > free:
        raise InputError(
            "a video fits into memory while it is drawn",
            f"{frames} frames of {size[0]}x{size[1]} take about {need / 1e9:,.0f} GB, {free / 1e9:,.0f} GB are free",
            "a smaller --size, or fewer --frames",
        )
    return Settled(prompts, request.seed, steps, guidance, frames, size)


def long_prompts(run: Path, request: Request) -> list[str]:
    """What to tell of prompts that are longer than the model reads."""
    config = load(RunFolder(run).config)
    if not isinstance(config.model, VideoDiTConfig):
        return []
    most = config.model.text.max_bytes
    prompts = request.prompts or config.sample.prompts
    sizes = [(prompt, len(prompt.encode("utf-8", "surrogatepass"))) for prompt in prompts]
    return [
        f"the prompt {prompt[:40]!r} ... has {size:,} bytes: the model reads the first {most:,} (model.text.max_bytes)"
        for prompt, size in sizes
        if size > most
    ]


def load_model(config: RunConfig, found: Checkpoint, channels: int, device: torch.device) -> VideoDiT | VideoLM:
    """The model with the checkpoint's weights: their moving average, if the run kept one.

    Raises:
        InputError: what is read beside the checkpoint, as frozen weights and the codec, is not what it was.
    """
    model = build(config.model, channels, config.seed, DTYPES[config.dtype], config.objective).to(device).eval()
    folder = folder_of_weights(config)
    refuse_other_outside(found, config, outside_of(config, model, None, Hashes()))
    if folder is not None:
        fill(folder, model)
    key = EMA if EMA in found.manifest.keys else "master"
    named = model.named_parameters()
    parameters = {name: parameter.data.view(-1) for name, parameter in named if name in found.manifest.shapes}
    found.fill([Fragment(name, 0, {"master": flat, key: flat}) for name, flat in parameters.items()], (key,))
    return model


def enlarged(frames: Frames) -> Frames:
    """Small videos by a whole factor, each pixel a square, so that a player shows them as they are."""
    factor = -(-SMALLEST_SHOWN // min(frames.shape[1:3]))
    return frames if factor <= 1 else frames.repeat(factor, axis=1).repeat(factor, axis=2)


def contact_sheet(rows: Sequence[tuple[str, Frames]]) -> Image.Image:
    """One row a video, its frames from left to right below its prompt."""
    pad, label = 6, 18
    shown = [(prompt, [enlarged(frames)[i] for i in spread(len(frames))]) for prompt, frames in rows]
    height, width = shown[0][1][0].shape[:2]
    columns = max(len(frames) for _, frames in shown)
    sheet = Image.new("RGB", (pad + columns * (width + pad), len(shown) * (height + label + pad) + pad), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (prompt, frames) in enumerate(shown):
        top = pad + row * (height + label + pad)
        pen.text((pad, top), prompt, fill="black", font_size=13)
        for column, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (pad + column * (width + pad), top + label))
    return sheet


def spread(frames: int) -> Iterator[int]:
    """At most SHEET_FRAMES positions from first to last."""
    count = min(frames, SHEET_FRAMES)
    return (round(i * (frames - 1) / max(1, count - 1)) for i in range(count))


def slug(prompt: str) -> str:
    """A file name of a prompt; two prompts that differ get names that differ."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "sample"
    plain = prompt == words.replace("-", " ")
    return words if plain else f"{words}-{key_of(prompt) % 0xFFFF:04x}"
