"""Codecs: frames to latents and back, frozen.

`PixelCodec` is the path with no download: a latent cell is a pixel. `DiffusersCodec` runs a video autoencoder from a
`diffusers` folder on this machine (nothing is ever downloaded): per frame (Stable Diffusion's and kin) or causal in
time (Wan, HunyuanVideo). It takes the mean of the posterior: a clip has one latent, whoever encodes it.

    frames --posterior--> mean, log-variance        computed once and stored (`longreel data encode`)
    frames ---------encode--------> latents         computed while training
    mean ---normal----> latents                     the same bits
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from blake3 import blake3
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from parallel.errors import InputError
from parallel.hf_folder import from_folder
from parallel.parsing import parse_json
from parallel.sequence.geometry import Geometry, Grid
from parallel.setting_effects import Content, Numbers, State

PER_FRAME = ("AutoencoderKL",)
CAUSAL = ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo")
NORMED_OVER_TIME = ("AutoencoderKLHunyuanVideo",)  # group norms over all frames: later ones change earlier latents
CHUNK_FRAMES = 16  # that are floats of four bytes at a time
WEIGHTS = "diffusion_pytorch_model"  # as `diffusers` names them


class Codec(Protocol):
    """Frames to latents and back.

    Attributes:
        geometry: its strides and the model's patch: how many tokens a clip has.
        prefixes: whether the first latents of a clip are those of its first frames alone.
        identity: of what stored latents were made by; "" for the pixel codec, which makes none.
    """

    geometry: Geometry
    prefixes: bool

    @property
    def identity(self) -> str:
        """See above; may take a second, the first time."""

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [channels, t, h, w] of uint8 `frames` [frames, height, width, 3], near mean 0 and deviation 1."""

    def normal(self, mean: Tensor) -> Tensor:
        """Latents as of `encode`, of the mean of a posterior: [channels, t, h, w], float32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Frames uint8 [frames, height, width, 3] of `latents` [channels, t, h, w]."""


class CodecConfig(BaseModel):
    """Which codec.

    Attributes:
        kind: "pixel", or "diffusers" for an autoencoder in a folder.
        path: the folder with config.json and weights, for "diffusers".
        tiling: encode and decode in tiles of the picture, for less memory and slightly other values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: State[Literal["pixel", "diffusers"]] = "pixel"
    path: Content[Path | None] = None
    tiling: Numbers[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, settings: Any) -> Any:
        """A name is a kind: `codec: pixel`."""
        return {"kind": settings} if isinstance(settings, str) else settings

    @model_validator(mode="after")
    def _path_fits(self) -> CodecConfig:
        if (self.kind == "diffusers") != (self.path is not None):
            raise InputError(
                "a diffusers codec has a path, the pixel codec has none",
                f"kind: {self.kind}, path: {self.path}",
                "kind: diffusers and path: FOLDER, or kind: pixel alone",
            )
        return self


class PixelCodec:
    """Colours scaled to -1 .. 1: exact, and each frame its own."""

    identity = ""
    prefixes = True

    def __init__(self, patch: Grid, dtype: torch.dtype = torch.float32) -> None:
        self.geometry, self.dtype = Geometry(channels=3, patch=patch), dtype

    def encode(self, frames: Tensor) -> Tensor:
        """See `Codec`."""
        return _to_unit(frames, self.dtype)

    def normal(self, mean: Tensor) -> Tensor:
        """See `Codec`."""
        return mean.to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec`."""
        return _to_bytes(latents)


class DiffusersCodec:
    """An autoencoder of `diffusers`, frozen.

    Args:
        vae: the module; its class is one of `PER_FRAME` or `CAUSAL`.
        patch: of the model.
        dtype: of the latents; the autoencoder computes in its own dtype.
        folder: that it came from; None if it came from nowhere, and has no identity.
    """

    def __init__(self, vae: Any, patch: Grid, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> None:
        name = type(vae).__name__
        _check_class(name, "this module")
        self.vae, self.dtype, self.folder = vae.eval().requires_grad_(False), dtype, folder
        self.causal, self.prefixes = name in CAUSAL, name not in NORMED_OVER_TIME
        config = vae.config
        self.geometry = Geometry(
            _channels(config), _stride(vae, name), patch, causal=self.causal, sliceable=not self.causal
        )
        self._offset, self._scale = _statistics(config)

    @cached_property
    def identity(self) -> str:
        """See `Codec`."""
        return identity_of(self.folder) if self.folder else "unknown"

    def encode(self, frames: Tensor) -> Tensor:
        """See `Codec`; a per-frame autoencoder gets one frame at a time, so that its bits do not depend on others."""
        mean, _ = self._posterior(frames)
        return self.normal(mean.float()).to(frames.device)

    def posterior(self, frames: Tensor) -> Tensor:
        """Mean and log-variance, float32 [2, channels, t, h, w], as the autoencoder gives them: not normalised."""
        return torch.stack(self._posterior(frames)).to(frames.device, torch.float32)

    def normal(self, mean: Tensor) -> Tensor:
        """See `Codec`."""
        normal: Tensor = (mean - self._offset.to(mean.device)) / self._scale.to(mean.device)
        return normal.to(self.dtype)

    @torch.no_grad()
    def _posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [channels, t, h, w] in the autoencoder's dtype and on its device."""
        _refuse_frames(frames)
        frames = frames.to(self._device)  # as bytes, whatever the autoencoder computes in
        if self.causal:
            found = self.vae.encode(_to_unit(frames, self._vae_dtype)[None]).latent_dist
            return found.mean[0], found.logvar[0]
        each = [self.vae.encode(_to_unit(f, self._vae_dtype).transpose(0, 1)).latent_dist for f in frames.split(1)]
        mean, logvar = torch.cat([d.mean for d in each]), torch.cat([d.logvar for d in each])
        return mean.transpose(0, 1), logvar.transpose(0, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec`."""
        offset, scale = self._offset.to(self._device), self._scale.to(self._device)
        cells = (latents.to(self._device, torch.float32) * scale + offset).to(self._vae_dtype)
        if self.causal:
            clip = self.vae.decode(cells[None]).sample[0]
        else:
            clip = torch.cat([self.vae.decode(c).sample for c in cells.transpose(0, 1).split(1)]).transpose(0, 1)
        return _to_bytes(clip).to(latents.device)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.vae.device
        return device

    @property
    def _vae_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype


def open_codec(
    config: CodecConfig, patch: Grid, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Codec:
    """The codec that `config` names, ready to use.

    Args:
        config: which one.
        patch: of the model, for the geometry.
        dtype: of latents, and of an autoencoder's weights.
        device: of an autoencoder's weights.

    Raises:
        InputError: the path is not a folder with an autoencoder of a known class.
    """
    if config.path is None:
        return PixelCodec(patch, dtype)
    folder, file = config.path, config.path / "config.json"
    remedy = "name the folder that `save_pretrained` wrote (often MODEL/vae); nothing is downloaded"
    try:
        name = str(parse_json(file.read_bytes())["_class_name"])
    except OSError as error:
        raise InputError("a diffusers codec is a folder with config.json and weights", str(error), remedy) from None
    except (ValueError, KeyError, TypeError) as error:
        found = f"{file}: {type(error).__name__} {error}"
        raise InputError("config.json of a codec is JSON with a _class_name", found, remedy) from None
    _check_class(name, str(file))
    import diffusers  # seconds to import, and only this path needs it

    try:
        vae = from_folder(getattr(diffusers, name), folder, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        article = "an" if name[0] in "AEIOU" else "a"
        raise InputError(f"{folder} holds the weights of {article} {name}", str(error), remedy) from None
    if config.tiling:
        vae.enable_tiling()
    return DiffusersCodec(vae.to(device), patch, dtype, folder)


def identity_of(folder: Path) -> str:
    """What decides the latents of an autoencoder: its class, and the digest of its settings and weights.

    What `diffusers` notes in config.json (its version, the folder's name) does not count. About a second a gigabyte.

    Raises:
        OSError, ValueError: there is no such autoencoder.
    """
    config = parse_json((folder / "config.json").read_bytes())
    settings = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    hasher = blake3(json.dumps(settings, sort_keys=True).encode())
    for file in weights_of(folder):
        hasher.update(blake3(max_threads=blake3.AUTO).update_mmap(file).digest())
    return f"{config['_class_name']} {hasher.hexdigest(length=16)}"


def weights_of(folder: Path) -> list[Path]:
    """The files that `diffusers` loads: in parts, or in one; pickles are not opened.

    Raises:
        FileNotFoundError: there are none.
    """
    for pattern in (f"{WEIGHTS}-*-of-*.safetensors", f"{WEIGHTS}.safetensors"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise FileNotFoundError(f"{folder} has no {WEIGHTS}.safetensors")


def _check_class(name: str, where: str) -> None:
    if name not in PER_FRAME + CAUSAL:
        known = ", ".join(PER_FRAME + CAUSAL)
        raise InputError(
            f"a codec is one of {known}", f"{name} in {where}", "convert it, or add it in models/codecs/vae.py"
        )


def _channels(config: Any) -> int:
    return int(config["z_dim"] if "z_dim" in config else config["latent_channels"])


def _stride(vae: Any, name: str) -> Grid:
    """Frames and pixels of one latent cell, as each family of `diffusers` states them."""
    if name == "AutoencoderKLWan":
        return (
            vae.config["scale_factor_temporal"],
            vae.config["scale_factor_spatial"],
            vae.config["scale_factor_spatial"],
        )
    if name == "AutoencoderKLHunyuanVideo":
        return vae.temporal_compression_ratio, vae.spatial_compression_ratio, vae.spatial_compression_ratio
    space = 2 ** (len(vae.config["block_out_channels"]) - 1)
    return 1, space, space


def _statistics(config: Any) -> tuple[Tensor, Tensor]:
    """Offset and scale [channels or 1, 1, 1, 1] of raw latents: normal = (raw - offset) / scale.

    `diffusers` states either mean and deviation of each channel (Wan), or scaling_factor = 1 / deviation and
    shift_factor = mean (Stable Diffusion and kin).
    """
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and deviation is not None:
        offset, scale = torch.tensor(mean), torch.tensor(deviation)
    else:
        offset = torch.tensor(config.get("shift_factor") or 0.0)
        scale = 1.0 / torch.tensor(config.get("scaling_factor") or 1.0)
    return offset.reshape(-1, 1, 1, 1), scale.reshape(-1, 1, 1, 1)


def _to_unit(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [frames, height, width, 3] -> [3, frames, height, width] in -1 .. 1, in float32, some at a time."""
    _refuse_frames(frames)
    out = torch.empty(frames.shape, dtype=dtype, device=frames.device).permute(3, 0, 1, 2)  # colours stay together
    for part, into in zip(frames.split(CHUNK_FRAMES), out.split(CHUNK_FRAMES, dim=1), strict=True):
        into.copy_(part.permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0))
    return out


def _refuse_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {list(frames.shape)}"
        raise InputError("frames are uint8 [frames, height, width, 3]", found, "decode to RGB bytes first")


def _to_bytes(clip: Tensor) -> Tensor:
    """[3, frames, height, width] in -1 .. 1 -> uint8 [frames, height, width, 3]."""
    return ((clip.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous()
