"""What a plan would do on many ranks, without any: an epoch is packed and dealt out, and nothing is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data.planning.data_plan import Cursor, DataPlan
from data.planning.packing import assign
from data.planning.permutation import Ints

SEEKS = 9  # of which the median counts


@dataclass(frozen=True)
class Simulation:
    """One epoch.

    Attributes:
        samples, tokens, windows, packs, steps: of the epoch.
        fill: tokens of the packs over their room.
        least_fill: of the emptiest window.
        imbalance: time of all steps over what it would be with even replicas: each step waits for its slowest.
        worst: the same of the worst step; the last one of the epoch, which may be a part, does not count.
        padding_packs: packs of no weight that fill up replicas with fewer.
        pack_tokens_of_a_rank: largest part of a pack that a rank holds.
        seek_seconds: to the packs of any step, median.
        state_bytes: of the position.
        seconds: that the simulation took.
    """

    samples: int
    tokens: int
    windows: int
    packs: int
    steps: int
    fill: float
    least_fill: float
    imbalance: float
    worst: float
    padding_packs: int
    pack_tokens_of_a_rank: int
    seek_seconds: float
    state_bytes: int
    seconds: float


def simulate(
    plan: DataPlan, replicas: int, sequence_ranks: int, on_progress: Callable[[int, int], None] | None = None
) -> Simulation:
    """One epoch of `plan` on `replicas` groups of `sequence_ranks` ranks; `on_progress` is told (windows done, all)."""
    began = time.monotonic()
    fills, packs, padding_packs = [], 0, 0
    slowest, mean, worst, steps = 0.0, 0.0, 1.0, 0
    begun = np.zeros(0)  # packs of the step that ran over the end of the last window
    for at, (costs, tokens) in enumerate(_windows(plan)):
        fills.append(tokens / (len(costs) * plan.pack_tokens))
        packs += len(costs)
        run = np.concatenate((begun, costs))
        whole = len(run) // plan.packs_per_step if at + 1 < plan.windows else -(-len(run) // plan.packs_per_step)
        begun = run[whole * plan.packs_per_step :]
        for step in (run[s * plan.packs_per_step : (s + 1) * plan.packs_per_step] for s in range(whole)):
            shares = assign(step.tolist(), replicas)
            loads = np.array([step[share].sum() for share in shares])
            padding_packs += sum(max(map(len, shares)) - len(share) for share in shares)
            slowest, mean, steps = slowest + loads.max(), mean + loads.mean(), steps + 1
            if len(step) == plan.packs_per_step:
                worst = max(worst, float(loads.max() / loads.mean()))
        if on_progress:
            on_progress(at + 1, plan.windows)
    total = int(plan.lengths.sum())
    return Simulation(
        samples=plan.mix.samples,
        tokens=total,
        windows=plan.windows,
        packs=packs,
        steps=steps,
        fill=total / (packs * plan.pack_tokens),
        least_fill=min(fills),
        imbalance=slowest / mean,
        worst=worst,
        padding_packs=padding_packs,
        pack_tokens_of_a_rank=-(-plan.pack_tokens // sequence_ranks),
        seek_seconds=_seek_seconds(plan),
        state_bytes=len(Cursor(9, plan.windows, packs, packs).to_json()) + 2 * 32 + 64,
        seconds=time.monotonic() - began,
    )


def log_normal_lengths(samples: int, mean: float, sigma: float, longest: int, seed: int = 0) -> Ints:
    """Token counts [samples] as datasets have them: log-normal, at most `longest`; `mean` before the cut."""
    draws = np.random.Generator(np.random.Philox(seed)).lognormal(np.log(mean) - sigma**2 / 2, sigma, samples)
    return np.clip(draws, 1, longest).astype(np.int64)


def _windows(plan: DataPlan) -> Iterator[tuple[np.ndarray, int]]:
    """(costs of the packs, tokens) of each window of an epoch; steps run on from window to window."""
    head = 0
    for at in range(plan.windows):
        window = plan.window_at(0, at, head)
        head = (head - len(window)) % plan.packs_per_step
        yield window.costs, int(plan.lengths[window.samples].sum())


def _seek_seconds(plan: DataPlan) -> float:
    seconds = []
    for number in range(SEEKS):
        began = time.perf_counter()
        plan.packs(Cursor(number, number * plan.windows // SEEKS), 1)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
