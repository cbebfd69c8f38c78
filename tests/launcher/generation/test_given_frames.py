"""Image to video: a picture becomes the first frame as training data are made, stays as it is, and is refused in words
where a run cannot take it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from data.planning.clip_sampling import Sampling
from launcher.cli.app import app
from launcher.core.run_folder import RunFolder
from launcher.generation.given_frames import files_of, given_clip, picture
from launcher.generation.sample_request import Request, settle
from launcher.generation.trained_model import load_model, open_run
from launcher.generation.videos import _frames, _given, sample_videos
from launcher.reports.recorded_run import read_run
from launcher.reports.run_report import write_page
from models.codecs.diffusers_vae import DiffusersCodec
from models.codecs.open_codec import open_codec
from models.codecs.pixel import PixelCodec
from models.layers.patches import patchify
from models.objectives.conditioning import CONDITIONING, Conditioning
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from tests.support.runs import config, train

CPU = torch.device("cpu")
SAMPLING = Sampling(Geometry(patch=(1, 8, 8)), size=(16, 16))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run that was trained with first frames."""
    out = tmp_path_factory.mktemp("given") / "run"
    train(config(out, dataset, steps=2, dtype="float32", checkpoint__every=2))
    return out


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    """A picture of another shape than the videos."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_the_first_frame_of_the_video_is_the_picture(run: Path, cat: Path) -> None:
    settings, found = open_run(run)
    codec = open_codec(settings.codec, settings.model.patch, torch.float32)
    request = Request(("a cat",), steps=2, guidance=2.0, frames=4, size=(16, 16), given=(("first_frame", cat),))
    model = load_model(settings, found, 3, CPU)
    asked = settle(request, settings, 2, codec.geometry)
    (given,) = _given(asked, codec, CPU)
    frames = _frames(settings, model, codec, asked, ("a cat", given))  # type: ignore[arg-type]
    assert np.array_equal(frames[:1], picture(cat, SAMPLING))
    alone = _frames(settings, model, codec, asked, ("a cat", None))  # type: ignore[arg-type]
    assert not np.array_equal(frames[1:], alone[1:])


def test_files_say_what_was_given_and_the_report_shows_it(run: Path, cat: Path, tmp_path: Path) -> None:
    usual = Request(("a", "b"), steps=1, guidance=1.0, frames=2, size=(16, 16), given=(("first_frame", cat),))
    made, _ = sample_videos(run, usual)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    other, _ = sample_videos(run, replace(usual, given=(("first_frame", cat), ("first_frame", tmp_path / "red.png"))))
    assert other[0].file == made[0].file  # the same again
    assert other[1].file != made[1].file
    assert "-first_frame-" in made[0].file
    told = json.loads((RunFolder(run).samples / made[0].file).with_suffix(".json").read_text())
    assert told["given"] == {"first_frame": str(cat)}
    assert "first_frame cat.png" in write_page(read_run(run)).read_text()


def test_pictures_become_frames_as_training_data_do(tmp_path: Path) -> None:
    """Scaled until they cover the frame, cropped in the middle, turned by EXIF, black where transparent, any format."""
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :8], wide[:, 8:24], wide[:, 24:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for suffix in ("png", "bmp", "tiff", "gif", "webp", "ppm"):
        Image.fromarray(wide).save(tmp_path / f"wide.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
        assert (picture(tmp_path / f"wide.{suffix}", SAMPLING) == (0, 255, 0)).all(), suffix
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    quarter = np.zeros((16, 16, 3), np.uint8)
    quarter[:, 8:] = 255
    for suffix in ("png", "tiff"):
        Image.fromarray(quarter).save(tmp_path / f"turned.{suffix}", exif=exif)
        turned = picture(tmp_path / f"turned.{suffix}", SAMPLING)[0]
        assert (turned[:8] == 0).all(), suffix
        assert (turned[8:] == 255).all(), suffix
    Image.new("RGBA", (16, 16), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert not picture(tmp_path / "clear.png", SAMPLING).any()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_refused(tmp_path: Path, suffix: str) -> None:
    film = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (0, 100, 200)]
    film[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=film[1:], duration=100)
    with pytest.raises(InputError, match=r"(?s)a given frame is one.*film.*3.*by itself"):
        picture(tmp_path / f"film.{suffix}", SAMPLING)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match=r"a given frame is a picture"):
        picture(tmp_path / "a.txt", SAMPLING)
    with pytest.raises(InputError, match=r"(?s)nowhere.png: no such file"):
        picture(tmp_path / "nowhere.png", SAMPLING)


def test_a_run_is_given_what_it_was_trained_to_be_given() -> None:
    shares, cat = {"first_frame": 0.3}, Path("cat.png")
    assert files_of([], 2, {}) is None
    found = files_of([("first_frame", cat)], 2, shares)
    assert found is not None
    assert found.files == (cat, cat)
    with pytest.raises(InputError, match=r"objective.conditioning: words alone") as told:
        files_of([("first_frame", cat)], 1, {})
    assert told.value.remedy == "leave it out, or train with 'objective.conditioning={first_frame: 0.3}'"
    with pytest.raises(InputError, match=r"(?s)a conditioning task is one of: first_frame.*did you mean first_frame"):
        files_of([("firstframe", cat)], 1, shares)
    with pytest.raises(InputError, match=r"(?s)one file is given for all prompts.*2 files, 3 prompts"):
        files_of([("first_frame", cat)] * 2, 3, shares)


def test_something_is_left_to_generate(cat: Path) -> None:
    codec = PixelCodec((1, 8, 8))
    with pytest.raises(InputError, match=r"(?s)something is left to generate beside the first frame.*more --frames"):
        given_clip(("first_frame", cat), (1, 2, 2), 0, (16, 16), codec, CPU)


def test_a_token_of_several_frames_is_filled(cat: Path, tmp_path: Path) -> None:
    codec = PixelCodec((2, 8, 8))
    still = given_clip(("first_frame", cat), (2, 2, 2), 0, (16, 16), codec, CPU)
    assert np.array_equal(still.frames, np.repeat(picture(cat, SAMPLING), 2, axis=0))
    assert "stands in 2 frames" in still.note
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "2.png")
    Image.new("RGB", (16, 16), "blue").save(folder / "1.png")
    moving = given_clip(("first_frame", folder), (2, 2, 2), 0, (16, 16), codec, CPU)
    assert [tuple(frame[0, 0]) for frame in moving.frames] == [(0, 0, 255), (255, 0, 0)]
    assert moving.given.values.shape == (4, 2 * 8 * 8 * 3)
    assert (moving.note, moving.digest != still.digest) == ("", True)
    Image.new("RGB", (16, 16), "red").save(folder / "3.png")
    with pytest.raises(InputError, match=r"a picture for each frame that is given"):
        given_clip(("first_frame", folder), (2, 2, 2), 0, (16, 16), codec, CPU)


def test_a_causal_codec_encodes_given_frames_that_are_the_first(cat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = Conditioning("the last frame", lambda grid, key: (np.arange(grid[0]) == grid[0] - 1)[:, None, None])
    monkeypatch.setattr(CONDITIONING, "_entries", {**CONDITIONING._entries, "last_frame": last})
    codec = PixelCodec((1, 8, 8))
    found = given_clip(("last_frame", cat), (3, 2, 2), 0, (16, 16), codec, CPU)
    assert np.flatnonzero(found.given.tokens.any(axis=(1, 2))).tolist() == [2]
    codec.geometry = Geometry(stride=(4, 1, 1), patch=(1, 8, 8), causal=True, sliceable=False)
    given_clip(("first_frame", cat), (3, 2, 2), 0, (16, 16), codec, CPU)
    with pytest.raises(InputError, match=r"causal in time encodes given frames alone if they are the first"):
        given_clip(("last_frame", cat), (3, 2, 2), 0, (16, 16), codec, CPU)


def test_the_command(run: Path, cat: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    usual = ["sample", str(run), "--prompt", "a cat", "--frames", "2", "--size", "16x16", "--steps", "1", "--cfg", "1"]
    found = runner.invoke(app, [*usual, "--first-frame", str(cat), "--sampler", "heun", "--json"])
    assert found.exit_code == 0, found.output
    (made,) = json.loads(found.stdout)["samples"]
    assert (made["given"], made["sampler"]) == ({"first_frame": str(cat)}, "heun")
    assert "-heun-1-2x16x16-first_frame-" in made["file"]
    same = runner.invoke(app, [*usual, "--given", f"first_frame={cat}", "--sampler", "heun", "--json"])
    assert json.loads(same.stdout)["samples"][0]["file"] == made["file"]
    for wrong, words in ((["--given", "cat.png"], "TASK=FILE"), (["--sampler", "euller"], "did you mean euler"),
                         (["--video", str(cat)], "questions are for a video_lm")):  # fmt: skip
        refused = runner.invoke(app, [*usual, *wrong])
        assert isinstance(refused.exception, InputError)
        assert words in str(refused.exception)


def test_a_causal_autoencoder_gives_the_latents_of_the_beginning_of_a_clip(cat: Path) -> None:
    """Alone, as it is encoded to sample, the first frame has the tokens that it has in a clip of training."""
    import diffusers

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip
    codec = DiffusersCodec(vae, (1, 1, 1))
    grid = codec.geometry.grid(9, 16, 16)
    alone = given_clip(("first_frame", cat), grid, 0, (16, 16), codec, CPU)
    assert (grid[0], len(alone.frames), alone.note) == (3, 1, "")
    clip = torch.randint(0, 256, (9, 16, 16, 3), dtype=torch.uint8)
    clip[:1] = torch.from_numpy(alone.frames)
    in_clip = patchify(codec.encode(clip), (1, 1, 1))[: grid[1] * grid[2]]
    torch.testing.assert_close(alone.given.values, in_clip)
