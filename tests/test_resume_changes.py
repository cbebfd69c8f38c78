"""What a resumed run may change: settings of memory, which change no number that matters; not the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.checkpoints.changes import changed_settings, refuse_changes
from parallel.errors import InputError
from tests.runs import config


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
