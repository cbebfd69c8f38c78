"""Codes of frames: colours exactly, and a tiny random VQGAN as `diffusers` itself runs it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codecs.vq import ColourCodes, DiffusersCodes, Quantiser
from parallel.errors import InputError

FRAMES = torch.randint(0, 256, (5, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models, saved as `diffusers` saves them."""
    import diffusers

    root = tmp_path_factory.mktemp("codes")
    torch.manual_seed(0)
    usual: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 2}
    for name, more in {
        "plain": usual,
        "narrow": {**usual, "vq_embed_dim": 2},
        "lookup": {**usual, "lookup_from_codebook": True},
        "spatial": {"block_out_channels": (32, 32), "norm_type": "spatial"},
    }.items():
        model = diffusers.VQModel(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4, num_vq_embeddings=37, **more,
        )  # fmt: skip
        with torch.no_grad():  # a codebook of what the encoder gives, so that many of its words are used
            latents = model.encode(torch.rand(1, 3, 16, 16) * 2 - 1).latents[0].flatten(1).T
            model.quantize.embedding.weight.copy_(latents[:37])
        model.save_pretrained(root / name)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.mark.parametrize("levels", [2, 3, 8, 17])
def test_every_colour_code_comes_back(levels: int) -> None:
    codes = ColourCodes(2, levels)
    every = torch.arange(codes.words).reshape(1, -1, levels)
    assert codes.words == levels**3
    assert torch.equal(codes.encode(codes.decode(every)), every)


def test_levels_of_all_numbers_come_back() -> None:
    """Up to one for each byte, where decoding is exact too."""
    for levels in range(2, 257):
        codes = ColourCodes(1, levels)
        grey = torch.arange(levels)[None, None] * (levels**2 + levels + 1)
        assert torch.equal(codes.encode(codes.decode(grey)), grey)
    assert torch.equal(codes.decode(codes.encode(FRAMES)), FRAMES)
    with pytest.raises(InputError, match="2 to 256 levels"):
        ColourCodes(1, 257)


def test_colours_are_the_nearest() -> None:
    codes = ColourCodes(8, levels=8)
    found = codes.encode(FRAMES)
    assert found.shape == (5, *codes.grid(16, 24)) == (5, 2, 3)
    mean = FRAMES.double().reshape(5, 2, 8, 3, 8, 3).mean((2, 4)) / 255 * 7
    level = torch.stack((found // 64, found // 8 % 8, found % 8), dim=3)
    assert (level - mean).abs().max() <= 0.5
    painted = codes.decode(found)
    assert (painted.dtype, painted.shape) == (torch.uint8, FRAMES.shape)
    assert painted[:, :8, 8:16].reshape(5, 64, 3).eq(painted[:, 0, 8][:, None]).all()
    assert codes.decode(torch.tensor([[[0, 511]]]))[0, 0, [0, 8]].tolist() == [[0, 0, 0], [255, 255, 255]]
    assert codes.decode(torch.tensor([[[7 * 64]]]))[0, 0, 0].tolist() == [255, 0, 0]


@given(st.integers(1, 5), st.integers(2, 40), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.integers())
@settings(max_examples=60)
def test_any_colours(patch: int, levels: int, y: int, x: int, n: int, seed: int) -> None:
    codes = ColourCodes(patch, levels)
    generator = torch.Generator().manual_seed(seed % 2**31)
    frames = torch.randint(0, 256, (n, y * patch, x * patch, 3), dtype=torch.uint8, generator=generator)
    found = codes.encode(frames)
    assert (found.dtype, found.shape) == (torch.int64, (n, y, x))
    painted = codes.decode(found)
    assert painted.shape == frames.shape
    assert torch.equal(codes.encode(painted), found)


@pytest.mark.parametrize("name", ["plain", "narrow", "lookup", "spatial"])
def test_a_model_of_diffusers_as_it_runs_it(folders: dict[str, Path], name: str) -> None:
    import diffusers

    codes: Quantiser = DiffusersCodes(folders[name])
    found = codes.encode(FRAMES)
    assert (found.dtype, found.shape) == (torch.int64, (5, *codes.grid(16, 24)))
    assert found.shape == (5, 8, 12)
    assert len(found.unique()) > 5  # else nothing is compared
    painted = codes.decode(found)
    assert (painted.dtype, painted.shape) == (torch.uint8, FRAMES.shape)

    own: Any = diffusers.VQModel.from_pretrained(folders[name])
    clip = FRAMES.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = [own.encode(frame[None]).latents for frame in clip]
        indices = torch.cat([own.quantize(one)[2][2] for one in latents])
        pictures = torch.cat([own.decode(one).sample for one in latents])  # quantises on its way
    assert torch.equal(found.flatten(), indices)
    wanted = (pictures + 1) * 127.5
    apart = (painted.permute(0, 3, 1, 2) - wanted.clamp(0, 255)).abs().max()
    assert apart <= 0.5 + 1e-3  # of rounding to bytes


def test_frames_are_alone(folders: dict[str, Path]) -> None:
    codes = DiffusersCodes(folders["plain"])
    found = codes.encode(FRAMES)
    assert torch.equal(codes.encode(FRAMES[2:4]), found[2:4])
    assert torch.equal(codes.decode(found[2:4]), codes.decode(found)[2:4])
    assert codes.encode(FRAMES[:0]).shape == (0, 8, 12)
    assert codes.decode(found[:0]).shape == (0, 16, 24, 3)
    assert codes.words == 37
    assert not any(p.requires_grad for p in codes.model.parameters())


def test_identities_tell_what_codes_were_made_by(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["plain"], tmp_path / "copy")
    identities = {name: DiffusersCodes(folder).identity for name, folder in folders.items()}
    assert len(set(identities.values())) == len(folders)
    assert DiffusersCodes(tmp_path / "copy").identity == identities["plain"]
    assert ColourCodes(8).identity != ColourCodes(8, 9).identity != ColourCodes(4, 9).identity


def test_wrong_folders_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    import diffusers

    with pytest.raises(InputError, match="codes come from a folder"):
        DiffusersCodes(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="JSON with a _class_name"):
        DiffusersCodes(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(InputError, match=r"codes are of a VQModel\n.*AutoencoderKL in"):
        DiffusersCodes(tmp_path)
    pickled = tmp_path / "pickled"
    diffusers.VQModel.from_pretrained(folders["plain"]).save_pretrained(pickled, safe_serialization=False)
    with pytest.raises(InputError, match="as safetensors"):
        DiffusersCodes(pickled)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda codes: codes.encode(FRAMES.float()), "frames are uint8"),
        (lambda codes: codes.encode(FRAMES[0]), "frames are uint8"),
        (lambda codes: codes.encode(FRAMES[:, :15]), "15 x 24 pixels, codes of 2 x 2"),
        (lambda codes: codes.decode(torch.zeros(1, 2, 2)), "codes are int64"),
        (lambda codes: codes.decode(torch.zeros(2, 2, dtype=torch.int64)), "codes are int64"),
        (lambda codes: codes.decode(torch.full((1, 2, 2), codes.words)), "codes are 0 to"),
        (lambda codes: codes.decode(torch.full((1, 2, 2), -1)), "found:  -1 to -1"),
    ],
)
def test_what_is_refused(folders: dict[str, Path], make: Callable[[Quantiser], object], rule: str) -> None:
    for codes in (ColourCodes(2), DiffusersCodes(folders["plain"])):
        with pytest.raises(InputError, match=rule):
            make(codes)
