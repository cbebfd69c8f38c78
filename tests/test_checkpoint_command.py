"""`longreel checkpoint`: what a person and a script learn of what a run saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from typer.testing import CliRunner

from launcher.checkpoints.reading import newest
from launcher.checkpoints.storage import LocalStorage
from launcher.cli import app
from parallel.errors import InputError
from tests.runs import config, train


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
    assert told("verify", out) == rows == told("list", f"file://{out}/checkpoints") == told("list", out / "checkpoints")
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
