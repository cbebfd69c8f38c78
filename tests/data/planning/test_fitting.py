"""Every setting that a remedy proposes is one that works: each is followed."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.planning.clip_sampling import Sampling
from data.planning.fitting import Shape, filling, fitting, fullest
from data.planning.packing import best_fit_decreasing
from launcher.batches.datasets import open_curriculum
from launcher.config.loading import check, parse_override
from launcher.config.run_config import RunConfig
from launcher.preflight import preflight
from launcher.preflight.memory_savers import relief
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry
from tests.support.runs import config

PIXEL = Geometry(patch=(4, 8, 8))
WAN = Geometry(16, (4, 8, 8), (1, 2, 2), causal=True, sliceable=False)


def followed(sampling: Sampling, remedy: str) -> tuple[Sampling, int | None]:
    """The sampling with a remedy, or the tokens of a pack that it names."""
    key, value = remedy.partition("=")[0], ast.literal_eval(remedy.partition("=")[2])
    if key == "data.pack_tokens":
        return sampling, value
    if key == "model.patch":
        return replace(sampling, geometry=replace(sampling.geometry, patch=tuple(value))), None
    return replace(sampling, **{key.partition(".")[2]: tuple(value) if isinstance(value, list) else value}), None


@pytest.mark.parametrize(
    ("sampling", "shapes", "remedies"),
    [
        (Sampling(PIXEL), [(2, 64, 64)], ["model.patch=[2,8,8]"]),
        (Sampling(PIXEL, stride=4), [(8, 64, 64), (9, 64, 64)], ["data.stride=2", "model.patch=[3,8,8]"]),
        (Sampling(PIXEL), [(8, 4, 64)], ["data.size=[8,8]"]),
        (Sampling(WAN, stride=2), [(1, 8, 8)], ["data.size=[16,16]"]),
        (Sampling(PIXEL, stride=3), [(3, 4, 4)], []),
    ],
)
def test_nothing_fills_a_token(sampling: Sampling, shapes: list[Shape], remedies: list[str]) -> None:
    assert not any(sampling.length(*shape) for shape in shapes)
    assert list(filling(sampling, shapes)) == remedies
    for remedy in remedies:
        mended, _ = followed(sampling, remedy)
        mended.check()
        assert any(mended.length(*shape) for shape in shapes), remedy


@pytest.mark.parametrize(
    ("sampling", "shapes", "tokens", "stored", "keys"),
    [
        (Sampling(PIXEL), [(64, 64, 64)], 100, False, "pack_tokens frames"),
        (Sampling(PIXEL), [(64, 64, 64)], 40, False, "pack_tokens size"),
        (Sampling(PIXEL), [(64, 64, 64)], 10, False, "pack_tokens"),
        (Sampling(PIXEL, frames=32, size=(64, 128)), [(64, 64, 64), (8, 9, 9)], 300, False, "pack_tokens frames"),
        (Sampling(PIXEL, stride=2), [(64, 64, 64)], 300, False, "pack_tokens frames"),
        (Sampling(WAN), [(81, 64, 96)], 200, True, "pack_tokens"),
        (Sampling(WAN), [(81, 64, 96)], 200, False, "pack_tokens frames"),
        (Sampling(Geometry(4, (1, 8, 8), (1, 2, 2))), [(24, 64, 64)], 100, True, "pack_tokens frames"),
    ],
)  # fmt: skip
def test_samples_longer_than_a_pack(
    sampling: Sampling, shapes: list[Shape], tokens: int, stored: bool, keys: str
) -> None:
    remedies = list(fitting(sampling, shapes, tokens, stored))
    assert [remedy.partition("=")[0].partition(".")[2] for remedy in remedies] == keys.split()
    for remedy in remedies:
        mended, larger = followed(sampling, remedy)
        mended.check()
        lengths = [mended.length(*shape) for shape in shapes]
        assert 0 < max(lengths) <= (larger or tokens), remedy


@pytest.mark.parametrize(("lengths", "tokens", "ranks"), [([64] * 24, 32768, 1), ([10, 20, 30], 1000, 4), ([7], 8, 8)])
def test_packs_that_an_epoch_fills(lengths: list[int], tokens: int, ranks: int) -> None:
    found = fullest(lengths, tokens, 0.8, ranks)
    if found is None:
        assert (lengths, ranks) == ([7], 8)
        return
    assert max(lengths) <= found < tokens
    _, starts = best_fit_decreasing(np.array(lengths, np.int64), found)
    assert sum(lengths) >= 0.8 * (len(starts) - 1) * found


def follow(settings: RunConfig, remedy: str) -> RunConfig:
    changed = settings.model_dump(mode="json")
    for key, value in map(parse_override, remedy.split()):
        here: Any = changed
        for name in key.split(".")[:-1]:
            here = here[name]
        here[key.rpartition(".")[2]] = value
    return check(changed)


def test_remedies_of_a_run_are_tried_on_its_data(tmp_path: Path, dataset: Path) -> None:
    short = config(tmp_path / "a", dataset, data__pack_tokens=50)
    with pytest.raises(InputError, match=r"fits into a pack|smallest sample") as told:
        open_curriculum(short)
    for remedy in told.value.remedy.split(", or "):
        assert open_curriculum(follow(short, remedy)).streams
    odd = config(tmp_path / "a", dataset, data__stride=100, data__frames=None, model__patch=[2, 8, 8])
    with pytest.raises(InputError, match="fills at least one token") as told:
        open_curriculum(odd)
    for remedy in told.value.remedy.split(", or "):
        assert open_curriculum(follow(odd, remedy)).streams
    wide = config(tmp_path / "a", dataset, mesh={"replica": 2, "ring": 3, "ulysses": 4})
    with pytest.raises(InputError, match="no more ranks than can run") as told:
        preflight.check(wide, 8)
    assert preflight.check(follow(wide, told.value.remedy.partition(",")[0]), 8).step == 0
    empty = config(tmp_path / "a", dataset, data__pack_tokens=1_000_000)
    (note,) = [note for note in preflight.check(empty, 8).notes if "full" in note]
    remedy = note.partition("; ")[2].partition(",")[0]
    assert not [note for note in preflight.check(follow(empty, remedy), 8).notes if "full" in note]


def test_less_memory_is_no_pack_that_is_too_short(tmp_path: Path, dataset: Path) -> None:
    def packs(**changes: Any) -> list[str]:
        settings = config(tmp_path / "run", dataset, **changes)
        return [one for one in relief(settings, "host") if "pack_tokens" in one]

    longest = max(int(s.plan.lengths.max()) for s in open_curriculum(config(tmp_path / "run", dataset)).streams)
    assert packs(data__pack_tokens=4 * longest) == [f"data.pack_tokens={2 * longest}"]
    assert packs(data__pack_tokens=longest + 1) == [f"data.pack_tokens={longest}"]
    assert packs(data__pack_tokens=longest)[0].startswith("shorter samples")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert packs(data__pack_tokens=4 * longest) == []  # a resume keeps its packs
