"""Seeking in a plan of ten million samples of log-normal lengths, and how full and even its packs are.

Seeking is finding the packs of a step at a random cursor, nothing kept from before; CPU-seconds of its one thread
stand beside, because others may have the cores. Fill and imbalance are those of an
epoch of the first million samples: the plan packs window by window, so more samples only add windows.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Literal

from benchmarks.data_measure import Row
from data.planning.data_plan import Cursor, DataPlan, window_for
from data.planning.mix import Mix
from data.planning.simulate import log_normal_lengths, simulate
from data.streams.curriculum import Position

MEAN, SIGMA, DIM = 8192, 1.0, 3072  # tokens of a sample, spread of their logarithm, width of the model
PACK_TOKENS = (1 << 15, 1 << 18, 1 << 20)
PACKS_PER_STEP = (8, 32)
PACKS_OF_A_REPLICA = 4
SEEKS = 20
SEEK_GOAL, FILL_GOAL, IMBALANCE_GOAL, STATE_GOAL = 0.05, 0.99, 1.05, 1024
SIMULATED = 1_000_000  # samples of the epoch


def measure(samples: int) -> list[Row]:
    """Rows of all kinds of packs."""
    rows = []
    for tokens in PACK_TOKENS:
        lengths = log_normal_lengths(samples, MEAN, SIGMA, tokens)
        costs = lengths * (lengths + 6.0 * DIM)
        for packs in PACKS_PER_STEP:
            window = window_for(lengths, tokens, packs)
            plan = DataPlan(lengths, costs, Mix((samples,)), tokens, packs, 0, window)
            few = min(SIMULATED, samples)
            small = DataPlan(lengths[:few], costs[:few], Mix((few,)), tokens, packs, 0, window)
            rows += _rows(f"packs of {tokens >> 10}K, {packs} a step", plan, small)
    return rows


def _rows(what: str, plan: DataPlan, small: DataPlan) -> list[Row]:
    found = seek_seconds(plan)
    replicas = small.packs_per_step // PACKS_OF_A_REPLICA
    epoch = simulate(small, replicas, 8)
    step = Cursor(99, plan.windows - 1, len(plan.window_at(0, plan.windows - 1, 0)), plan.packs_per_step - 1)
    state = len(Position(10**9, step, "0" * 32, "0" * 32).to_json())
    walls, cpus = [wall for wall, _ in found], [cpu for _, cpu in found]
    figures: list[tuple[str, str, float, float, Literal["above", "below"], str]] = [
        ("seek, median", "seconds", statistics.median(walls), SEEK_GOAL, "below", _cpu(statistics.median(cpus))),
        (f"seek, worst of {SEEKS}", "seconds", max(walls), SEEK_GOAL, "below", _cpu(max(cpus))),
        ("fill", "of the room", epoch.fill, FILL_GOAL, "above", ""),
        (f"imbalance of {replicas} replicas", "times even", epoch.imbalance, IMBALANCE_GOAL, "below", ""),
        ("state", "bytes", state, STATE_GOAL, "below", ""),
    ]
    part = f"plan, {plan.mix.samples:,} samples"
    rounds = {"seconds": walls, "cpu": cpus}
    return [
        Row(part, f"{what}: {name}", unit, float(value), None, float(value), goal, better, note, rounds)
        for name, unit, value, goal, better, note in figures
    ]


def _cpu(seconds: float) -> str:
    return f"{seconds:.4f} CPU-seconds"


def seek_seconds(plan: DataPlan) -> list[tuple[float, float]]:
    """Seconds and CPU-seconds to the packs of one step, at random cursors."""
    chance = random.Random(0)
    found = []
    for _ in range(SEEKS):
        cursor = Cursor(chance.randrange(100), chance.randrange(plan.windows))
        began = time.perf_counter(), time.process_time()
        plan.packs(cursor, plan.packs_per_step)
        found.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return found
