"""The dry run of a step beside a real one on CPUs: the same bytes, FLOPs and messages; and what a GPU would do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from launcher.cli.app import app
from launcher.config.loading import check, to_yaml
from launcher.config.run_config import RunConfig
from launcher.dryrun.dry_step import Dry, DryRun, dry_run
from launcher.dryrun.fake_packs import packs_for
from launcher.dryrun.operation_counter import Counter
from launcher.preflight.memory_floor import demand_of, parameters_of
from parallel.errors import InputError
from parallel.mesh import join
from tests.support.process_groups import run_alone, run_world
from tests.support.runs import with_changes

DIT = {
    "kind": "video_dit",
    "dim": 96,
    "depth": 2,
    "heads": 6,
    "patch": [1, 2, 2],
    "text": {"dim": 32, "depth": 1, "heads": 2},
}
LM = {
    "kind": "video_lm",
    "language": {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    },
}  # fmt: skip
EYES = {
    "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip


def config(model: dict[str, Any], **changes: Any) -> RunConfig:
    """A run whose data is drawn; `changes` are keys with dots as double underscores."""
    settings: dict[str, Any] = {
        "out": "runs/none", "steps": 3, "dtype": "float32", "zero": {"stage": 0}, "model": dict(model),
        "data": {"dataset": "nowhere", "pack_tokens": 2048},
        "objective": {"kind": "rectified_flow" if model["kind"] == "video_dit" else "next_token"},
    }  # fmt: skip
    if model["kind"] == "video_dit":
        settings["data"]["size"] = [32, 32]
    return check(with_changes(settings, changes))


CONFIGS = {
    "dit": config(DIT),
    "dit_recompute": config(DIT, model__recompute=True),
    "dit_bf16_two_clips_ema": config(DIT, dtype="bf16", optimizer__ema=0.9),
    "dit_ring": config(DIT, mesh__ring=2),
    "dit_ulysses_recompute_bf16": config(DIT, mesh__ulysses=4, model__recompute=True, dtype="bf16"),
    "dit_zero_1_bf16": config(DIT, zero__stage=1, mesh__replica=2, dtype="bf16"),
    "dit_zero_2_two_micro_steps": config(DIT, zero__stage=2, mesh__ulysses=2, data__packs_per_step=2),
    "dit_zero_3_recompute_bf16": config(DIT, zero__stage=3, mesh__ring=2, model__recompute=True, dtype="bf16"),
    "lm": config(LM),
    "lm_recompute_tiles_ring": config(LM, model__recompute=True, model__mlp_tiles=4, mesh__ring=2),
    "lm_zero_3_ulysses_bf16": config(LM, zero__stage=3, mesh__ulysses=2, dtype="bf16"),
    "lm_eyes_zero_2": config({**LM, "vision": EYES}, zero__stage=2, mesh__ring=2),
    "video_text": config({**LM, "vision": EYES}, mesh__ulysses=2, objective__kind="video_text"),
    "windows": config(DIT, model__attention=[{"kind": "frame_window", "before": 2, "after": 1}, {"kind": "temporal"}]),
}


def real(rank: int, runs: dict[str, RunConfig]) -> dict[str, DryRun]:
    """Real steps on this machine, looked at by the same counter."""
    return {name: real_step(rank, run) for name, run in runs.items()}


def real_step(rank: int, run: RunConfig) -> DryRun:
    groups = join(run.mesh.mesh(), rank)
    counter = Counter("cpu")
    with counter:
        dry = Dry(run, 0, groups, counter, packs_for(run, groups.place, 0), "cpu")
        dry.step()
        found = dry.found(rank)
    dry.engine.destroy()
    return found


def dry(runs: dict[str, RunConfig]) -> dict[str, DryRun]:
    """The same steps, of the last rank, on fake tensors."""
    return {name: dry_run(run, run.mesh.mesh().ranks - 1, "cpu") for name, run in runs.items()}


@pytest.fixture(scope="module")
def steps() -> dict[str, tuple[DryRun, DryRun]]:
    """Of each run the dry and the real step; one world for all runs of a size."""
    sizes = {name: run.mesh.mesh().ranks for name, run in CONFIGS.items()}
    found: dict[str, DryRun] = {}
    for ranks in sorted(set(sizes.values())):
        found |= run_world(ranks, real, {name: CONFIGS[name] for name in CONFIGS if sizes[name] == ranks})[-1]
    guessed = run_alone(dry, CONFIGS)
    return {name: (guessed[name], found[name]) for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_run_is_refused_for_is_less_than_it_takes(steps: dict[str, tuple[DryRun, DryRun]], name: str) -> None:
    """The quick count before a start is a lower bound of every step, and no idle one."""
    run, (guessed, _) = CONFIGS[name], steps[name]
    mesh = run.mesh.mesh()
    least = demand_of(run, mesh, parameters_of(run), guessed.tokens * mesh.sequence_ranks, False)
    assert guessed.peak_bytes / 5 < least.device < guessed.peak_bytes


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dry_step_is_a_real_one(steps: dict[str, tuple[DryRun, DryRun]], name: str) -> None:
    found, wanted = steps[name]
    assert found.peak_bytes == pytest.approx(wanted.peak_bytes, rel=0.02), (found.peak, wanted.peak)
    assert found.kept_bytes == pytest.approx(wanted.kept_bytes, rel=0.02)
    assert found.largest_tensor_bytes == wanted.largest_tensor_bytes
    assert found.flops == wanted.flops
    wanted.sent.pop("broadcast_", None)  # of ZeRO-3, which compares the ranks' modules once in a run
    assert found.sent == wanted.sent
    assert found.tokens == wanted.tokens


def flops_of_torch(rank: int, run: RunConfig) -> int:
    """What torch's own counter says of a real step."""
    groups = join(run.mesh.mesh(), rank)
    step = Dry(run, 0, groups, Counter("cpu"), packs_for(run, groups.place, 0), "cpu")
    with FlopCounterMode(display=False) as counter:
        step.step()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["dit_recompute", "lm"])
def test_flops_are_those_that_torch_counts(steps: dict[str, tuple[DryRun, DryRun]], name: str) -> None:
    (wanted,) = run_world(1, flops_of_torch, CONFIGS[name])
    assert steps[name][0].flops == pytest.approx(wanted, rel=0.001)


def on_gpus(runs: dict[str, RunConfig]) -> dict[str, DryRun]:
    """Steps as a GPU would do them."""
    return {name: dry_run(run, None, "cuda") for name, run in runs.items()}


GPU = {
    **{
        f"dit_zero_{stage}_{way}": config(
            DIT, dtype="bf16", model__recompute=True, zero__stage=stage, **{f"mesh__{way}": 2}
        )
        for stage, way in ((0, "ring"), (0, "ulysses"), (1, "ulysses"), (2, "ring"), (3, "ring"), (3, "ulysses"))
    },
    "dit_float32": config(DIT),
    "dit_compile": config(DIT, dtype="bf16", model__compile="blocks", model__recompute=True),
    "dit_tiles": config(DIT, dtype="bf16", model__mlp_tiles=4),
    "dit_long": config(DIT, dtype="bf16", model__recompute=True, data__pack_tokens=8192),
    "dit_offload": config(DIT, dtype="bf16", model__recompute=True, model__offload=True, data__pack_tokens=8192),
    "lm_zero_3_tiles": config(
        LM, dtype="bf16", model__recompute=True, model__mlp_tiles=4, zero__stage=3, mesh__ulysses=2
    ),
    "lm_offload": config(LM, dtype="bf16", model__recompute=True, model__offload=True, mesh__ring=2),
    "dit_zero_1_sixteen": config(DIT, dtype="bf16", zero__stage=1, mesh__replica=2, data__packs_per_step=32),
    "dit_zero_1_one": config(DIT, dtype="bf16", zero__stage=1, mesh__replica=2, data__packs_per_step=2),
    "dit_zero_3_two": config(DIT, zero__stage=3, mesh__replica=2, data__packs_per_step=4),
    "dit_short": config(DIT, dtype="bf16", data__frames=2),
    "lm_eyes": config({**LM, "vision": EYES}, dtype="bf16", zero__stage=2),
    "video_text": config({**LM, "vision": EYES}, mesh__ring=2, objective__kind="video_text"),
}


@pytest.fixture(scope="module")
def on_gpu() -> dict[str, DryRun]:
    """Of each run, what a GPU would do."""
    found: dict[str, DryRun] = run_alone(on_gpus, GPU)
    return found


@pytest.mark.parametrize("name", GPU)
def test_a_step_on_a_gpu_waits_twice_and_uploads_nothing(on_gpu: dict[str, DryRun], name: str) -> None:
    """For the loss, and for the norm of the gradients; the batch was put on the device by the feed."""
    assert sum(on_gpu[name].host_waits.values()) <= 2, on_gpu[name].host_waits
    assert on_gpu[name].host_transfers == {}


def test_micro_steps_are_counted_and_the_end_of_a_step_once(on_gpu: dict[str, DryRun]) -> None:
    one, sixteen = on_gpu["dit_zero_1_one"], on_gpu["dit_zero_1_sixteen"]
    assert sixteen.micro_steps == 16
    assert sixteen.sent == one.sent, "ZeRO-1 sums gradients at the end of a step"
    assert sixteen.attention_flops == 16 * one.attention_flops


def test_gradients_of_zero_2_are_no_copy_of_the_model(on_gpu: dict[str, DryRun]) -> None:
    """DeepSpeed lays parameters out as meta tensors, which are no memory."""
    run = on_gpu["dit_zero_2_ring"]
    assert run.peak.by_kind["gradients"] <= 1.3 * 2 * run.parameters


def test_drawn_clips_are_as_long_as_the_run_takes_them(on_gpu: dict[str, DryRun]) -> None:
    assert on_gpu["dit_short"].pack.endswith("drawn: 4 clips of 2 x 16 x 16 tokens, 2,048 of 2,048 tokens")


def test_ulysses_keeps_no_more_than_a_ring(on_gpu: dict[str, DryRun]) -> None:
    ring, both = (on_gpu[f"dit_zero_0_{way}"] for way in ("ring", "ulysses"))
    assert both.kept_bytes / both.tokens <= 1.1 * ring.kept_bytes / ring.tokens


def test_what_is_offloaded_is_not_on_the_device(on_gpu: dict[str, DryRun]) -> None:
    """Of each block its input and what attention gave, of 1.5 MiB each; smaller tensors stay."""
    stayed, away = on_gpu["dit_long"], on_gpu["dit_offload"]
    moved = 2 * 2 * 8192 * 96 * 2
    assert stayed.kept_bytes - away.kept_bytes == moved
    assert away.host_bytes - stayed.host_bytes >= moved


def test_zero_shares_states_out(on_gpu: dict[str, DryRun]) -> None:
    whole, shared = (on_gpu[f"dit_zero_{stage}_ring"].peak.by_kind for stage in (0, 3))
    assert shared["optimizer"] == pytest.approx(whole["optimizer"] / 2, rel=0.05)
    assert shared["parameters"] == pytest.approx(whole["parameters"] / 2, rel=0.05)


def test_the_command_says_it_to_scripts(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(DIT, dtype="bf16")))
    asked = ["dryrun", str(file), "mesh.ulysses=2", "--rank", "1", "--json"]
    said: dict[str, Any] = json.loads(run_alone(told, asked))
    keys = {"peak_bytes", "kept_bytes", "largest_tensor_bytes", "flops", "launches", "host_waits", "host_transfers"}
    assert keys | {"sent_bytes", "by_kind"} <= said.keys()
    assert (said["mesh"], said["rank"], said["host_waits"], said["host_transfers"]) == ([1, 1, 2], 1, 2, 0)
    assert sum(said["by_kind"].values()) == said["peak_bytes"]


def told(arguments: list[str]) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--rank", "9"], "counted from 0"),
        (["--device", "tpu"], "cuda or cpu"),
        (["--documents", "99999"], "a frame of each"),
        (["mesh.ring=4000"], "holds tokens"),
        (["model.mlp_tiles=9999"], "a tile of an MLP"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, arguments: list[str], rule: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(DIT)))
    with pytest.raises(InputError, match=rule):
        CliRunner().invoke(app, ["dryrun", str(file), *arguments], catch_exceptions=False)
