"""A run on latents without a codec takes the one of its dataset, or says which; progress shows in a pipe, too."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth
from launcher.batches.dataset_codec import NOTE, note
from launcher.batches.datasets import with_own_codec
from launcher.config.loading import check, to_yaml
from launcher.config.run_config import RunConfig
from launcher.core import progress_bar
from launcher.core.progress_bar import Bar, line_of
from launcher.preflight.preflight import check as preflight
from launcher.supervision.run import absolute
from models.codecs.diffusers_vae import identity_of
from parallel.errors import InputError
from tests.promises.test_wrong_input import longreel


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import diffusers

    torch.manual_seed(0)
    made = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("vae")
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    synth(folder / "in", 3, seed=0, frames=8, size=16)
    prepare(folder / "in", folder / "frames", PrepareOptions(workers=0))
    longreel("data", "encode", folder / "frames", "--codec", vae, "--out", folder / "latents", code=0)
    return folder / "latents"


def run(out: Path, dataset: Path, **changes: Any) -> RunConfig:
    model = {"kind": "video_dit", "dim": 48, "heads": 4, "text": {"dim": 32, "depth": 1, "heads": 2}}
    return check({"out": str(out), "steps": 4, "data": {"dataset": str(dataset)}, "model": model, **changes})


def test_the_codec_of_the_dataset_is_taken(vae: Path, dataset: Path, tmp_path: Path) -> None:
    found = absolute(run(tmp_path, dataset))
    assert (found.codec.kind, found.codec.path, found.codec.tiling) == ("diffusers", vae, False)
    assert json.loads((dataset / NOTE).read_text())["identity"] == identity_of(vae)
    assert preflight(found).samples == 3
    file = tmp_path / "run.yaml"
    text = to_yaml(run(tmp_path / "out", dataset))
    file.write_text(text.replace("codec:\n  kind: pixel\n", ""))
    for command in (["data", "simulate", file], ["plan", file], ["data", "stats", dataset, "--run", file]):
        longreel(*command, code=0)
    mixed = run(tmp_path, dataset, data={"dataset": {str(dataset.parent / "frames"): 1, str(dataset): 1}})
    assert with_own_codec(mixed).codec.path == vae
    segments = run(
        tmp_path, dataset, data={"dataset": str(dataset.parent / "frames"), "segments": [
            {"until": 2}, {"dataset": str(dataset)}]},
    )  # fmt: skip
    assert with_own_codec(segments).codec.path == vae
    frames = run(tmp_path, dataset.parent / "frames")
    assert with_own_codec(frames) is frames


@pytest.mark.parametrize("given", [{"codec": "pixel"}, {"codec": {"kind": "pixel"}}])
def test_the_pixel_codec_is_refused_with_the_right_one(
    vae: Path, dataset: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="the run has the pixel codec") as told:
        preflight(absolute(run(tmp_path, dataset, **given)))
    assert told.value.remedy == f"codec.kind=diffusers codec.path={vae}"
    assert preflight(run(tmp_path, dataset, codec={"kind": "diffusers", "path": str(vae)})).samples == 3


def without_note(copy: Path) -> None:
    (copy / NOTE).unlink()


def moved(copy: Path) -> None:
    note(copy, copy / "gone", "x", False)


def broken(copy: Path) -> None:
    (copy / NOTE).write_text("[]")


@pytest.mark.parametrize("change", [without_note, moved, broken])
def test_a_codec_that_is_not_known_is_asked_for(dataset: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    change(copy)
    with pytest.raises(InputError, match="latents, the run has the pixel codec") as told:
        preflight(absolute(run(tmp_path / "out", copy)))
    assert "longreel data encode --codec was given" in told.value.remedy


def test_another_codec_in_the_noted_folder_is_not_taken_for_it(vae: Path, dataset: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "vae"
    shutil.copytree(dataset, copy)
    shutil.copytree(vae, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.7}))
    note(copy, other, "x", False)
    with pytest.raises(InputError, match="trained on with the codec that made them"):
        preflight(absolute(run(tmp_path / "out", copy)))


def test_the_note_is_no_stray_file(dataset: Path) -> None:
    longreel("data", "check", dataset, code=0)


def test_progress_shows_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    said = io.StringIO()
    with Bar(Console(file=said), "clips") as bar:
        for done in range(0, 101):
            now[0] = done * 0.94
            bar.update(done, 100, "shard")
    lines = said.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "clips 11 of 100, 1.1/s, 84 s left  shard"
    assert line_of("files", 0, None, 12.0) == "files 0, 0.0/s"
