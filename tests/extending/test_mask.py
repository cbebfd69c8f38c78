"""An attention pattern is one file and one call: every mesh trains with it to the same losses, beside tiles too."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config.loading import to_yaml
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, make_run_folder
from launcher.supervision.local_ranks import free_port
from models.diffusion.attention_schedule import ATTENTION
from parallel.errors import InputError
from tests.support.process_groups import server
from tests.support.runs import config, lines

PATTERN = "tests.extending.mask"
MESHES = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2)]
FUTURE = {"kind": "frame_future", "ahead": 2}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """For these tests alone: others go through every pattern that there is."""
    importlib.import_module(PATTERN)
    yield
    del ATTENTION._entries["frame_future"]


def settings(out: Path, dataset: Path, mesh: tuple[int, int, int] = (1, 1, 1), near: Any = None) -> RunConfig:
    cut = dict(zip(("replica", "ring", "ulysses"), mesh, strict=True))
    schedule = [FUTURE, {"kind": "criss_cross", "tile": [1, 3, 2]} if near is None else near]
    return config(out, dataset, steps=3, mesh=cut, model__attention=schedule)


def rank_of(run: RunConfig, rank: int, port: int) -> None:
    """One rank of a run, in a process that knows the pattern."""
    from launcher.training.loop import RankPlace
    from launcher.training.loop import run as train_rank

    importlib.import_module(PATTERN)
    world = run.mesh.mesh().ranks
    train_rank(run, RankPlace(rank, world, rank, world, f"127.0.0.1:{port}"))


def losses(run: RunConfig) -> list[float]:
    make_run_folder(RunFolder(run.out))
    RunFolder(run.out).config.write_text(to_yaml(run))
    port = free_port()
    ranks = [server().Process(target=rank_of, args=(run, n, port)) for n in range(run.mesh.mesh().ranks)]  # type: ignore[attr-defined]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * len(ranks)
    return [line["loss"] for line in lines(run.out)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> list[float]:
    """Losses of a run of one rank in float64."""
    return losses(settings(tmp_path_factory.mktemp("whole") / "run", dataset))


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_losses_are_the_same_on_every_mesh(
    whole: list[float], tmp_path: Path, dataset: Path, mesh: tuple[int, int, int]
) -> None:
    assert len(whole) == 3
    assert losses(settings(tmp_path / "run", dataset, mesh)) == pytest.approx(whole, rel=1e-12)


def test_the_pattern_changes_what_is_learned(whole: list[float], tmp_path: Path, dataset: Path) -> None:
    other = losses(settings(tmp_path / "run", dataset, near="full"))
    assert other[0] == whole[0]  # blocks start as the identity
    assert other[2] != pytest.approx(whole[2], rel=1e-9)


def test_a_run_names_it_and_its_keys(tmp_path: Path, dataset: Path) -> None:
    assert "kind: frame_future" in to_yaml(settings(tmp_path, dataset))
    with pytest.raises(InputError, match="tokens lie in one order in all layers") as refused:
        settings(tmp_path, dataset, near={"kind": "criss_cross", "tile": [2, 2, 2]})
    assert refused.value.remedy == "tile: [1, 2, 2], whose tiles are of one frame, in all patterns of tiles"
    with pytest.raises(InputError, match="did you mean frame_future"):
        settings(tmp_path, dataset, near="frame_futures")
