"""What a resumed run may change: settings of memory, which change no number that matters; not the model."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.dataset.index import Index
from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth
from launcher.checkpoints.compatibility import changed_settings, refuse_changes, refuse_left_behind
from launcher.checkpoints.storage import LocalStorage
from launcher.config.loading import parse_override
from launcher.core.run_folder import RunFolder
from parallel.errors import InputError
from tests.support.runs import config


def checkpoint_of(path: Path, **changes: Any) -> Any:
    settings = config(path, path, **changes).model_dump(mode="json")
    return SimpleNamespace(
        manifest=SimpleNamespace(config=settings, outside={}), state=SimpleNamespace(step=3), where="step 3"
    )


@pytest.mark.parametrize(
    ("key", "value"), [("recompute", True), ("offload", True), ("mlp_tiles", 4), ("compile", "blocks")]
)
def test_settings_of_memory_may_change_and_are_told(tmp_path: Path, key: str, value: Any) -> None:
    before, now = checkpoint_of(tmp_path), config(tmp_path, tmp_path, **{f"model__{key}": value})
    refuse_changes(before, now)
    assert [change.split(":")[0] for change in changed_settings(before, now)] == [f"model.{key}"]


def test_the_model_may_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.depth: 2 became 3"):
        refuse_changes(checkpoint_of(tmp_path), config(tmp_path, tmp_path, model__depth=3))


def test_keys_that_did_not_exist_mean_their_defaults(tmp_path: Path) -> None:
    before = checkpoint_of(tmp_path)
    for key in ("recompute", "offload", "mlp_tiles", "compile", "mlp_hidden"):
        del before.manifest.config["model"][key]
    refuse_changes(before, config(tmp_path, tmp_path))
    assert changed_settings(before, config(tmp_path, tmp_path)) == []


def test_checkpoints_that_lie_elsewhere_are_not_left_behind(tmp_path: Path) -> None:
    """Another checkpoint.location is no reason to begin anew; both remedies work."""
    folder, name = RunFolder(tmp_path / "run"), "step-00000004"
    old, new = LocalStorage(tmp_path / "old"), LocalStorage(tmp_path / "new")
    refuse_left_behind(folder, new, None)
    folder.root.mkdir()
    folder.record("checkpoint", step=4, path=old.where(name))
    refuse_left_behind(folder, new, None)  # it is gone: nothing is left behind
    (old.root / name).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{name} was saved to .*old\n.*checkpoint\.location=.*old, or copy"):
        refuse_left_behind(folder, new, None)
    folder.record("checkpoint", step=5, path=old.where("step-00000005"))  # which is gone, and the one before is not
    with pytest.raises(InputError, match=rf"{name} was saved to .*old"):
        refuse_left_behind(folder, new, None)
    refuse_left_behind(folder, old, None)  # it is known there to be broken
    copied: Any = SimpleNamespace(state=SimpleNamespace(step=4), name=name)
    refuse_left_behind(folder, new, copied)
    folder.record("checkpoint", step=5, path=str(folder.checkpoints / "step-00000005"))
    (folder.checkpoints / "step-00000005").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoint\.location=null"):
        refuse_left_behind(folder, new, copied)


def test_a_copy_of_a_run_may_go_on_from_an_earlier_step(tmp_path: Path) -> None:
    folder, origin = RunFolder(tmp_path / "copy"), RunFolder(tmp_path / "origin")
    (origin.checkpoints / "step-00000004").mkdir(parents=True)
    origin.config.write_text("")
    folder.root.mkdir()
    folder.record("checkpoint", step=4, path=str(origin.checkpoints / "step-00000004"))
    refuse_left_behind(folder, LocalStorage(folder.checkpoints), None)


def test_a_place_that_does_not_answer_is_not_taken_for_empty(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record("checkpoint", step=4, path="nowhere://bucket/step-00000004")
    with pytest.raises(InputError, match="newest checkpoint"):
        refuse_left_behind(folder, LocalStorage(tmp_path / "new"), None)


def test_the_line_that_is_told_names_no_place_that_a_dataset_has_left(tmp_path: Path, dataset: Path) -> None:
    before = checkpoint_of(tmp_path)
    before.state.datasets = [[Index.open(dataset).digest]]
    before.manifest.config["data"]["dataset"] = str(tmp_path / "gone")
    with pytest.raises(InputError) as refused:
        refuse_changes(before, config(tmp_path, dataset, data__frames=4))
    assert refused.value.remedy.startswith("data.frames=7 'data.segments=[{until: 3}, {frames: 4}]' for the steps")


def test_a_dataset_may_move_and_another_one_is_for_the_steps_to_come(tmp_path: Path, dataset: Path) -> None:
    before, digest = checkpoint_of(tmp_path), Index.open(dataset).digest
    before.state.datasets = [[digest]]
    before.manifest.config["data"]["dataset"] = str(dataset)
    shutil.copytree(dataset, tmp_path / "moved")
    refuse_changes(before, config(tmp_path, tmp_path / "moved"))
    other = tmp_path / "other"
    synth(tmp_path / "clips", 3, seed=5)
    prepare(tmp_path / "clips", other, PrepareOptions(workers=0))
    with pytest.raises(InputError, match=r"data\.dataset: .* became .*other") as refused:
        refuse_changes(before, config(tmp_path, other))
    segments = [{"until": 3}, {"dataset": str(other)}]
    assert f"data.dataset={dataset}" in refused.value.remedy
    assert f"'data.segments=[{{until: 3}}, {{dataset: {other}}}]'" in refused.value.remedy
    refuse_changes(before, config(tmp_path, dataset, data__segments=segments))


@pytest.mark.parametrize(
    ("begun", "changed", "line"),
    [
        ([{"until": 2}, {"stride": 2}], {"frames": 4}, "data.frames=8 "
         "'data.segments=[{until: 2}, {until: 3, stride: 2}, {frames: 4, stride: 2}]'"),
        ([{"until": 2}, {"stride": 2}], {"packs_per_step": 3, "segments": []}, ""),
        ([{"until": 2}, {"stride": 2}], {"segments": []}, "'data.segments=[{until: 2}, {until: 3, stride: 2}, {}]'"),
        ([{"until": 2, "frames": 4}, {"until": 9}, {"frames": 6}], {"segments": [], "stride": 3}, "data.stride=1 "
         "'data.segments=[{until: 2, frames: 4}, {until: 3}, {stride: 3}]'"),
        ([{"until": 2}, {"until": 9, "stride": 2}, {"frames": 6}], {"window": 7}, "data.window=5 'data.segments=["
         "{until: 2}, {until: 3, stride: 2}, {until: 9, stride: 2, window: 7}, {frames: 6, window: 7}]'"),
        ([], {"dataset": {"A": 1.0, "B": 2.0}}, "data.dataset=A "
         "'data.segments=[{until: 3}, {dataset: {A: 1.0, B: 2.0}}]'"),
        ([], {"frames": None}, "data.frames=null 'data.segments=[{until: 3, frames: 8}, {}]'"),
        ([{"until": 2}, {"until": 9, "frames": 4}, {"frames": 6}], {"frames": None, "segments": []},
         "data.frames=null 'data.segments=[{until: 2, frames: 8}, {until: 3, frames: 4}, {}]'"),
        ([{"until": 2}, {"until": 9, "frames": 4}, {}], {"size": None}, "data.size=null 'data.segments=["
         "{until: 2, size: [32, 32]}, {until: 3, frames: 4, size: [32, 32]}, {until: 9, frames: 4}, {}]'"),
        ([{"until": 2}, {"stride": 2}], {"dataset": {"A": 1.0, "B": 2.0}}, "data.dataset=A 'data.segments=[{until: 2}, "
         "{until: 3, stride: 2}, {dataset: {A: 1.0, B: 2.0}, stride: 2}]'"),
    ],
)  # fmt: skip
def test_what_changes_in_any_segment_is_for_the_steps_to_come_by_the_line_that_is_told(
    tmp_path: Path, begun: list[Any], changed: dict[str, Any], line: str
) -> None:
    data = {"dataset": "A", "frames": 8, "stride": 1, "window": 5, "segments": begun}

    def run(**data: Any) -> Any:
        return config(tmp_path, tmp_path, **{f"data__{key}": value for key, value in data.items()})

    before = checkpoint_of(tmp_path, **{f"data__{key}": value for key, value in data.items()})
    before.state.datasets = [["digest"]] * max(1, len(begun))
    now = run(**data | changed)
    with pytest.raises(InputError) as refused:
        refuse_changes(before, now)
    if not line:
        assert refused.value.remedy.startswith("set it back, or")
        return
    assert refused.value.remedy.startswith(f"{line} for the steps to come")
    typed = dict(map(parse_override, shlex.split(line)))
    followed = run(**data | changed | {key.removeprefix("data."): value for key, value in typed.items()})
    refuse_changes(before, followed)
    for step in (3, 10):
        assert followed.data_of(step + 1).model_dump(mode="json") == now.data_of(step + 1).model_dump(mode="json")
