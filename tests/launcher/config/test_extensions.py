"""A run names modules of its own: they are imported before its other keys are checked, and in its ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.config.loading import check, load, to_yaml
from launcher.config.run_config import RunConfig
from parallel.errors import InputError
from parallel.optimizers.optimizer_registry import OPTIMIZERS
from tests.support.runs import config, train

PLAIN = """
from typing import ClassVar, Literal
import torch
from parallel.setting_effects import State
from parallel.optimizers.optimizer import OptimizerConfig
from parallel.optimizers.optimizer_registry import OPTIMIZERS

class PlainConfig(OptimizerConfig):
    kind: State[Literal["plain"]] = "plain"
    def build(self, groups):
        return torch.optim.SGD(groups, lr=0.0)

OPTIMIZERS.register("plain", PlainConfig)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in a folder of its own, which ranks find as this process does."""
    (tmp_path / "optimizer_of_a_test.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "optimizer_of_a_test"
    OPTIMIZERS._entries.pop("plain", None)
    sys.modules.pop("optimizer_of_a_test", None)


def test_a_run_file_with_an_optimizer_of_its_own(tmp_path: Path, dataset: Path, module: str) -> None:
    plain = config(tmp_path / "run", dataset)
    with pytest.raises(InputError, match="an optimizer is one of: adamw"):
        check({**plain.model_dump(mode="json"), "optimizer": {"kind": "plain"}})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(plain))
    run = load(file, [f"extensions=[{module}]", "optimizer={kind: plain, learning_rate: 0.1}", "steps=2"])
    assert (run.optimizer.kind, run.extensions) == ("plain", (module,))
    assert [line["step"] for line in train(run)] == [1, 2]
    again: RunConfig = load(run.out / "config.yaml")
    assert again == run


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_of_a_test'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_what_cannot_be_imported(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, reason: str
) -> None:
    if text is not None:
        (tmp_path / "broken_of_a_test.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="extensions of a run can be imported") as refused:
        config(tmp_path / "run", dataset, extensions=["broken_of_a_test"])
    assert refused.value.value.startswith(f"extensions: broken_of_a_test: {reason}")
    assert ("PYTHONPATH=FOLDER" if text is None else "mend broken_of_a_test") in refused.value.remedy


def test_what_is_no_list_of_names(tmp_path: Path, dataset: Path) -> None:
    for value in ("json", [3], {"json": 1}):
        with pytest.raises(InputError, match="extensions"):
            config(tmp_path / "run", dataset, extensions=value)
