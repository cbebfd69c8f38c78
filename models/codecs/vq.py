"""Visual codes: frames as words of a vocabulary and back, frozen, so that a language model can say a video.

    frames uint8 [n, height, width, 3]  --encode-->  codes int64 [n, y, x] in 0 .. words - 1  --decode-->  frames

The shape of LWM (Liu et al., arXiv:2402.08268), which encodes each frame alone and says codes like words. `ColourCodes`
is the path with no download: a code is the mean colour of a patch, in levels. `DiffusersCodes` runs a VQGAN from a
`diffusers` folder on this machine (nothing is ever downloaded).
"""

from __future__ import annotations

import re
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.codecs.diffusers_vae import identity_of
from models.codecs.pixel import PixelCodec
from parallel.errors import InputError
from parallel.hf_folder import from_folder
from parallel.parsing import parse_json

COLOUR = re.compile(r"colour:(\d{1,6})(?::(\d{1,6}))?")
CLASS = "VQModel"
MOST_LEVELS = 256  # as many as a colour of a frame has
PIXELS = PixelCodec((1, 1, 1))  # colours to -1 .. 1 and back


class Quantiser(Protocol):
    """Frames to codes and back. Codes of a frame do not depend on the other frames.

    Attributes:
        words: number of codes.
        identity: of what stored codes were made by.
    """

    words: int

    @property
    def identity(self) -> str:
        """See above; may take a second, the first time."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Codes (y, x) of a frame of so many pixels; InputError if such frames have no codes."""

    def encode(self, frames: Tensor) -> Tensor:
        """Codes int64 [n, y, x] of uint8 `frames` [n, height, width, 3]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Frames uint8 [n, height, width, 3] of int64 `codes` [n, y, x]."""


class ColourCodes:
    """The mean colour of each patch, each channel in `levels` steps: red levels^2 + green levels + blue.

    Finite scalar quantisation (Mentzer et al., FSQ, arXiv:2309.15505): a code is a point of a fixed grid, without a
    codebook to learn; a mean colour has bounds already, so it needs no tanh. Integers alone, so that codes are the same
    on every machine: level = round(mean (levels - 1) / 255), a half rounds up. Codes come back exactly from what they
    paint.

    Args:
        patch: pixels of a code, patch x patch.
        levels: of a channel, 2 to 256.

    Raises:
        InputError: the patch or the levels are not such.
    """

    def __init__(self, patch: int, levels: int = 8) -> None:
        if patch < 1 or not 2 <= levels <= MOST_LEVELS:
            rule = f"colour codes have patches of a pixel or more, and 2 to {MOST_LEVELS} levels"
            raise InputError(rule, f"patch {patch}, levels {levels}", "patch=8, levels=8")
        self.patch, self.levels, self.words = patch, levels, levels**3
        self.identity = f"colours patch={patch} levels={levels}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Quantiser`."""
        return _grid(height, width, self.patch)

    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantiser`."""
        _refuse_frames(frames)
        y, x = self.grid(*frames.shape[1:3])
        patches = frames.reshape(len(frames), y, self.patch, x, self.patch, 3)
        total = patches.sum((2, 4), dtype=torch.int64)  # [n, y, x, 3]
        white = 255 * self.patch**2
        level = (2 * total * (self.levels - 1) + white) // (2 * white)
        return (level * self._places(frames.device)).sum(3)

    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantiser`."""
        _refuse_codes(codes, self.words)
        level = codes[..., None] // self._places(codes.device) % self.levels  # [n, y, x, 3]
        most = self.levels - 1
        colour = ((2 * level * 255 + most) // (2 * most)).to(torch.uint8)
        return colour.repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)

    def _places(self, device: torch.device) -> Tensor:
        return torch.tensor([self.levels**2, self.levels, 1], device=device)


class DiffusersCodes:
    """A `VQModel` of `diffusers` (Esser et al., VQGAN, arXiv:2012.09841), in float32, one frame at a time.

    So the codes of a frame do not depend on how many are encoded together. They may on the device: two machines may
    round a nearest neighbour differently.

    Args:
        folder: that `save_pretrained` wrote: config.json, and weights as safetensors.
        device: to compute on.

    Raises:
        InputError: the folder does not hold one.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder = Path(folder)
        self.model: Any = _opened(self.folder).eval().requires_grad_(False).to(device)
        config = self.model.config
        self.words: int = config["num_vq_embeddings"]
        self.stride = 2 ** (len(config["block_out_channels"]) - 1)

    @cached_property
    def identity(self) -> str:
        """See `Quantiser`."""
        return identity_of(self.folder)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See `Quantiser`."""
        return _grid(height, width, self.stride)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See `Quantiser`."""
        _refuse_frames(frames)
        grid = self.grid(*frames.shape[1:3])
        pictures = PIXELS.encode(frames).transpose(0, 1).to(self.model.device)  # [n, 3, height, width]
        found = [self.model.quantize(self.model.encode(one[None]).latents)[2][2] for one in pictures]
        codes = torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)
        return codes.reshape(len(frames), *grid).to(frames.device)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """See `Quantiser`."""
        _refuse_codes(codes, self.words)
        n, y, x = codes.shape
        if n == 0:
            return torch.zeros(0, y * self.stride, x * self.stride, 3, dtype=torch.uint8, device=codes.device)
        quantize, size = self.model.quantize, (1, y, x, self.model.quantize.vq_embed_dim)
        pictures = []
        for one in codes.to(self.model.device).reshape(n, -1):
            if self.model.config["lookup_from_codebook"]:  # then `decode` looks up what it is told not to quantise
                pictures.append(self.model.decode(one, force_not_quantize=True, shape=size).sample)
            else:
                entries = quantize.get_codebook_entry(one, size)
                pictures.append(self.model.decode(entries, force_not_quantize=True).sample)
        return PIXELS.decode(torch.cat(pictures).transpose(0, 1)).to(codes.device)


def open_codes(name: str, device: torch.device | str = "cpu") -> ColourCodes | DiffusersCodes:
    """The quantiser of a name: colour:PATCH, colour:PATCH:LEVELS, or the folder of a `VQModel`.

    Raises:
        InputError: it is none of these.
    """
    colour = COLOUR.fullmatch(name)
    if colour is not None:
        return ColourCodes(*(int(number) for number in colour.groups() if number))
    if not Path(name).is_dir():
        rule = f"codes are colour:PATCH, colour:PATCH:LEVELS, or a folder with a {CLASS}"
        raise InputError(rule, name, "--codes colour:8, or --codes MODEL/vqvae")
    return DiffusersCodes(Path(name), device)


def _opened(folder: Path) -> Any:
    file = folder / "config.json"
    remedy = "name the folder that `save_pretrained` wrote (often MODEL/vqvae); nothing is downloaded"
    try:
        name = str(parse_json(file.read_bytes())["_class_name"])
    except OSError as error:
        raise InputError(f"codes come from a folder with a {CLASS}", str(error), remedy) from None
    except (ValueError, KeyError, TypeError) as error:
        found = f"{file}: {type(error).__name__} {error}"
        raise InputError(f"config.json of a {CLASS} is JSON with a _class_name", found, remedy) from None
    if name != CLASS:
        raise InputError(
            f"codes are of a {CLASS}",
            f"{name} in {file}",
            "its latents are no codes: see models/codecs/diffusers_vae.py",
        )
    import diffusers  # seconds to import, and only this path needs it

    try:
        return from_folder(diffusers.VQModel, folder, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds the weights of a {CLASS} as safetensors", str(error), remedy) from None


def _grid(height: int, width: int, stride: int) -> tuple[int, int]:
    if min(height, width) < 1 or height % stride or width % stride:
        found, remedy = f"{height} x {width} pixels, codes of {stride} x {stride}", "crop or resize frames to multiples"
        raise InputError("codes cover a frame", found, remedy)
    return height // stride, width // stride


def _refuse_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {list(frames.shape)}"
        raise InputError("frames are uint8 [n, height, width, 3]", found, "decode to RGB bytes first")


def _refuse_codes(codes: Tensor, words: int) -> None:
    found = f"{codes.dtype} {list(codes.shape)}"
    if codes.dtype != torch.int64 or codes.ndim != 3 or not prod(codes.shape[1:]):
        raise InputError("codes are int64 [n, y, x]", found, "give the codes of whole frames")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= words):
        found = f"{int(codes.min())} to {int(codes.max())}"
        raise InputError(f"codes are 0 to {words - 1}", found, "take off what the vocabulary has before them")


Frames = npt.NDArray[np.uint8]


SMALLEST_SHOWN = 128  # pixels on the shorter side of what is written; smaller videos are shown enlarged


def enlarged(frames: Frames) -> Frames:
    """Small videos by a whole factor, each pixel a square, so that a player shows them as they are."""
    factor = -(-SMALLEST_SHOWN // min(frames.shape[1:3]))
    return frames if factor <= 1 else frames.repeat(factor, axis=1).repeat(factor, axis=2)
