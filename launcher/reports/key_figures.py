"""The first cards of a report: loss, tokens, time, speed, memory and failures of a run, in a figure and a note each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from launcher.core.text import counted, duration, escape_html, number, short, size_text
from launcher.reports.charts import Numbers
from launcher.reports.recorded_run import Run, flop_speeds, median, samples_seen, wall_seconds


def figures(run: Run) -> str:
    """The section of the page."""
    cards = "".join(
        f"<div><dt>{name}</dt><dd>{escape_html(value)}</dd><dd class=soft>{escape_html(note)}</dd></div>"
        for name, value, note in _key_figures(run)
    )
    return f"<h2>Key figures</h2><dl class=card>{cards}</dl>"


def _key_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Name, value and note of each."""
    losses, tokens, seconds = (run.steps.known(name) for name in ("loss", "tokens", "seconds"))
    if len(losses):
        first, last, least = losses[:RECENT].mean(), losses[-RECENT:].mean(), losses.min()
        several = min(RECENT, len(losses))
        percent = f"{100 * last / first:.3g} % of the first {several}" if first > 0 else f"first {several}: {first:.4g}"
        yield f"Loss, mean of last {several}", f"{last:.4g}", percent
        yield "Lowest loss", f"{least:.4g}", f"at step {_first(run, 'loss', least, 'step'):,.0f}"
    if len(tokens):
        yield "Tokens", short(tokens.sum()), f"{short(median(tokens))} a step"
        yield "Samples seen", samples_seen(run), ""
    wall = wall_seconds(run)
    if wall is not None:
        yield "Wall time", duration(wall), f"{duration(seconds.sum())} of it in steps that count"
    yield from _speed_figures(run, seconds)
    yield from _device_figures(run)
    mesh = {axis: run.setting(f"mesh.{axis}") for axis in ("replica", "ring", "ulysses")}
    if all(isinstance(n, int) for n in mesh.values()):
        yield "Ranks", f"{math.prod(mesh.values()):,}", " x ".join(f"{axis} {n}" for axis, n in mesh.items())
    if run.setting("dtype"):
        yield "Precision", str(run.setting("dtype")), f"ZeRO stage {run.setting('zero.stage')}"
    restarts, resumes = (counted(len(run.of(name)), name) for name in ("restart", "resume"))
    yield "Failures", str(len(run.of("failure"))), f"{restarts}, {resumes}"


def _device_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Memory of the fullest rank, share of the device's peak, attention's kernel."""
    last = run.steps.last
    memory, total = run.steps.known("memory_bytes"), number(last.get("memory_total"))
    if len(memory):
        most = memory.max()
        at = _first(run, "memory_bytes", most, "memory_rank", backwards=True)
        rank = f"rank {0 if math.isnan(at) else at:.0f}"
        of = f"of {size_text(total)} of its GPU, " if total and last.get("memory_of") == "gpu" else ""
        kind = "resident set of " if last.get("memory_of") == "process" else ""
        yield "Peak memory", size_text(most), f"{of}{kind}{rank}" if of or kind else f"of {rank}"
    shares = run.steps.known("mfu")
    if len(shares):
        note = f"median; highest {100 * shares.max():.3g} %; of dense bf16"
        yield "MFU", f"{100 * median(shares):.3g} %", note
    if last.get("kernel"):
        waits = number(last.get("host_waits"))
        note = "" if waits is None else f"the host waits for the GPU {waits:.0f} times a step"
        yield "Attention kernel", str(last["kernel"]), note


def _speed_figures(run: Run, seconds: Numbers) -> Iterator[tuple[str, str, str]]:
    rates, waits = run.steps.known("tokens_per_second"), run.steps.known("data_seconds")
    if len(rates):
        yield "Tokens a second", short(median(rates)), f"median; highest {short(rates.max())}"
    if len(seconds) and len(waits):
        share = 100 * waits.sum() / (seconds.sum() or 1.0)
        yield "Seconds a step", f"{median(seconds):.3g}", f"median; {share:.3g} % of all waits for data"
    speeds = flop_speeds(run)
    speeds = speeds[~np.isnan(speeds)]
    if len(speeds):
        note = f"median, all ranks, by exact mask area; {_flop(run.steps.known('flops').sum())} in all"
        yield "Compute", f"{_flop(median(speeds))}/s", note


def _flop(value: float) -> str:
    figure, _, suffix = short(value).partition(" ")
    return f"{figure} {suffix}FLOP"


def _first(run: Run, name: str, value: float, of: str, backwards: bool = False) -> float:
    """The figure `of` at the first step, or at the last, at which figure `name` has a value."""
    places = np.flatnonzero(run.steps.column(name) == value)
    return float(run.steps.column(of)[places[-1 if backwards else 0]])


RECENT = 20  # steps that the "recent" loss averages
