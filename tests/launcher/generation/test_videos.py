"""Sampling from a run: the same request gives the same bytes; flags matter; a run on real clips works end to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.dataset.index import Index
from data.media.video import probe
from data.planning.clip_sampling import Sampling
from launcher.checkpoints.reading import Checkpoint
from launcher.checkpoints.storage import open_storage
from launcher.core.run_folder import RunFolder
from launcher.generation.sample_prompts import captions_of, usual_shape
from launcher.generation.sample_request import Request, settle
from launcher.generation.trained_model import is_averaged, load_model, open_run
from launcher.generation.videos import sample_videos, slug
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from tests.support.runs import config, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("sampled") / "run"
    settings = config(out, dataset, steps=4, dtype="float32", checkpoint__every=2, optimizer__ema=0.9)
    train(settings)
    from launcher.config.loading import to_yaml

    RunFolder(out).config.write_text(to_yaml(settings))
    return out


def drawn(run: Path, out: Path, **asked: object) -> bytes:
    request = Request(**{"prompts": ("a red square moving right",), "steps": 3, "guidance": 2.0, **asked})  # type: ignore[arg-type]
    made, sheet = sample_videos(run, request, out)
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
    made, sheet = sample_videos(
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
    with pytest.raises(InputError, match="there are: step-00000002, step-00000004"):
        sample_videos(run, Request(("x",), checkpoint_step=3), tmp_path)
    with pytest.raises(InputError, match="use 5 frames of 32 x 32"):
        sample_videos(run, Request(("x",), frames=5, size=(33, 32)), tmp_path)
    with pytest.raises(InputError, match="steps is at least 1"):
        sample_videos(run, Request(("x",), steps=0), tmp_path)
    with pytest.raises(InputError, match="fits into memory"):
        sample_videos(run, Request(("x",), size=(999992, 999992)), tmp_path)
    with pytest.raises(InputError, match="a seed is from 0"):
        sample_videos(run, Request(("x",), seed=-1), tmp_path)
    with pytest.raises(InputError, match="has frames and pixels"):
        sample_videos(run, Request(("x",), size=(0, 8)), tmp_path)


CHANGES: list[dict[str, Any]] = [
    {"seed": 1}, {"guidance": 2.5}, {"guidance": 2.55}, {"steps": 2}, {"frames": 3}, {"size": (24, 16)},
    {"checkpoint_step": 2}, {"averaged": False}, {"prompts": ("A Red",)}, {"prompts": ("a red", "b")},
]  # fmt: skip


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    """Every setting alone, and another run, into one folder: all that was there stays as it was."""
    usual: dict[str, Any] = {"prompts": ("a red",), "steps": 1, "guidance": 1.0, "frames": 2, "size": (16, 16)}
    before: dict[str, bytes] = {}
    for change in [{}, *CHANGES]:
        made, sheet = sample_videos(run, Request(**{**usual, **change}), tmp_path)
        there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert {name: there[name] for name in before} == before, change
        assert len(there) >= len(before) + 2, change  # a video with its facts, or a sheet of more prompts
        assert sheet.name in there
        for one in made:
            facts = json.loads(there[one.file.replace(".mp4", ".json")])
            assert facts["file"] == one.file
            assert [facts[key] for key in ("prompt", "seed", "guidance")] == [one.prompt, one.seed, one.guidance]
        before = there
    sample_videos(run, Request(**usual), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # the same again is the same files
    other = tmp_path.parent / "other"
    shutil.copytree(run, other)
    settings = RunFolder(other).config
    settings.write_text(settings.read_text().replace("fps: 8", "fps: 4"))
    made, _ = sample_videos(other, Request(**usual), tmp_path)
    assert made[0].file.endswith("-2.mp4")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_without_the_moving_average(run: Path) -> None:
    settings, found = open_run(run)
    assert is_averaged(found)
    models = {kept: load_model(settings, found, 3, torch.device("cpu"), kept) for kept in (None, True, False)}
    name = next(iter(found.manifest.shapes))
    for kept, model in models.items():
        key = "master" if kept is False else "ema"
        assert torch.equal(dict(model.named_parameters())[name].data, found.parameter(name, key).float())
    without = replace(found.manifest, parts=tuple(replace(part, keys=("master",)) for part in found.manifest.parts))
    bare = Checkpoint(open_storage(run), "step-1", without)
    assert not is_averaged(bare)
    with pytest.raises(InputError, match="if the run kept one"):
        is_averaged(bare, True)


def test_a_run_without_prompts_draws_captions_of_its_dataset(run: Path, dataset: Path, tmp_path: Path) -> None:
    index, told = Index.open(dataset), list[str]()
    made, _ = sample_videos(run, Request(steps=1, guidance=1.0), tmp_path, on_note=told.append)
    captions = {index.caption(row) for row in range(len(index))}
    assert len({one.prompt for one in made}) == len(made) == 4
    assert {one.prompt for one in made} <= captions
    assert str(dataset) in told[0]
    assert {(one.frames, one.height, one.width) for one in made} == {(7, 32, 32)}
    shutil.copytree(dataset, tmp_path / "d-held-out")
    assert captions_of([tmp_path / "d"], "short")[1] == tmp_path / "d-held-out"
    settings, _ = open_run(run)
    gone = settings.model_copy(update={"data": settings.data.model_copy(update={"dataset": tmp_path / "gone"})})
    with pytest.raises(InputError, match="its dataset is gone"):
        settle(Request(), gone, 4, Geometry(patch=(1, 8, 8)))
    assert settle(Request(("x",)), gone, 4, Geometry(patch=(1, 8, 8))).frames == 7


def test_defaults_are_those_of_the_segment_of_the_checkpoint(tmp_path: Path, dataset: Path) -> None:
    segments = [{"until": 2, "frames": 4, "size": [16, 16]}, {"until": 4, "frames": 6, "size": [32, 32]}, {"frames": 3}]
    settings = config(tmp_path, dataset, steps=8, data__segments=segments)
    shapes = [settle(Request(("x",)), settings, step, Geometry(patch=(1, 8, 8))) for step in (1, 2, 3, 4, 5, 8)]
    assert [(one.frames, one.size[0]) for one in shapes] == [(4, 16), (4, 16), (6, 32), (6, 32), (3, 32), (3, 32)]


def test_lengths_and_sizes_that_are_proposed_are_those_of_the_dataset(dataset: Path, tmp_path: Path) -> None:
    """A run on whole clips draws what most of its samples are; what does not fit proposes what does."""
    index, geometry = Index.open(dataset), Geometry(patch=(2, 8, 8))
    shape = usual_shape(index, Sampling(geometry))
    assert shape is not None
    assert geometry.grid(shape.frames, *shape.size)
    whole = config(tmp_path, dataset, data__frames=None, data__size=None, model__patch=[2, 8, 8])
    assert settle(Request(("x",)), whole, 1, geometry).frames == shape.frames
    longer = config(tmp_path, dataset, data__frames=1000, data__pack_tokens=2000)
    assert settle(Request(("x",)), longer, 1, Geometry(patch=(1, 8, 8))).frames == 8  # as long as any clip is
    with pytest.raises(InputError) as told:
        settle(Request(("x",), frames=0), whole, 1, geometry)
    assert told.value.remedy == f"--frames {shape.frames} --size {shape.size[0]}x{shape.size[1]}"
    with pytest.raises(InputError) as told:
        settle(Request(("x",), size=(999_936, 999_936)), whole, 1, geometry)
    size = told.value.remedy.rpartition("--size ")[2].split("x")
    assert settle(Request(("x",), size=(int(size[0]), int(size[1]))), whole, 1, geometry).size[0] > 8


def test_a_broken_newest_checkpoint_is_passed_over(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (RunFolder(copy).checkpoints / "step-00000004" / "part-00000.safetensors").unlink()
    assert open_run(copy)[1].state.step == 2


def test_names_of_different_prompts_differ() -> None:
    prompts = ["a b", "a-b", "A b", "a  b", "!", "?", "", "x" * 100, "x" * 101]
    assert len({slug(p) for p in prompts}) == len(prompts)


def test_real_clips_train_and_sample(real_clips: Path, tmp_path: Path) -> None:
    from data.curation.clips import CutOptions
    from data.dataset.index import Index
    from data.prepare.pipeline import PrepareOptions, prepare
    from launcher.config.loading import load, to_yaml

    summary = prepare(real_clips, tmp_path / "dataset", PrepareOptions(cut=CutOptions(short_side=64)))
    assert (summary.files, summary.rejected) == (3, [])
    index = Index.open(tmp_path / "dataset")
    files = [index.file(row) for row in range(len(index))]
    assert files.count("bikes.mp4") == 6  # five hard cuts
    recipe = Path(__file__).resolve().parent.parent.parent.parent / "recipes" / "quickstart.yaml"
    out = tmp_path / "run"
    settings = load(recipe, [f"data.dataset={tmp_path / 'dataset'}", f"out={out}", "steps=20"])
    lines = train(settings)
    assert len(lines) == 20
    seen = [uid for line in lines for uid in line["samples"]]
    assert set(seen) == {index.uid(row) for row in range(len(index))}
    assert all(0 < line["loss"] < 3 and line["grad_norm"] > 0 for line in lines)  # that it learns is tested elsewhere
    RunFolder(out).config.write_text(to_yaml(settings))
    made, _ = sample_videos(out, Request(("a montage of city traffic and bicycles",), steps=2), tmp_path / "samples")
    assert made[0].frames == 8
