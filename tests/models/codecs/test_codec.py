"""Codecs: round trips, geometry, determinism; tiny random autoencoders stand for the real ones."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.codecs.codec import CODECS, Codec, CodecConfig, CodecSpec
from models.codecs.diffusers_vae import DiffusersCodec, DiffusersCodecConfig
from models.codecs.open_codec import AnyCodecConfig, open_codec
from models.codecs.pixel import PixelCodec, PixelCodecConfig
from models.layers.patches import patchify
from parallel.errors import InputError
from parallel.setting_effects import State

FRAMES = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Tiny random autoencoders, saved as `diffusers` saves them."""
    import diffusers

    torch.manual_seed(0)
    vaes = {
        "kl": diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, scaling_factor=0.5, shift_factor=0.1,
        ),
        "wan": diffusers.AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5],
        ),
        "hunyuan": diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        ),
    }  # fmt: skip
    root = tmp_path_factory.mktemp("vaes")
    for name, vae in vaes.items():
        vae.save_pretrained(root / name)
    return {name: root / name for name in vaes}


def opened(folders, name, **more) -> Codec:
    return open_codec(DiffusersCodecConfig(path=folders[name], **more), (1, 2, 2))


def test_pixels_come_back_exactly():
    codec = open_codec(PixelCodecConfig(), (1, 4, 4))
    latents = codec.encode(FRAMES)
    assert isinstance(codec, PixelCodec)
    assert latents.shape == (3, 5, 16, 16)
    assert -1 <= latents.min() < -0.9
    assert 0.9 < latents.max() <= 1
    assert torch.equal(codec.decode(latents), FRAMES)
    assert torch.equal(codec.decode(PixelCodec((1, 4, 4), torch.float64).encode(FRAMES)), FRAMES)
    assert torch.equal(codec.encode(FRAMES[1:3]), latents[:, 1:3])
    assert codec.decode(torch.full((3, 1, 2, 2), 9.0)).eq(255).all()


@pytest.mark.parametrize(
    ("name", "latent_shape"), [("kl", (4, 5, 8, 8)), ("wan", (4, 2, 2, 2)), ("hunyuan", (4, 2, 2, 2))]
)
def test_geometry_agrees_with_what_the_autoencoder_does(folders, name, latent_shape):
    codec = opened(folders, name)
    latents = codec.encode(FRAMES)
    assert latents.shape == latent_shape
    assert latents.dtype == torch.float32
    grid = codec.geometry.grid(5, 16, 16)
    assert patchify(latents, (1, 2, 2)).shape == (grid[0] * grid[1] * grid[2], codec.geometry.token_dim)
    frames = codec.decode(latents)
    assert frames.shape == FRAMES.shape
    assert frames.dtype == torch.uint8
    assert torch.equal(codec.encode(FRAMES), latents)  # the mode: no draw


def test_a_slice_of_frames_has_the_bits_of_the_whole(folders):
    codec = opened(folders, "kl")
    assert codec.geometry.sliceable
    assert not codec.geometry.causal
    latents = codec.encode(FRAMES)
    assert torch.equal(codec.encode(FRAMES[2:4]), latents[:, 2:4])
    assert torch.equal(codec.decode(latents[:, 2:4]), codec.decode(latents)[2:4])


def test_a_causal_codec_sees_only_the_past(folders):
    codec = opened(folders, "wan")
    assert codec.geometry.causal
    assert not codec.geometry.sliceable
    assert codec.geometry.stride == (4, 8, 8)
    torch.testing.assert_close(codec.encode(FRAMES[:1]), codec.encode(FRAMES)[:, :1])


def test_latents_are_normalised_as_diffusers_states(folders):
    import diffusers

    clip = FRAMES.permute(3, 0, 1, 2).float()[None] / 127.5 - 1
    with torch.no_grad():
        kl = diffusers.AutoencoderKL.from_pretrained(folders["kl"])
        raw = kl.encode(clip[0].transpose(0, 1)).latent_dist.mode().transpose(0, 1)
        torch.testing.assert_close(opened(folders, "kl").encode(FRAMES), (raw - 0.1) * 0.5, rtol=1e-4, atol=1e-5)
        wan = diffusers.AutoencoderKLWan.from_pretrained(folders["wan"])
        raw = wan.encode(clip).latent_dist.mode()[0]
    mean, deviation = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, 0.5, 1.5])
    want = (raw - mean[:, None, None, None]) / deviation[:, None, None, None]
    torch.testing.assert_close(opened(folders, "wan").encode(FRAMES), want)


def test_weights_are_frozen_and_dtype_is_kept(folders):
    codec = open_codec(DiffusersCodecConfig(path=folders["kl"]), (1, 2, 2), torch.bfloat16)
    assert isinstance(codec, DiffusersCodec)
    assert not any(p.requires_grad for p in codec.vae.parameters())
    assert codec.encode(FRAMES).dtype == torch.bfloat16
    tiled = opened(folders, "wan", tiling=True)
    torch.testing.assert_close(tiled.encode(FRAMES), opened(folders, "wan").encode(FRAMES))


def test_a_wrong_path_is_named(folders, tmp_path):
    def refused(path, words):
        with pytest.raises(InputError, match=words):
            open_codec(DiffusersCodecConfig(path=path), (1, 2, 2))

    refused(tmp_path / "nowhere", "nowhere")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "_class_name")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet"}')
    refused(tmp_path, "UNet in")
    (tmp_path / "config.json").write_text((folders["kl"] / "config.json").read_text())
    refused(tmp_path, "holds the weights of an AutoencoderKL")
    with pytest.raises(ValidationError, match=r"(?s)path.*Field required"):
        DiffusersCodecConfig()
    with pytest.raises(InputError, match=r"float32 \[3, 8, 8\]"):
        PixelCodec((1, 4, 4)).encode(torch.zeros(3, 8, 8))


def test_importing_models_does_not_import_diffusers_or_distributed_code():
    code = (
        "import sys, models.registry, models.codecs.open_codec, models.diffusion.sampler\n"
        "assert not [m for m in ('diffusers', 'transformers', 'data', 'launcher') if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent.parent)


def test_models_name_no_rank_and_no_group():
    """Single-device code: the words of the ground floor's engine do not occur."""
    for file in (Path(__file__).parent.parent.parent.parent / "models").rglob("*.py"):
        lines = [line for line in file.read_text().splitlines() if "import" in line]
        assert not [line for line in lines if "distributed" in line or "launcher" in line or "from data." in line], file


def test_a_codec_that_was_registered_is_opened_by_its_kind():
    class Half(CodecConfig):
        kind: State[Literal["half"]] = "half"
        by: State[float] = 2.0

    CODECS.register("half", CodecSpec(Half, lambda config, patch, dtype, device: (config.by, patch, dtype)))
    try:
        config = TypeAdapter(AnyCodecConfig).validate_python({"kind": "half", "by": 4})
        assert (config, config.folder) == (Half(by=4.0), None)
        assert open_codec(config, (1, 2, 2)) == (4.0, (1, 2, 2), torch.float32)
    finally:
        del CODECS._entries["half"]
    with pytest.raises(ValidationError, match="a codec is one of: pixel, diffusers"):
        TypeAdapter(AnyCodecConfig).validate_python("half")
