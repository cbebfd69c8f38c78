"""`longreel sample`: videos from a run's checkpoint, as mp4, one contact sheet, and what they were made from.

A sample depends on (weights, prompt, what is given, seed, steps, guidance, size) alone: each is sampled by itself, so
that the same request gives the same bytes whatever else is asked for with it. Its name says all of these, and what is
there already is never overwritten (`folder.keep`): to compare checkpoints or scales is what samples are for.

    a-red-square-step-200-seed-0-guidance-4-solver-50-16x32x32.mp4    of the moving average, if the run keeps one
    a-red-square-step-200-seed-0-guidance-4-solver-50-16x32x32-no-ema.mp4
    a-red-square-step-200-seed-0-guidance-4-heun-25-16x32x32-first_frame-1f0c93ab.mp4   with --sampler and --first-frame
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from data.media.video import encode
from launcher.batches.family import family_of
from launcher.checkpoints.reading import Checkpoint
from launcher.config.loading import load_stored
from launcher.config.run_config import RunConfig
from launcher.core.hardware import device_here
from launcher.core.run_folder import RunFolder, keep
from launcher.generation.given_frames import GivenClip, given_clip
from launcher.generation.sample_request import Request, Settled, settle
from launcher.generation.trained_model import is_averaged, load_model, open_run
from models.codecs.codec import Codec
from models.codecs.open_codec import open_codec
from models.codecs.vq import Frames, enlarged
from models.diffusion.sampler import Clip, Solver, sample
from models.layers.patches import unpatchify
from models.registry import DTYPES, build_objective, spec_of
from parallel.errors import InputError
from parallel.random import key_of

SHEET_FRAMES = 8


@dataclass(frozen=True)
class Sampled:
    """One video that was written, and how it was made; `given` has the file of what was given, by its task."""

    file: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    frames: int
    height: int
    width: int
    checkpoint_step: int
    averaged: bool
    sampler: str
    given: dict[str, str]
    given_digest: str


def sample_videos(
    run: Path,
    request: Request,
    out: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[list[Sampled], Path]:
    """Sample videos; returns what was written, and the contact sheet.

    Args:
        run: the run folder.
        request: what to sample.
        out: folder for the files; `samples/` of the run if not given.
        on_progress: called with (done, total).
        on_note: called with what a person should know before anything is sampled.

    Raises:
        InputError: no run, no checkpoint, no prompt, a size that does not fill whole tokens, or something given that
            the model was not trained to be given.
    """
    config, found = open_run(run, request.checkpoint_step)
    if spec_of(config.model).family != "diffusion":
        found_there, remedy = f"model.kind: {config.model.kind}", '--video FILE --prompt "What is it?", to ask'
        raise InputError("videos are sampled from a diffusion model", found_there, remedy)
    device = device_here(config.device)
    codec = open_codec(config.codec, config.model.patch, DTYPES[config.dtype], device)
    asked = settle(request, config, found.state.step, codec.geometry)
    given = _given(asked, codec, device)
    averaged = is_averaged(found, request.averaged)
    if on_note is not None:
        of = "moving average of the weights; --no-ema for the weights" if averaged else "weights"
        notes = dict.fromkeys(clip.note for clip in given if clip is not None and clip.note)
        for note in (*asked.notes, *notes, f"step {found.state.step}, {of}"):
            on_note(note)
    model = load_model(config, found, codec.geometry.channels, device, averaged)
    folder = out or RunFolder(run).samples
    folder.mkdir(parents=True, exist_ok=True)
    written, rows = [], []
    for number, (prompt, clip) in enumerate(zip(asked.prompts, given, strict=True)):
        frames = _frames(config, model, codec, asked, (prompt, clip))
        task, file = (asked.given.task, str(asked.given.files[number])) if asked.given else ("", "")
        made = Sampled(
            "", prompt, asked.seed, asked.steps, asked.guidance, len(frames), frames.shape[1], frames.shape[2],
            found.state.step, averaged, asked.sampler, {task: file} if task else {}, clip.digest if clip else "",
        )  # fmt: skip
        video = encode(enlarged(frames), Fraction(config.sample.fps))
        written.append(_write(folder, f"{slug(prompt)}-{_setting(made, found)}", made, video))
        rows.append((prompt, frames))
        if on_progress is not None:
            on_progress(number + 1, len(asked.prompts))
    picture = io.BytesIO()
    contact_sheet(rows).save(picture, "PNG")
    sheet = keep(folder, f"sheet-{_setting(written[0], found)}", {".png": picture.getvalue()})
    return written, folder / f"{sheet}.png"


def _given(asked: Settled, codec: Codec, device: torch.device) -> list[GivenClip | None]:
    """What is given of the video of each prompt."""
    if asked.given is None:
        return [None] * len(asked.prompts)
    grid, task = codec.geometry.grid(asked.frames, *asked.size), asked.given.task
    return [
        given_clip((task, file), grid, key_of(asked.seed, prompt), asked.size, codec, device)
        for prompt, file in zip(asked.prompts, asked.given.files, strict=True)
    ]


def _frames(config: RunConfig, model: Any, codec: Codec, asked: Settled, clip: tuple[str, GivenClip | None]) -> Frames:
    """The video of a prompt, and of what is given of it."""
    prompt, given = clip
    grid = codec.geometry.grid(asked.frames, *asked.size)
    one = Clip(grid, prompt, key_of(asked.seed, prompt), given.given if given else None)
    solver = Solver(asked.steps, asked.guidance, asked.sampler)
    objective: Any = build_objective(config.objective)
    (tokens,) = sample(model, objective, [one], solver, DTYPES[config.dtype])
    latents = unpatchify(tokens, grid, codec.geometry.patch, codec.geometry.channels)
    frames: Frames = codec.decode(latents).cpu().numpy()
    return frames


def _setting(made: Sampled, found: Checkpoint) -> str:
    """All that a sample depends on but its prompt, as a part of a file name."""
    guidance = f"{made.guidance:g}" if float(f"{made.guidance:g}") == made.guidance else repr(made.guidance)
    weights = "" if made.averaged == is_averaged(found) else "-no-ema"
    solver = "solver" if made.sampler == "euler" else made.sampler
    given = "".join(f"-{task}-{made.given_digest}" for task in made.given)
    shape = f"{made.frames}x{made.height}x{made.width}{given}{weights}"
    return f"step-{made.checkpoint_step}-seed-{made.seed}-guidance-{guidance}-{solver}-{made.steps}-{shape}"


def _write(folder: Path, stem: str, made: Sampled, video: bytes) -> Sampled:
    """The video, and beside it what it was made from, which names it."""

    def files(name: str) -> dict[str, bytes]:
        told = asdict(replace(made, file=f"{name}.mp4"))
        return {".mp4": video, ".json": json.dumps(told, indent=1).encode()}

    return replace(made, file=f"{keep(folder, stem, files)}.mp4")


def long_prompts(run: Path, request: Request) -> list[str]:
    """What to tell of prompts that are longer than the model reads."""
    config = load_stored(RunFolder(run).config)
    most = family_of(config.model).caption_bytes(config.model)
    if most is None:
        return []
    prompts = request.prompts or config.sample.prompts
    sizes = [(prompt, len(prompt.encode("utf-8", "surrogatepass"))) for prompt in prompts]
    return [
        f"the prompt {prompt[:40]!r} ... has {size:,} bytes: the model reads the first {most:,} (model.text.max_bytes)"
        for prompt, size in sizes
        if size > most
    ]


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
    return words if plain else f"{words}-{key_of(prompt) & 0xFFFFFFFF:08x}"
