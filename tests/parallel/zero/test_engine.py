"""ZeRO stages 1 to 3 equal the plain engine, and state moves between them unchanged."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from parallel.errors import InputError
from parallel.fragments import Fragment
from parallel.optimizers.adamw import AdamWConfig
from parallel.zero.deepspeed_config import BUCKET, BUCKET_CPU, Offload, deepspeed_config
from parallel.zero.deepspeed_engine import DeepSpeedEngine
from parallel.zero.ema import EMA, Ema
from parallel.zero.engine import Engine
from parallel.zero.plain import PlainEngine
from parallel.zero.stages import engine_for
from tests.support.process_groups import run_world

TENSOR_NAMES = AdamWConfig().tensor_names
State = dict[str, dict[str, Tensor]]
ROWS, MICRO_STEPS = 12, 2


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3)).to(dtype)


def train(engine: Engine, rank: int, world: int, steps: range, dtype: torch.dtype) -> list[tuple[float, float]]:
    """Losses and gradient norms; the rows of each micro-step are dealt to the ranks unevenly."""
    curve = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        total = 0.0
        for _ in range(MICRO_STEPS):
            x = torch.randn(ROWS, 6, generator=generator, dtype=torch.float64).to(dtype)
            mine = x[rank::world] if rank or world == 1 else x[::world]
            loss = (engine.forward(mine) - mine[:, :3].sin()).square().sum() / (MICRO_STEPS * ROWS)
            engine.backward(loss)
            part = loss.detach().double()
            torch.distributed.all_reduce(part)
            total += float(part)
        curve.append((total, engine.step(1e-2)))
    return curve


def export(engine: Engine, fragments: list[Fragment] | None = None) -> State:
    """Whole tensors of what the ranks own, flattened; every element must be there once."""
    mine = [(f.name, f.start, {k: t.clone() for k, t in f.tensors.items()}) for f in fragments or engine.owned()]
    parts: list[list[tuple[str, int, dict[str, Tensor]]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, mine)
    found: State = {}
    for name, parameter in engine.module.named_parameters():
        of_name = sorted(((start, t) for part in parts for n, start, t in part if n == name), key=lambda f: f[0])
        found[name] = {k: torch.cat([t[k] for _, t in of_name]) for k in of_name[0][1]}
        starts = [start for start, _ in of_name]
        assert starts == [0, *torch.tensor([len(t["master"]) for _, t in of_name]).cumsum(0).tolist()[:-1]]
        assert len(found[name]["master"]) == getattr(parameter, "ds_numel", parameter.numel())
    return found


def load(engine: Engine, state: State) -> None:
    for fragment in engine.held():
        for key, tensor in fragment.tensors.items():
            tensor.copy_(state[fragment.name][key][fragment.start : fragment.stop])
    engine.refresh(10)


def run(
    rank: int, world: int, stage: int, dtype: torch.dtype, clip: float, offload: Offload = "nothing"
) -> tuple[list[tuple[float, float]], State]:
    engine = engine_for(model(dtype), AdamWConfig(max_grad_norm=clip, weight_decay=0.1), stage, MICRO_STEPS, offload)
    curve = train(engine, rank, world, range(20), dtype)
    return curve, export(engine)


@pytest.fixture(scope="module")
def reference() -> list[tuple[float, float]]:
    return run_world(1, run, 1, 0, torch.float64, 0.1)[0][0]


@pytest.fixture(scope="module")
def plain() -> State:
    """What one rank without DeepSpeed has in float32 at the end."""
    return run_world(1, run, 1, 0, torch.float32, 0.1)[0][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 3])
def test_stages_equal_the_reference(
    reference: list[tuple[float, float]], world: int, stage: int, dtype: torch.dtype
) -> None:
    exact = stage == 0 and dtype == torch.float64
    for curve, _ in run_world(world, run, world, stage, dtype, 0.1):
        for got, want in zip(curve, reference, strict=True):
            assert got == pytest.approx(want, rel=1e-12 if exact else 1e-5)


@pytest.mark.parametrize(
    ("stage", "offload"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "parameters")]
)
def test_offload_changes_nothing(
    reference: list[tuple[float, float]], plain: State, stage: int, offload: Offload
) -> None:
    (curve, state), _ = run_world(2, run, 2, stage, torch.float32, 0.1, offload)
    for got, want in zip(curve, reference, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    for name, tensors in plain.items():
        for key, want in tensors.items():
            torch.testing.assert_close(state[name][key], want, rtol=1e-4, atol=1e-6)


def test_what_a_stage_cannot_offload() -> None:
    for stage, offload in ((0, "optimizer"), (2, "parameters")):
        with pytest.raises(InputError, match="ZeRO offloads"):
            engine_for(model(torch.float32), AdamWConfig(), stage, 1, offload)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_stays_near_the_reference(reference: list[tuple[float, float]], stage: int) -> None:
    (curve, _), _ = run_world(2, run, 2, stage, torch.bfloat16, 0.1)
    assert curve[-1][0] == pytest.approx(reference[-1][0], rel=0.05)


def hand_over(
    rank: int, world: int, stage: int, state: State | None, dtype: torch.dtype, offload: Offload = "nothing"
) -> tuple[list[float], State]:
    """Ten steps from the start, or from `state`; and the state afterwards."""
    engine = engine_for(model(dtype), AdamWConfig(weight_decay=0.1), stage, MICRO_STEPS, offload)
    if state is not None:
        load(engine, state)
        back = export(engine)
        for name in state:
            for key in TENSOR_NAMES:
                assert torch.equal(back[name][key], state[name][key]), f"{key} of {name} changed on the way"
    curve = train(engine, rank, world, range(10, 20) if state else range(10), dtype)
    return [loss for loss, _ in curve], export(engine)


@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "parameters")])
def test_resume_with_offload_is_bit_identical(stage: int, offload: Offload) -> None:
    """As without a resume; not as without offload, where DeepSpeed sums the squares of a norm in another order."""
    (_, state), _ = run_world(2, hand_over, 2, stage, None, torch.float32, offload)
    (losses, _), _ = run_world(2, hand_over, 2, stage, state, torch.float32, offload)
    (straight, _), _ = run_world(2, run_twenty, 2, stage, torch.float32, offload)
    assert losses == straight[10:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_on_the_same_world_is_bit_identical(stage: int, dtype: torch.dtype) -> None:
    (_, state), _ = run_world(2, hand_over, 2, stage, None, dtype)
    (losses, _), _ = run_world(2, hand_over, 2, stage, state, dtype)
    (straight, _), _ = run_world(2, run_twenty, 2, stage, dtype)
    assert losses == straight[10:]


def run_twenty(
    rank: int, world: int, stage: int, dtype: torch.dtype, offload: Offload = "nothing"
) -> tuple[list[float], State]:
    engine = engine_for(model(dtype), AdamWConfig(weight_decay=0.1), stage, MICRO_STEPS, offload)
    curve = train(engine, rank, world, range(20), dtype)
    return [loss for loss, _ in curve], {}


def test_state_moves_between_stages_and_worlds() -> None:
    (_, state), _ = run_world(2, hand_over, 2, 2, None, torch.float32)
    (want, _), _ = run_world(2, hand_over, 2, 2, state, torch.float32)
    for world, stage in ((1, 0), (3, 1), (2, 3), (1, 3)):
        got, _ = run_world(world, hand_over, world, stage, state, torch.float32)[0]
        assert got == pytest.approx(want, rel=1e-6), f"stage {stage} on {world} ranks"


def average(rank: int, world: int, stage: int, dtype: torch.dtype) -> tuple[State, dict[str, Tensor]]:
    """Ten steps with an average; and what it should be, from the whole weights after each step.

    The average is warm after the third: (1 + 3) / (10 + 3) is above 0.3.
    """
    engine = engine_for(model(dtype), AdamWConfig(), stage, MICRO_STEPS)
    ema = Ema(engine, 0.3)
    expected = {name: state["master"] for name, state in export(engine).items()}
    for step in range(10):
        train(engine, rank, world, range(step, step + 1), dtype)
        ema.update(step + 1)
        decay = (2 / 11, 3 / 12, 4 / 13)[step] if step < 3 else 0.3
        for name, state in export(engine).items():
            expected[name] = decay * expected[name] + (1 - decay) * state["master"]
    return export(engine, ema.fragments), expected


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (3, 0), (3, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_average_follows_the_weights(world: int, stage: int, dtype: torch.dtype) -> None:
    for state, expected in run_world(world, average, world, stage, dtype):
        for name, want in expected.items():
            assert not torch.equal(state[name][EMA], state[name]["master"])
            torch.testing.assert_close(state[name][EMA], want, rtol=1e-6, atol=1e-7)


GUARDED: tuple[tuple[int, torch.dtype, Offload], ...] = (
    (0, torch.float64, "nothing"),
    (0, torch.bfloat16, "nothing"),
    *((stage, dtype, "nothing") for stage in (1, 2, 3) for dtype in (torch.float32, torch.bfloat16)),
    (2, torch.float32, "optimizer"),
    (3, torch.bfloat16, "parameters"),
)


def run_guarded(rank: int, world: int) -> list[list[tuple[State, list[float]]]]:
    """Four steps, the second with a loss that is no number, the third with too large a norm; and the others alone."""
    return [[guarded_steps(rank, world, *case, steps) for steps in ((0, 1, 2, 3), (0, 3))] for case in GUARDED]


def guarded_steps(
    rank: int, world: int, stage: int, dtype: torch.dtype, offload: Offload, steps: tuple[int, ...]
) -> tuple[State, list[float]]:
    engine = engine_for(model(dtype), AdamWConfig(weight_decay=0.1), stage, MICRO_STEPS, offload)
    norms = []
    for step in steps:
        for _ in range(MICRO_STEPS):
            x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
            loss = engine.forward(x[rank::world]).float().square().sum()
            engine.backward(loss * math.nan if step == 1 and rank == 0 else loss)
        norms.append(engine.step(1e-2, 1e-3 if step == 2 else sys.float_info.max))
    state = export(engine)
    engine.destroy()
    return state, norms


def test_no_update_from_what_is_not_finite_or_too_large() -> None:
    """Masters and moments are as if the step had not been; its norm is told."""
    for case, ((state, norms), (expected, of_others)) in zip(GUARDED, run_world(2, run_guarded, 2)[0], strict=True):
        assert [norms[0], norms[3]] == of_others, case
        assert not math.isfinite(norms[1]), case
        assert 1e-3 < norms[2] < math.inf, case
        for name, tensors in expected.items():
            for key, tensor in tensors.items():
                assert torch.equal(state[name][key], tensor), (case, name, key)


GPU = torch.device("meta")  # stands in for one: it too is not the CPU


def on_gpu(dtype: torch.dtype) -> nn.Module:
    """A module whose parameters say that they are there."""
    return nn.ParameterDict({n: torch.empty(s, dtype=dtype, device=GPU) for n, s in {"w": (3, 3), "b": (3,)}.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_state_of_the_optimizer_is_where_the_parameter_is(dtype: torch.dtype) -> None:
    """The fused AdamW of a GPU refuses a counter of updates that is on the CPU."""
    engine = PlainEngine(on_gpu(dtype), AdamWConfig())
    engine.held()
    for updates in (0, 7):
        states = engine.optimizer.state
        assert len(states) == len(engine.masters) == 2
        for master, state in states.items():
            assert master.device == GPU
            assert {key: t.device for key, t in state.items()} == dict.fromkeys(("step", *TENSOR_NAMES[1:]), GPU)
            assert state["step"].dtype == torch.float32
        engine.refresh(updates)
    assert {t.device for f in engine.held() for t in f.tensors.values()} == {GPU}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("device", [GPU, torch.device("cpu")])  # offloaded state is on the CPU, and its counter too
def test_state_that_is_made_for_deepspeed_is_where_the_partition_is(stage: int, device: torch.device) -> None:
    names = {1: "fp32_groups_flat_partition", 2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}
    partition = torch.zeros(8, device=device)
    inner = SimpleNamespace(state={})
    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)
    engine.stage, engine.module, engine.config = stage, nn.Module(), AdamWConfig()
    engine.optimizer = SimpleNamespace(optimizer=inner, update_lp_params=lambda: None, **{names[stage]: [partition]})
    with patch.object(DeepSpeedEngine, "_link_state"):
        engine._make_state()
        devices = {key: t.device for key, t in inner.state[partition].items()}
        assert devices == dict.fromkeys(("step", *TENSOR_NAMES[1:]), device)
        engine.refresh(7)
    assert inner.state[partition]["step"].device == device


@pytest.mark.parametrize("elements", [1000, 10**10])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_settings_of_deepspeed_fit_model_and_device(elements: int, device: str) -> None:
    for stage in (1, 2, 3):
        made = deepspeed_config(torch.bfloat16, 1.0, stage, 1, "optimizer", elements, device)
        zero = made["zero_optimization"]
        assert zero["reduce_bucket_size"] == min(elements, BUCKET if device == "cuda" else BUCKET_CPU)
        assert zero["overlap_comm"] == (stage == 3 and device == "cuda")
        assert zero["offload_optimizer"]["pin_memory"] == (device == "cuda")
        assert made["timers"] == {"throughput": {"enabled": False}}  # which waits for the GPU
