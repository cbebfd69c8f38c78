"""What a person gives of a video to `longreel sample`: pictures, as the tokens that a conditioning task asks for.

    --given first_frame=cat.png --prompt "it runs"        tokens [t, y, x] of the task -> frames -> codec -> values

A picture becomes a frame as pictures of a dataset do: upright, in sRGB, what is transparent over black, scaled until it
covers the size of the video, the overhang cut off evenly. A picture alone stands in every frame that is given; a folder
holds one for each, in the order of their names.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from PIL import Image, ImageOps

from data.containers.regular_file import read_regular
from data.media import image
from data.media.color import Frames
from data.planning.clip_sampling import Sampling, Size
from models.codecs.codec import Codec
from models.diffusion.sampler import Given
from models.layers.patches import patchify
from models.objectives.conditioning import CONDITIONING
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry, Grid

PICTURES = ("BMP", "GIF", "PPM", "TIFF")  # formats of Pillow that datasets do not have
NAMES = ".bmp .gif .jpeg .jpg .png .tif .tiff .webp"  # of pictures in a folder


@dataclass(frozen=True)
class GivenFiles:
    """What is given of each video.

    Attributes:
        task: one of `CONDITIONING`.
        files: of each prompt.
    """

    task: str
    files: tuple[Path, ...]


@dataclass(frozen=True, eq=False)
class GivenClip:
    """Of one video.

    Attributes:
        given: for the sampler.
        frames: that were encoded, uint8 [n, height, width, 3].
        note: what a person should know; empty for nothing.
    """

    given: Given
    frames: Frames
    note: str = ""

    @property
    def digest(self) -> str:
        """8 hex digits of the frames, for names of files."""
        return blake3(np.ascontiguousarray(self.frames).tobytes()).hexdigest(length=4)


def files_of(given: Sequence[tuple[str, Path]], prompts: int, shares: Mapping[str, float]) -> GivenFiles | None:
    """Files for each of so many prompts; None if nothing is given.

    Args:
        given: (task, file), as they were asked for.
        prompts: how many.
        shares: of clips that the model was trained with, of each task.

    Raises:
        InputError: no such task, one that the model does not know, two of them, or files that fit no prompts.
    """
    if not given:
        return None
    tasks = list(dict.fromkeys(task for task, _ in given))
    shown = " ".join(f"--given {task}={file}" for task, file in given)
    for task in tasks:
        CONDITIONING[task]  # refuses one that is not there
    if len(tasks) > 1:
        raise InputError("a video has one conditioning task", shown, f"only the files of {tasks[0]}")
    if not shares.get(tasks[0]):
        trained = ", ".join(f"{name}: {share:g}" for name, share in shares.items()) or "words alone"
        raise InputError(
            "a model can be given what it was trained to be given",
            f"{shown}, the run was trained with objective.conditioning: {trained}",
            f"leave it out, or train with 'objective.conditioning={{{tasks[0]}: 0.3}}'",
        )
    files = tuple(file for _, file in given)
    if len(files) not in (1, prompts):
        found = f"{len(files)} files, {prompts} prompts"
        raise InputError(
            "one file is given for all prompts, or one for each", found, "as many --prompt as files, or one"
        )
    return GivenFiles(tasks[0], files if len(files) == prompts else files * prompts)


def given_clip(
    asked: tuple[str, Path], grid: Grid, key: int, size: Size, codec: Codec, device: torch.device
) -> GivenClip:
    """What is given of a video.

    Args:
        asked: one of `CONDITIONING`, and a picture or a folder of pictures.
        grid: tokens of the video.
        key: of its noise.
        size: (height, width) of the video.
        codec: of the run.
        device: of the codec.

    Raises:
        InputError: nothing would be left to generate, pictures that cannot be read or are too few, or frames that this
            codec encodes only with those before them.
    """
    task, file = asked
    entry, geometry = CONDITIONING[task], codec.geometry
    tokens = entry.tokens(grid, key)
    if tokens is None:
        rule = f"something is left to generate beside {entry.summary}"
        raise InputError(
            rule, f"a video of {grid[0]} frames of tokens", f"more --frames than {geometry.frames_per_token}"
        )
    rows = np.flatnonzero(tokens.any(axis=(1, 2)))  # frames of tokens
    if geometry.causal and len(rows) and rows[-1] >= len(rows):
        found = f"frames of tokens {', '.join(map(str, rows[:4].tolist()))} of {grid[0]}"
        rule = "a codec that is causal in time encodes given frames alone if they are the first"
        raise InputError(rule, found, "a codec of single frames, or a task that gives the first frames")
    needed = _frames(geometry, rows)
    frames, note = _pictures(file, needed, Sampling(geometry, size=size)), ""
    if len(frames) != needed:
        frames = np.repeat(frames, needed, axis=0)
        note = f"{file} stands in {needed} frames: a token covers as many (a folder gives one picture for each)"
    values = patchify(codec.encode(torch.from_numpy(frames).to(device)), geometry.patch)
    where = torch.from_numpy(tokens[rows].reshape(-1)).to(values.device)
    return GivenClip(Given(tokens, values[where]), frames, note)


def picture(path: Path, sampling: Sampling) -> Frames:
    """uint8 [1, height, width, 3] of a picture of any format that Pillow reads, scaled and cropped as for training.

    Raises:
        InputError: no file, no picture, or one of several frames.
    """
    if not path.is_file():
        raise InputError("a given frame is a picture", f"{path}: no such file", "the path of a PNG, JPEG, WebP or such")
    data = read_regular(path)
    if image.suffix_of(data[: image.MAGIC]) is None:
        data = _as_png(path, data)
    try:
        height, width = image.decode(data).shape[1:3]
        scaled, (high, wide) = image.decode(data, sampling.scaled(height, width)), sampling.crop(height, width)
    except InputError as error:
        raise InputError(
            "a given frame is one whole picture", f"{path}: {error.value}", "save it again by itself"
        ) from None
    top, left = (scaled.shape[1] - high) // 2, (scaled.shape[2] - wide) // 2
    return np.array(scaled[:, top : top + high, left : left + wide])


def _as_png(path: Path, data: bytes) -> bytes:
    """A picture of a format that datasets do not have (TIFF, BMP, GIF, ...), as one that they do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image.opened_image(io.BytesIO(data), PICTURES) as opened:
                count = int(getattr(opened, "n_frames", 1))
                if count > 1:
                    found = f"{path}: {count} of them"
                    raise InputError("a given frame is one picture", found, "save the one that is meant by itself")
                opened.load()
                return image.encode(np.asarray(image.rgb(ImageOps.exif_transpose(opened))))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        remedy = "a PNG, JPEG, WebP or such; of a video: ffmpeg -i VIDEO -frames:v 1 first.png"
        raise InputError("a given frame is a picture", f"{path}: {error}", remedy) from None


def _pictures(file: Path, needed: int, sampling: Sampling) -> Frames:
    """One frame, or as many as are needed.

    Raises:
        InputError: a folder has another number.
    """
    if not file.is_dir():
        return picture(file, sampling)
    files = sorted(path for path in file.iterdir() if path.suffix.lower() in NAMES.split())
    if len(files) != needed:
        rule = "a folder has a picture for each frame that is given"
        raise InputError(rule, f"{file}: {len(files)}, {needed} frames", "as many pictures, or one by its own name")
    return np.concatenate([picture(path, sampling) for path in files])


def _frames(geometry: Geometry, rows: np.ndarray) -> int:
    """How many frames so many frames of tokens cover."""
    if geometry.causal:
        return 1 + (len(rows) * geometry.patch[0] - 1) * geometry.stride[0] if len(rows) else 0
    return len(rows) * geometry.patch[0] * geometry.stride[0]
