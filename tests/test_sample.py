"""Sampling from a run: the same request gives the same bytes; flags matter; a run on real clips works end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data.video import probe
from launcher.folder import RunFolder
from launcher.sampling import Request, draw, open_run, slug
from parallel.errors import InputError
from tests.runs import config, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("sampled") / "run"
    settings = config(out, dataset, steps=4, dtype="float32", checkpoint__every=2)
    train(settings)
    from launcher.config import to_yaml

    RunFolder(out).config.write_text(to_yaml(settings))
    return out


def drawn(run: Path, out: Path, **asked: object) -> bytes:
    request = Request(**{"prompts": ("a red square moving right",), "steps": 3, "guidance": 2.0, **asked})  # type: ignore[arg-type]
    made, sheet = draw(run, request, out)
    assert sheet.exists()
    return (out / made[0].file).read_bytes()


def test_the_same_request_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = drawn(run, tmp_path / "a")
    assert drawn(run, tmp_path / "b") == first
    other = drawn(run, tmp_path / "c", prompts=("a red square moving right", "a blue circle"))
    assert other == first, "what else is asked for must not matter"


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"guidance": 5.0}, {"steps": 4}, {"prompts": ("a blue circle",)}, {"checkpoint_step": 2}],
    ids=str,
)
def test_each_flag_matters(run: Path, tmp_path: Path, change: dict[str, object]) -> None:
    assert drawn(run, tmp_path / "a") != drawn(run, tmp_path / "b", **change)


def test_what_is_written(run: Path, tmp_path: Path) -> None:
    made, sheet = draw(
        run, Request(("Hello, <World>!",), seed=3, steps=2, guidance=1.0, frames=5, size=(40, 24)), tmp_path
    )
    (one,) = made
    video = probe(tmp_path / one.file)
    assert video.frames == 5
    assert video.height * 24 == video.width * 40
    facts = json.loads((tmp_path / one.file).with_suffix(".json").read_text())
    assert facts["prompt"] == "Hello, <World>!"
    assert (facts["seed"], facts["steps"], facts["guidance"], facts["checkpoint_step"]) == (3, 2, 1.0, 4)
    with Image.open(sheet) as picture:
        assert picture.width > 5 * 24


def test_wrong_requests(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a sample has a prompt"):
        draw(run, Request(), tmp_path)
    with pytest.raises(InputError, match="there are: step-00000002, step-00000004"):
        draw(run, Request(("x",), checkpoint_step=3), tmp_path)
    with pytest.raises(InputError, match="use 5 frames of 32 x 32"):
        draw(run, Request(("x",), frames=5, size=(33, 32)), tmp_path)
    with pytest.raises(InputError, match="steps is at least 1"):
        draw(run, Request(("x",), steps=0), tmp_path)
    with pytest.raises(InputError, match="fits into memory"):
        draw(run, Request(("x",), size=(999992, 999992)), tmp_path)
    with pytest.raises(InputError, match="a seed is from 0"):
        draw(run, Request(("x",), seed=-1), tmp_path)
    with pytest.raises(InputError, match="has frames and pixels"):
        draw(run, Request(("x",), size=(0, 8)), tmp_path)


def test_a_broken_newest_checkpoint_is_passed_over(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (RunFolder(copy).checkpoints / "step-00000004" / "part-00000.safetensors").unlink()
    assert open_run(copy)[1].state.step == 2


def test_names_of_different_prompts_differ() -> None:
    prompts = ["a b", "a-b", "A b", "a  b", "!", "?", "", "x" * 100, "x" * 101]
    assert len({slug(p) for p in prompts}) == len(prompts)


def test_real_clips_train_and_sample(real_clips: Path, tmp_path: Path) -> None:
    from data.clips import CutOptions
    from data.index import Index
    from data.prepare import PrepareOptions, prepare
    from launcher.config import load, to_yaml

    summary = prepare(real_clips, tmp_path / "dataset", PrepareOptions(cut=CutOptions(short_side=64)))
    assert (summary.files, summary.rejected) == (3, [])
    index = Index.open(tmp_path / "dataset")
    files = [index.file(row) for row in range(len(index))]
    assert files.count("bikes.mp4") == 6  # five hard cuts
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "quickstart.yaml"
    out = tmp_path / "run"
    settings = load(recipe, [f"data.dataset={tmp_path / 'dataset'}", f"out={out}", "steps=20"])
    lines = train(settings)
    assert len(lines) == 20
    seen = [uid for line in lines for uid in line["samples"]]
    assert set(seen) == {index.uid(row) for row in range(len(index))}
    assert all(0 < line["loss"] < 3 and line["grad_norm"] > 0 for line in lines)  # that it learns is tested elsewhere
    RunFolder(out).config.write_text(to_yaml(settings))
    made, _ = draw(out, Request(("a montage of city traffic and bicycles",), steps=2), tmp_path / "samples")
    assert made[0].frames == 8
