"""The dry run of a step beside a real one on CPUs: the same bytes, FLOPs and messages, rank by rank."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from launcher.config import RunConfig, check
from launcher.dryrun.counter import Counter
from launcher.dryrun.packs import packs_for
from launcher.dryrun.step import Dry, DryRun, dry_run
from parallel.mesh import join
from tests.worlds import run_alone, run_world

DIT = {
    "kind": "video_dit",
    "dim": 96,
    "depth": 3,
    "heads": 6,
    "patch": [1, 2, 2],
    "text": {"dim": 32, "depth": 1, "heads": 2},
}
LM = {
    "kind": "video_lm",
    "language": {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
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
    for key, value in changes.items():
        *path, last = key.split("__")
        here = settings
        for name in path:
            here = here.setdefault(name, {})
        here[last] = value
    return check(settings)


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
    "windows": config(DIT, model__attention=[{"kind": "frame_window", "before": 2, "after": 1}, {"kind": "temporal"}]),
}


def real(rank: int, run: RunConfig) -> DryRun:
    """A real step on this machine, looked at by the same counter."""
    groups = join(run.mesh.mesh(), rank)
    counter = Counter("cpu")
    with counter:
        dry = Dry(run, 0, groups, counter, packs_for(run, groups.place, 0), "cpu")
        dry.step()
        return dry.found(rank)


def flops_of_torch(rank: int, run: RunConfig) -> int:
    """What torch's own counter says of a real step."""
    groups = join(run.mesh.mesh(), rank)
    quiet = Counter("cpu")
    dry = Dry(run, 0, groups, quiet, packs_for(run, groups.place, 0), "cpu")
    with FlopCounterMode(display=False) as counter:
        dry.step()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_dry_step_is_a_real_one(name: str) -> None:
    run = CONFIGS[name]
    last = run.mesh.mesh().ranks - 1
    wanted = run_world(last + 1, real, run)[last]
    found: DryRun = run_alone(dry_run, run, last, "cpu")
    assert found.peak_bytes == pytest.approx(wanted.peak_bytes, rel=0.02), (found.peak, wanted.peak)
    assert found.kept_bytes == pytest.approx(wanted.kept_bytes, rel=0.02)
    assert found.largest_tensor_bytes == wanted.largest_tensor_bytes
    assert found.flops == wanted.flops
    assert found.sent == wanted.sent
    assert found.tokens == wanted.tokens
