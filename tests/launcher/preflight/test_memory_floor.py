"""What a run takes at least: refused where there is less, with both numbers and settings that fit; never what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config.loading import check, load, parse_override, to_yaml
from launcher.config.run_config import RunConfig
from launcher.preflight import memory_floor, preflight
from launcher.preflight.memory_floor import (
    GIB,
    PROCESS,
    MachineMemory,
    Parameters,
    demand_of,
    parameters_of,
    refuse_too_large,
)
from launcher.preflight.preflight import check as preflight_check
from launcher.supervision.run import count_text, header
from parallel.errors import InputError
from tests.support.runs import config, with_changes

DIT = {"kind": "video_dit", "dim": 4096, "depth": 40, "heads": 32}


def run(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = {"out": "runs/x", "steps": 4, "data": {"dataset": "d"}, "model": dict(DIT)}
    return check(with_changes(settings, changes))


def test_parameters_are_counted_without_numbers() -> None:
    """As many as the real model has, on either side of the size from which on nothing is drawn."""
    small = run(model__dim=48, model__depth=2, model__heads=4)
    counted = parameters_of(small)
    assert counted == Parameters(counted.trained, 0)
    large = parameters_of(run())
    assert 12 * 40 * 4096**2 < large.trained < 24 * 40 * 4096**2
    before, memory_floor.FEW = memory_floor.FEW, 0
    try:
        assert parameters_of(small) == counted
    finally:
        memory_floor.FEW = before


@pytest.mark.parametrize(
    ("changes", "bytes_each"),
    [
        ({"zero__stage": 0}, 16),  # bf16: 2 of the weight, 2 of its gradient, 4 of the master, 8 of both moments
        ({"zero__stage": 1}, 2 + 2 + 12 / 4),
        ({"zero__stage": 2}, 2 + (2 + 12) / 4),
        ({"zero__stage": 3}, 16 / 4),
        ({"zero__stage": 0, "dtype": "float32"}, 16),
        ({"zero__stage": 0, "dtype": "float64"}, 32),
        ({"zero__stage": 3, "optimizer__ema": 0.9}, 5),
    ],
)
def test_states_of_a_rank(changes: dict[str, Any], bytes_each: float) -> None:
    settings = run(mesh__replica=4, **changes)
    found = demand_of(settings, settings.mesh.mesh(), Parameters(10**9, 0), 0.0, False)
    assert found.device == bytes_each * 10**9


def follow(settings: RunConfig, remedy: str) -> RunConfig:
    changed = settings.model_dump(mode="json")
    for key, value in map(parse_override, remedy.split()):
        *path, last = key.split(".")
        here = changed
        for name in path:
            here = here[name]
        here[last] = value
    return check(changed)


@pytest.mark.parametrize(
    ("changes", "machine", "words"),
    [
        ({}, MachineMemory(64 * GIB), "there are 64.0"),
        ({"zero__stage": 3, "mesh__replica": 4}, MachineMemory(100 * GIB), "4 ranks"),
        ({"zero__stage": 2}, MachineMemory(2000 * GIB, 80 * GIB), "the GPU has 80.0"),
        (
            {"zero__stage": 2, "zero__offload": "optimizer", "mesh__replica": 2},
            MachineMemory(64 * GIB, 9999 * GIB),
            "offload",
        ),
        ({"model__dim": 512, "model__heads": 8, "mesh__ring": 2}, MachineMemory(64 * GIB), "activations"),
    ],
)
def test_what_cannot_fit_is_refused_with_both_numbers(
    changes: dict[str, Any], machine: MachineMemory, words: str
) -> None:
    settings = run(**changes, data__pack_tokens=1_000_000)
    with pytest.raises(InputError) as told:
        refuse_too_large(settings, parameters_of(settings), [1_000_000.0], 0, machine, 1000)
    assert words in told.value.value
    assert told.value.value.startswith("at least ")
    remedies = told.value.remedy.partition(";")[0].split(" or ")
    assert remedies[-1].startswith("a machine with at least")
    for remedy in remedies[:-1]:
        better = follow(settings, remedy)
        refuse_too_large(better, parameters_of(better), [float(better.data.pack_tokens)], 0, machine)


def test_what_fits_is_not_refused() -> None:
    settings = run(model__dim=512, model__heads=8)
    parameters = parameters_of(settings)
    need = demand_of(settings, settings.mesh.mesh(), parameters, 1000.0, False).device + PROCESS
    refuse_too_large(settings, parameters, [1000.0], 0, MachineMemory(int(need) + 1))
    with pytest.raises(InputError):
        refuse_too_large(settings, parameters, [1000.0], 0, MachineMemory(int(need) - 1))


def test_nothing_starts_that_cannot_fit(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(tmp_path / "out", dataset, dtype="float32", model__dim=9600, model__depth=400, model__heads=96)
    with pytest.raises(InputError, match=r"a run fits into the host memory of its machine\n.*at least [0-9,]{4,}"):
        preflight_check(settings, 8)
    assert preflight_check(settings, 0).parameters.trained > 10**11  # on a cluster nobody knows yet
    monkeypatch.setattr(preflight, "memory_here", lambda _: None)
    assert preflight_check(settings, 8).step == 0


def test_the_header_says_what_is_trained_and_where_to_look(tmp_path: Path, dataset: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "my run", dataset, steps=100, dtype="float32", device="cpu")))
    ready = preflight_check(load(file, ["mesh.ring=2"]))
    told = "\n".join(header(ready, True))
    assert f"video_dit, {count_text(ready.parameters.trained)} parameters, float32" in told
    assert "ranks    2 on CPU" in told
    assert "ring 2" in told
    assert "24 samples; about " in told
    assert "tokens a step, in 2 packs" in told
    assert f"tensorboard --logdir '{tmp_path}/my run/tensorboard'" in told
    epoch = 24 * 7 * 4 * 4 / ready.step_tokens
    assert ready.epoch_steps == pytest.approx(epoch)
    assert f"{100 / epoch:,.3g} epochs of about" in told
    assert count_text(1_790_592) == "1.79 million"
    assert "on a cluster" in "\n".join(header(ready, False))
