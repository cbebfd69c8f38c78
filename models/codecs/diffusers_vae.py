"""A video autoencoder of `diffusers` as a codec, from a folder on this machine: nothing is ever downloaded.

Per frame (Stable Diffusion's and kin) or causal in time (Wan, HunyuanVideo). It takes the mean of the posterior: a clip
has one latent, whoever encodes it.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from blake3 import blake3
from torch import Tensor

from models.codecs.codec import CodecConfig, refuse_frames, to_bytes, to_unit
from parallel.errors import InputError
from parallel.hf_folder import from_folder
from parallel.parsing import parse_json
from parallel.sequence.geometry import Geometry, Grid
from parallel.setting_effects import Content, Numbers, State

PER_FRAME = ("AutoencoderKL",)
CAUSAL = ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo")
NORMED_OVER_TIME = ("AutoencoderKLHunyuanVideo",)  # group norms over all frames: later ones change earlier latents
WEIGHTS = "diffusion_pytorch_model"  # as `diffusers` names them


class DiffusersCodecConfig(CodecConfig):
    """An autoencoder of `diffusers`.

    Attributes:
        path: the folder with config.json and weights.
        tiling: encode and decode in tiles of the picture, for less memory and slightly other values.
    """

    kind: State[Literal["diffusers"]] = "diffusers"
    path: Content[Path]
    tiling: Numbers[bool] = False


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
        refuse_frames(frames)
        frames = frames.to(self._device)  # as bytes, whatever the autoencoder computes in
        if self.causal:
            found = self.vae.encode(to_unit(frames, self._vae_dtype)[None]).latent_dist
            return found.mean[0], found.logvar[0]
        each = [self.vae.encode(to_unit(f, self._vae_dtype).transpose(0, 1)).latent_dist for f in frames.split(1)]
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
        return to_bytes(clip).to(latents.device)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.vae.device
        return device

    @property
    def _vae_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype


def open_folder(
    config: DiffusersCodecConfig, patch: Grid, dtype: torch.dtype, device: torch.device | str
) -> DiffusersCodec:
    """The autoencoder of a folder, its weights in `dtype` on `device`.

    Raises:
        InputError: the path is not a folder with an autoencoder of a known class.
    """
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
            f"a codec is one of {known}",
            f"{name} in {where}",
            "convert it, or add it in models/codecs/diffusers_vae.py",
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
