"""A model, an objective and a vision tower are one file and one call each: every mesh trains with them to one loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.checkpoints.reading import newest
from launcher.checkpoints.storage import open_storage
from launcher.config import extensions
from launcher.config.loading import check, load, to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder
from models.language.towers import TOWERS
from models.registry import MODELS, OBJECTIVES
from parallel.errors import InputError
from tests.support import conversations
from tests.support.commands import Forked
from tests.support.runs import config, lines, train

HERE = Path(__file__).parent
MODEL, OBJECTIVE, TOWER = (str(HERE / f"{name}.py") for name in ("model", "objective", "tower"))
MESHES = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2)]
UNITS = {"kind": "gated_units"}
MEANS = {"model_type": "mean_tower", "hidden_size": 16, "image_size": conversations.VISION["image_size"]}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """For these tests alone: others go through all that there is."""
    yield
    for registry, name in ((MODELS, "gated_units"), (OBJECTIVES, "absolute_error"), (TOWERS, "mean_tower")):
        registry._entries.pop(name, None)
    extensions._imported.clear()
    extensions._hashes.clear()


def clips(out: Path, dataset: Path, mesh: tuple[int, int, int] = (1, 1, 1), **changes: Any) -> RunConfig:
    """Three steps; `changes` are sections."""
    base = config(out, dataset).model_dump(mode="json")
    cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    return check({**base, "steps": 3, "mesh": cut, **changes})


def losses(run: RunConfig) -> list[float]:
    return [line["loss"] for line in train(run)]


@pytest.mark.parametrize(
    "changes",
    [
        {"extensions": [MODEL], "model": UNITS},
        {"extensions": [OBJECTIVE], "objective": {"kind": "absolute_error"}},
        {"extensions": [MODEL, OBJECTIVE], "model": UNITS, "objective": {"kind": "absolute_error"}},
    ],
    ids=["model", "objective", "both"],
)
def test_every_mesh_gives_the_same_run(tmp_path: Path, dataset: Path, changes: dict[str, Any]) -> None:
    found = [losses(clips(tmp_path / str(number), dataset, mesh, **changes)) for number, mesh in enumerate(MESHES)]
    assert len(found[0]) == 3
    assert found[0][2] != found[0][0]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-9)


def test_a_tower_on_every_mesh(tmp_path: Path, dataset: Path) -> None:
    spoken = conversations.make(tmp_path / "talks", dataset)
    model = {**conversations.MODEL, "vision": MEANS}
    found = []
    for number, mesh in enumerate(MESHES):
        changes = conversations.settings(spoken, model=model)
        base = config(tmp_path / str(number), spoken, **{**changes, "extensions": [TOWER]})
        cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
        found.append(losses(check({**base.model_dump(mode="json"), "steps": 3, "mesh": cut})))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-9)


def test_a_run_names_its_extensions(tmp_path: Path, dataset: Path) -> None:
    """From the YAML's own folder, through `train`, a resume, and `sample`; another file is refused."""
    (tmp_path / "mine.py").write_text(Path(MODEL).read_text())
    settings = clips(tmp_path / "run", dataset, extensions=[MODEL], model=UNITS).model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(to_yaml(check(settings)).replace(MODEL, "mine.py"))
    assert load(tmp_path / "run.yaml").extensions == (str(tmp_path / "mine.py"),)
    trained = Forked("train", str(tmp_path / "run.yaml"), "--no-ray")
    assert trained.wait(300) == 0, trained.said()
    assert len(lines(tmp_path / "run")) == 3
    found, _ = newest(open_storage(RunFolder(tmp_path / "run").checkpoints))
    assert found is not None
    assert "extensions mine" in found.manifest.outside
    sampled = Forked("sample", str(tmp_path / "run"), "--prompt", "a square", "--steps", "2")
    assert sampled.wait(300) == 0, sampled.said()
    (tmp_path / "mine.py").write_text(Path(MODEL).read_text() + "\n# another\n")
    again = Forked("train", str(tmp_path / "run.yaml"), "steps=4", "--no-ray")
    assert again.wait(300) == 2, again.said()
    assert "extensions mine" in again.said()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("gone.py", None, "FileNotFoundError"),
        ("broken.py", "1 / 0", "ZeroDivisionError"),
        ("taken.py", "from models.registry import MODELS\nMODELS.register('video_dit', MODELS['video_lm'])", "twice"),
        ("no.such.module", None, "ModuleNotFoundError"),
    ],
)
def test_wrong_extensions_are_refused(tmp_path: Path, dataset: Path, file: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    name = str(tmp_path / file) if file.endswith(".py") else file
    with pytest.raises(InputError) as error:
        clips(tmp_path, dataset, extensions=[name])
    assert words in str(error.value)
    assert file in str(error.value)
