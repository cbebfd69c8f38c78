"""`longreel checkpoint`: what a person and a script learn of what a run saved."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
from typer.testing import CliRunner

from launcher.checkpoints.export import export
from launcher.checkpoints.pruning import Entry, best, mean_losses, pruning
from launcher.checkpoints.reading import newest
from launcher.checkpoints.storage import LocalStorage
from launcher.cli.app import app
from launcher.core.run_folder import RunFolder, read_lines
from launcher.supervision.run import only_launcher
from parallel.errors import InputError
from tests.support.runs import config, train


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A run of two ranks with a moving average and checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("run")
    changes = {"checkpoint__every": 2, "optimizer__ema": 0.5, "dtype": "float32"}
    train(config(out, dataset, steps=4, mesh={"ring": 2}, **changes))
    return out


def longreel(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["checkpoint", *map(str, arguments)], env={"COLUMNS": "160"})
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def told(*arguments: object, code: int = 0) -> Any:
    return json.loads(longreel(*arguments, "--json", code=code))


def test_list_and_verify(out: Path, tmp_path: Path) -> None:
    rows = told("list", out)
    assert [(row["step"], row["parts"], row["problem"]) for row in rows] == [(2, 2, None), (4, 2, None)]
    assert rows[0]["layout"] == "1 x 2 x 1, ZeRO 0, float32"
    assert told("verify", out) == rows
    elsewhere = [told("list", f"file://{out}/checkpoints"), told("list", out / "checkpoints")]
    for found in elsewhere:  # without metrics.jsonl the loss is that of the last three steps
        assert [{**row, "loss": 0, "best": 0} for row in found] == [{**row, "loss": 0, "best": 0} for row in rows]
    assert "step-00000004" in longreel("list", out)
    part = out / "checkpoints" / "step-00000002" / "part-00001.safetensors"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert told("list", out) == rows
    assert told("verify", out, code=1)[0]["problem"] == "part-00001.safetensors: its content is not what was written"
    assert "part-00001.safetensors" in longreel("verify", out, code=1)
    with pytest.raises(InputError, match=r"part-00001\.safetensors"):
        longreel("show", out, "--step", 2)
    part.write_bytes(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no run folder, and holds no checkpoints"):
        longreel("list", tmp_path / "empty")


def test_show(out: Path) -> None:
    found = told("show", out)
    assert (found["step"], found["of each"]) == (4, ["master", "exp_avg", "exp_avg_sq", "ema"])
    assert len(found["last losses"]) == 3
    assert found["elements"] * 16 <= found["bytes"] < found["elements"] * 16 + 100_000
    assert told("show", out, "--step", 2)["step"] == 2
    assert "written on" not in longreel("show", out)
    with pytest.raises(InputError, match="there are: step-00000002, step-00000004"):
        longreel("show", out, "--step", 3)
    with pytest.raises(InputError, match="no folder"):
        longreel("show", out / "nothing")


def test_export(out: Path, tmp_path: Path) -> None:
    checkpoint, _ = newest(LocalStorage(out / "checkpoints"))
    assert checkpoint is not None
    for options, key, dtype in (
        ([], "ema", torch.float32),
        (["--no-ema", "--dtype", "bf16"], "master", torch.bfloat16),
    ):
        file = tmp_path / f"{key}.safetensors"
        assert told("export", out, "--out", file, *options)["tensor"] == key
        with safetensors.safe_open(file, framework="pt") as found:
            assert found.metadata()["step"] == "4"
            assert set(found.keys()) == set(checkpoint.manifest.shapes)
            for name, shape in checkpoint.manifest.shapes.items():
                assert tuple(found.get_tensor(name).shape) == shape
                assert torch.equal(found.get_tensor(name), checkpoint.parameter(name, key).to(dtype))
    for options, words in ((["--dtype", "int8"], "float32 or bf16"), (["--out", tmp_path / "model.pt"], "safetensors")):
        with pytest.raises(InputError, match=words):
            longreel("export", out, "--out", tmp_path / "x.safetensors", *options)


def test_an_export_replaces_no_file_and_leaves_no_part_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = SimpleNamespace(
        state=SimpleNamespace(step=4), where="here", parameter=lambda name, key: torch.ones(2),
        manifest=SimpleNamespace(keys=("master",), shapes={"a": (2,)}, config={"model": {"kind": "video_dit"}}),
    )  # fmt: skip
    file = tmp_path / "model.safetensors"
    export(found, file, None, "float32")
    data = file.read_bytes()
    with pytest.raises(InputError, match="is there"):
        export(found, file, None, "float32")
    assert file.read_bytes() == data
    file.unlink()

    def full(tensors: Any, path: Path, told: Any) -> None:
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        export(found, file, None, "float32")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(file))
    assert list(tmp_path.iterdir()) == []


def entry(step: int, loss: float | None, problem: str | None = None) -> Entry:
    lines = () if loss is None else ({"loss": loss - 1}, {"loss": loss + 1})
    state = SimpleNamespace(step=step)
    made: Any = SimpleNamespace(state=state, recent=lines, size=10, parts=(1,), layout="")
    return Entry(f"step-{step}", made, problem)


THERE = [entry(100, 2.1), entry(200, 0.9), entry(300, 1.0), entry(400, 1.2), entry(500, 0.1, "broken")]


@pytest.mark.parametrize(
    ("keep", "keep_best", "every", "gone"),
    [
        (1, False, None, [100, 200, 300]),
        (1, True, None, [100, 300]),
        (2, False, None, [100, 200]),
        (9, False, None, []),
        (1, False, 200, [100, 300]),
        (1, True, 300, [100]),
    ],
)
def test_what_goes(keep: int, keep_best: bool, every: int | None, gone: list[int]) -> None:
    found = pruning(THERE, "step-400", keep, keep_best, every)
    assert [one.step for one in found.remove] == gone
    assert found.bytes == 10 * len(gone)
    assert {one.name for one, _ in found.stay} >= {"step-400", "step-500"}  # broken ones are told, not touched


def test_the_newest_whole_one_stays_whatever_is_newer() -> None:
    """Its hashes are right; those of newer ones are not, though their files are as long as they should be."""
    found = pruning(THERE[:4], "step-100", 1, False, None)
    assert [one.step for one in found.remove] == [200, 300]
    assert {one.step: why for one, why in found.stay}[100] == "the newest whole one"


def test_the_best_is_of_the_lowest_loss() -> None:
    assert (best(THERE) or THERE[0]).step == 200
    assert best([entry(1, None), entry(2, math.inf)]) is None
    assert (best([entry(1, 3.0), entry(2, 3.0)]) or THERE[0]).step == 2


def test_losses_of_many_steps(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": float(step)}) for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:50], '{"step": 51, "lo', *lines[50:]]))
    found = mean_losses(tmp_path / "metrics.jsonl", [10, 100])
    assert found == {10: 5.5, 100: 75.5}
    assert mean_losses(tmp_path / "none", [10]) == {}


@pytest.mark.parametrize(
    "odd",
    [
        {"step": 5, "loss": math.nan},
        {"step": 5, "loss": "low"},
        {"step": 5, "loss": True},
        {"step": 5, "loss": 1e9, "grad_norm": []},
        {"of": {"step": 5}, "step": 7000, "loss": 1e9},
        [{"step": 5, "loss": 1e9}],
    ],
    ids=str,
)
def test_a_line_that_is_no_step_changes_no_loss(tmp_path: Path, odd: Any) -> None:
    steps = [{"step": step, "loss": float(step)} for step in range(1, 11)]
    lines = [*steps[:5], odd, *steps[4:]]  # and step 5 was done twice
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert mean_losses(tmp_path / "metrics.jsonl", [10]) == {10: 5.5}


def test_prune(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    whole = sorted((copy / "checkpoints").iterdir())
    losses = [line["loss"] for line in read_lines(RunFolder(copy).metrics)]
    rows = told("list", copy)
    assert [row["loss"] for row in rows] == pytest.approx([sum(losses[:2]) / 2, sum(losses) / 4])
    assert [row["best"] for row in rows] == [row["loss"] == min(r["loss"] for r in rows) for row in rows]
    assert "best" in longreel("list", copy)
    assert told("prune", copy, "--keep", 1, "--dry-run")["would_remove"] == ["step-00000002"]
    with pytest.raises(InputError, match="no terminal to ask at"):
        longreel("prune", copy, "--keep", 1)
    with only_launcher(RunFolder(copy)), pytest.raises(InputError, match="one job at a time"):
        longreel("prune", copy, "--keep", 1, "--yes")
    assert sorted((copy / "checkpoints").iterdir()) == whole
    part = copy / "checkpoints" / "step-00000004" / "part-00001.safetensors"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # as long as before: only its hash is wrong
    assert told("prune", copy, "--keep", 1, "--yes")["removed"] == []
    part.write_bytes(data)
    assert told("prune", copy, "--keep", 1, "--yes")["removed"] == ["step-00000002"]
    assert [row["step"] for row in told("list", copy)] == [4]
    assert longreel("prune", copy, "--keep", 1, "--yes").endswith("nothing to remove\n")
