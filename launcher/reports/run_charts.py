"""The curves of a report: loss with its marks, and the smaller charts of speed, memory and learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from launcher.core.text import number
from launcher.reports import charts
from launcher.reports.charts import Curve, Mark, Numbers, chart
from launcher.reports.recorded_run import Run, checkpoints_of, flop_speeds


def charts_of(run: Run) -> str:
    """The section of the page."""
    steps = run.steps.column("step")
    if not len(steps):
        return "<h2>Curves</h2><p class=soft>no steps yet</p>"
    speeds, speed_unit = _in_units(flop_speeds(run), (("MFLOP/s", 1e6), ("GFLOP/s", 1e9), ("TFLOP/s", 1e12)))

    def draw(title: str, *curves: Curve, unit: str = "", log: bool = False) -> str:
        return chart(title, steps, curves, unit, log=log, zero=True)

    def measured(name: str, key: str) -> Curve:
        return Curve(name, run.steps.column(key), "median")

    measured_share = Curve("share", 100 * run.steps.column("mfu"), "median")
    waits = Curve("wait for data", run.steps.column("data_seconds"), "area", colour=2)
    small = (
        draw("Gradient norm", measured("norm", "grad_norm"), log=True),
        draw("Learning rate", Curve("rate", run.steps.column("learning_rate"))),
        draw("Throughput", measured("tokens/s", "tokens_per_second"), unit="tokens a second, all ranks"),
        draw("Step time", waits, measured("whole step", "seconds"), unit="seconds"),
        draw("Compute", Curve("speed", speeds, "median"), unit=f"{speed_unit}, all ranks, by exact mask area"),
        _memory_chart(run, steps),
        *([draw("MFU", measured_share, unit="% of the GPU's dense bf16 peak")] if len(run.steps.known("mfu")) else []),
    )
    loss = chart("Loss", steps, [Curve("loss", run.steps.column("loss"), "mean")], marks=marks_of(run), log=True)
    each = charts.thinning(len(steps))
    said = f"<p class=soft>A point stands for {each:,} steps: bands are their range, the rest their mean.</p>"
    note = said if each > 1 else ""
    return f"<h2>Curves</h2>{note}<div class=wide>{loss}</div><div class=grid>{''.join(small)}</div>"


def _memory_chart(run: Run, steps: Numbers) -> str:
    """Peak, reserved and allocated bytes of the fullest rank, under what its GPU has; of a CPU's rank, its process."""
    of = run.steps.memory_of
    gpu = "gpu" in of
    names = {
        "memory_bytes": "peak" if gpu else "peak so far",
        "memory_allocated": f"{'allocated' if gpu else 'resident'} after the step",
    }
    if gpu:
        names = {"memory_total": "of the GPU", "memory_reserved": "reserved"} | names
    columns = {name: run.steps.column(name) for name in names}
    largest = max((known.max() for name in names if len(known := run.steps.known(name))), default=0.0)
    unit, divisor = _unit_of(largest, (("MiB", 2.0**20), ("GiB", 2.0**30)))
    looks: dict[str, tuple[Literal["line", "area"], int]] = {
        "memory_total": ("line", 3), "memory_reserved": ("line", 2), "memory_allocated": ("area", 1),
    }  # fmt: skip
    curves = [
        Curve(names[name], column / divisor, *looks.get(name, ("line", 1)))
        for name, column in columns.items()
        if len(run.steps.known(name))
    ]
    whose = "fullest GPU" if gpu else "resident set of the largest rank" if "process" in of else "rank 0"
    return chart("Memory", steps, curves, f"{unit}, {whose}", zero=True)


def marks_of(run: Run) -> list[Mark]:
    """Checkpoints, failures and resumes, for the loss chart."""
    saved = {number(e.get("step")) for e in run.of("checkpoint")}
    saved |= {number(c.step) for c in checkpoints_of(run)}
    marks = [Mark(step, "checkpoint") for step in sorted(s for s in saved if s is not None)]
    for event in run.of("failure", "resume"):
        step = number(event.get("step"))
        if step is not None:
            marks.append(Mark(step, event["event"]))
    return marks


def _in_units(values: Numbers, units: Sequence[tuple[str, float]]) -> tuple[Numbers, str]:
    """The values in the largest unit that the largest of them fills."""
    unit, divisor = _unit_of(float(np.nanmax(values)) if not np.isnan(values).all() else 0.0, units)
    return values / divisor, unit


def _unit_of(largest: float, units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The largest unit that a value fills."""
    return next((u for u in reversed(units) if largest >= u[1]), units[0])
