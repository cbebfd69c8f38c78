"""`longreel report`: one HTML page about a run, which can be mailed, archived and read on a phone.

    config.yaml  metrics.jsonl  events.jsonl  samples/  checkpoints/   -->   report.html

Everything is inside the file: curves as SVG, videos and pictures as base64 (a third larger than the files), a few
lines of our own script for the read-out. A Content-Security-Policy forbids the page every request, and every script but
that one, so a prompt or an error message can never become code. A part that is missing is said, not left blank; broken
lines of a record are left out and counted.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from launcher.config import proposed_commands
from launcher.config.run_yaml import parse_yaml
from launcher.core.run_folder import RunFolder, write_whole
from launcher.core.run_records import Steps, read_events, read_steps
from launcher.core.terminal import visible
from launcher.reports import charts
from launcher.reports.charts import Curve, Mark, Numbers, chart
from parallel import shell
from parallel.errors import InputError
from parallel.parsing import ParseError, parse_json

MOST_SAMPLES = 24  # newest videos on the page
MOST_SHEETS = 4  # newest contact sheets
MOST_BYTES = 64 << 20  # of videos and sheets together; what is beyond is named
MOST_EVENTS = 300  # newest rows of the table
RECENT = 20  # steps that the "recent" loss averages
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        root: the folder.
        config: the resolved run as plain values; empty if config.yaml is broken.
        config_text: config.yaml as it is.
        steps: of metrics.jsonl, as columns.
        events: lines of events.jsonl in the order of their writing.
        broken: file -> lines that are no record.
    """

    root: Path
    config: Row
    config_text: str
    steps: Steps
    events: Sequence[Row]
    broken: Mapping[str, int]

    def of(self, *names: str) -> list[Row]:
        """The events of these names."""
        return [e for e in self.events if e.get("event") in names]

    def setting(self, key: str) -> Any:
        """A value of the config by its dotted key; None if it is not there."""
        here: Any = self.config
        for name in key.split("."):
            here = here.get(name) if isinstance(here, Mapping) else None
        return here


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder; gives its path.

    Raises:
        InputError: the folder is not that of a run.
    """
    return write_page(read_run(run))


def write_page(run: Run) -> Path:
    """The same for a run that was read."""
    path = run.root / "report.html"
    write_whole(path, render(run).encode("utf-8", "replace"))
    return path


def read_run(root: Path) -> Run:
    """Read what a run wrote. The run may still be going on."""
    folder = RunFolder(root)
    for path, remedy in (
        (folder.config, "give the `out` folder of a run"),
        (folder.metrics, proposed_commands.train(root)),
    ):
        if not path.is_file():
            raise InputError(f"a run folder holds {path.name}", f"{root} does not", remedy)
    text = folder.config.read_text(errors="replace")
    try:
        config, _ = parse_yaml(text, folder.config.name)
    except InputError:
        config = None
    steps = read_steps(folder.metrics)
    events, broken_events = read_events(folder.events)
    broken = {folder.metrics.name: steps.broken, folder.events.name: broken_events}
    return Run(root, config if isinstance(config, dict) else {}, text, steps, events, broken)


def render(run: Run) -> str:
    """The page."""
    name = escape(run.root.resolve().name)
    script = charts.SCRIPT + SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parts = (_summary, _figures, _charts, _gallery, _events, _checkpoints, _config, _footer)
    body = "".join(part(run) for part in parts)
    return (
        f'<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta http-equiv=Content-Security-Policy content="'
        f'{policy}">\n<meta name=viewport content="width=device-width,initial-scale=1"><meta name=color-scheme '
        f'content="light dark"><title>{name} · longreel</title>\n<style>{STYLE}{charts.STYLE}</style></head>\n'
        f"<body><main><h1>{name}</h1>{body}</main>\n<script>{script}</script></body></html>\n"
    )


def escape(text: str) -> str:
    """Text of others for the page: it is no HTML, turns no direction of writing, and holds no control characters."""
    return html.escape(visible(text))


def number(value: Any) -> float | None:
    """A finite figure, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None  # NaN and infinity fail the comparison too


def short(value: float) -> str:
    """Three digits: 0.0123, 812, 12.3 k, 4.56 M."""
    for suffix in ("", " k", " M", " G", " T", " P"):
        if abs(value) < 999.5:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.4g} E"


def size_text(size: float) -> str:
    """Bytes in binary units."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def duration(seconds: float) -> str:
    """0.123 s, 12.3 s, 4 min 5 s, 3 h 2 min, 2 d 3 h."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for limit, big, small, names in ((3600, 60, 1, "min s"), (86400, 3600, 60, "h min")):
        if whole < limit:
            first, second = names.split()
            return f"{whole // big} {first} {whole % big // small} {second}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: Any) -> str:
    """A UTC time from unix seconds."""
    found = number(seconds)
    try:
        return "-" if found is None else f"{datetime.fromtimestamp(found, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return "-"


def state_of(run: Run) -> str:
    """How the run stands, from its last event."""
    last = next((e["event"] for e in reversed(run.of("start", "resume", "restart", "failure", "stop", "done"))), "")
    total, done = run.setting("steps"), run.steps.done
    if last == "done" or (isinstance(total, int) and 0 < total <= done):
        return "finished"
    return {"stop": "stopped on request", "failure": "failed"}.get(last, "still running, or killed without a word")


def wall_seconds(run: Run) -> float | None:
    """From the beginning of the first step to the end of the last."""
    times = run.steps.known("time")
    if not len(times):
        return None
    return float(times.max() - times.min()) + (number(run.steps.first.get("seconds")) or 0.0)


def samples_seen(run: Run) -> str:
    """How many samples were trained on, as far as the record names them."""
    named = run.steps.known("samples")
    count, rest = int(named.sum()), len(run.steps) - len(named)
    if not rest:
        return f"{count:,}"
    if not len(named):
        return "unknown"
    return f"{count:,} in {len(named):,} steps; {rest:,} larger steps are recorded by a digest"


def _summary(run: Run) -> str:
    total, done = run.setting("steps"), run.steps.done
    of_total = f" of {total:,}" if isinstance(total, int) else ""
    said = [f"This run has done <b>{done:,}{of_total} steps</b> and is <b>{state_of(run)}</b>."]
    losses, tokens, rates = (run.steps.known(name) for name in ("loss", "tokens", "tokens_per_second"))
    if len(losses):
        said.append(f"Its loss went from {losses[0]:.4g} to <b>{losses[-1]:.4g}</b>{_percent(losses[-1], losses[0])}.")
    wall = wall_seconds(run)
    if len(tokens) and wall is not None:
        speed = f", at a median of {short(median(rates))} tokens a second" if len(rates) else ""
        said.append(f"It saw {short(tokens.sum())} tokens in {_unbroken(duration(wall))}{speed}.")
    restarts = len(run.of("restart"))
    if restarts:
        said.append(f"It was restarted {'once' if restarts == 1 else f'{restarts:,} times'} after a failure.")
    if not len(run.steps):
        said.append("There is nothing to draw before the first step ends.")
    return f"<p class=lead>{' '.join(said)}</p>{_broken_lines(run)}"


def _percent(last: float, first: float) -> str:
    return f", which is {100 * last / first:.3g} % of the first" if first > 0 else ""


def _unbroken(text: str) -> str:
    return text.replace(" ", "&nbsp;")


def _broken_lines(run: Run) -> str:
    said = [
        f"{_counted(count, 'line')} of {name} {'are' if count > 1 else 'is'} broken and left out"
        for name, count in run.broken.items()
        if count
    ]
    return f"<p class=warn>{'; '.join(said)}. A kill leaves one such line at most.</p>" if said else ""


def _figures(run: Run) -> str:
    cards = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd><dd class=soft>{escape(note)}</dd></div>"
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
    restarts, resumes = (_counted(len(run.of(name)), name) for name in ("restart", "resume"))
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


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


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


def median(values: Numbers) -> float:
    """Of figures without gaps."""
    return float(np.median(values))


def _charts(run: Run) -> str:
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


def flop_speeds(run: Run) -> Numbers:
    """Floating-point operations a second of each step, over all ranks; NaN where they are not known."""
    flops, seconds = run.steps.column("flops"), run.steps.column("seconds")
    return np.divide(flops, seconds, out=np.full_like(flops, np.nan), where=seconds > 0)


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


def _gallery(run: Run) -> str:
    folder = RunFolder(run.root).samples
    videos, sheets = (_newest_first(folder, pattern) for pattern in ("*.mp4", "*.png"))
    if not videos and not sheets:
        command = escape(shell.join(["longreel", "sample", str(run.root)]))
        return f"<h2>Samples</h2><p class=soft>no samples yet: <code>{command}</code></p>"
    room = _Room(MOST_BYTES)
    shown = "".join(_video(path, room) for path in videos[:MOST_SAMPLES])
    pictures = "".join(_sheet(path, room) for path in sheets[:MOST_SHEETS])
    left_out = []
    for what, there, most in (("video", videos, MOST_SAMPLES), ("contact sheet", sheets, MOST_SHEETS)):
        if len(there) > most:
            left_out.append(_counted(len(there) - most, f"older {what}"))
    if room.refused:
        names = ", ".join(room.refused)
        left_out.append(f"what does not fit into {size_text(MOST_BYTES)} or cannot be read ({names})")
    note = f"<p class=soft>Left out: {escape('; '.join(left_out))}. They are in samples/.</p>" if left_out else ""
    return f"<h2>Samples</h2><div class=gallery>{shown}</div>{note}{pictures}"


class _Room:
    """How much may still be put into the page, and what was not."""

    def __init__(self, left: int) -> None:
        self.left, self.refused = left, list[str]()

    def take(self, path: Path) -> str | None:
        """The file as base64."""
        try:
            if path.stat().st_size <= self.left:
                data = path.read_bytes()
                self.left -= len(data)
                return base64.b64encode(data).decode()
        except OSError:
            pass  # gone meanwhile: it is named like one that is too large
        self.refused.append(path.name)
        return None


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    found = []
    for path in folder.glob(pattern):
        try:
            found.append((-path.stat().st_mtime, path))
        except OSError:
            continue  # gone meanwhile
    return [path for _, path in sorted(found)]


def _video(path: Path, room: _Room) -> str:
    data = room.take(path)
    if data is None:
        return ""
    made = _json(path.with_suffix(".json"))
    prompt = escape(str(made.get("prompt", path.name)))
    words = (("seed", "seed"), ("steps", "steps"), ("guidance", "guidance"), ("checkpoint_step", "from step"))
    how = escape(", ".join(f"{word} {made[key]}" for key, word in words if key in made))
    return (
        f'<figure class=card><video autoplay loop muted playsinline src="data:video/mp4;base64,{data}"></video>'
        f"<figcaption>{prompt}<br><span class=soft>{how or 'no .json beside it'}</span></figcaption></figure>"
    )


def _sheet(path: Path, room: _Room) -> str:
    data = room.take(path)
    if data is None:
        return ""
    name = escape(path.name)
    return (
        f'<figure class="card sheet"><div class=scroll><img alt="contact sheet {name}" '
        f'src="data:image/png;base64,{data}"></div><figcaption class=soft>{name}</figcaption></figure>'
    )


SAYS: dict[str, Callable[[Row], str]] = {
    "start": lambda e: f"to {e['steps']} steps on {e['mesh']}, {e['samples']} samples",
    "resume": lambda e: f"from {e['checkpoint']}",
    "fallback": lambda e: f"{e['checkpoint']} is broken and was passed over: {e['reason']}",
    "failure": lambda e: f"rank {e['rank']} {e['how']}: {e['reason']}",
    "restart": lambda e: f"all ranks, {e['attempt']} of {e['limit']}",
}
ROUTINE = ("ranks", "checkpoint")  # events with a place elsewhere on the page, or none


def _events(run: Run) -> str:
    there = [e for e in run.events if e.get("event") not in ROUTINE]
    if not there:
        return "<h2>Events</h2><p class=soft>no events are recorded</p>"
    counts = Counter(str(e.get("event", "?")) for e in there)
    begin = number(run.events[0].get("time"))
    rows = "".join(_event_row(e, begin) for e in there[-MOST_EVENTS:])
    more = len(there) - MOST_EVENTS
    note = f"<p class=soft>{more:,} older events are left out; they are in events.jsonl.</p>" if more > 0 else ""
    said = escape(", ".join(f"{name} {count}" for name, count in counts.items()))
    head = "<tr><th>event<th class=n>step<th>what<th>after<th>time (UTC)</tr>"
    return f"<h2>Events</h2><p class=soft>{said}</p><div class='card scroll'><table>{head}{rows}</table></div>{note}"


def _event_row(event: Row, begin: float | None) -> str:
    name, now = str(event.get("event", "?")), number(event.get("time"))
    after = "-" if now is None or begin is None else duration(max(0.0, now - begin))
    step = number(event.get("step"))
    try:
        said = SAYS[name](event)
    except KeyError:  # an event of another kind or version: all its fields
        rest = {k: v for k, v in event.items() if k not in ("time", "event", "step", "trace", "message")}
        said = ", ".join(f"{key} {value}" for key, value in rest.items())
    long = event.get("trace") or event.get("message")
    details = f"<details><summary>all of it</summary><pre>{escape(str(long))}</pre></details>" if long else ""
    kind = "bad" if name in ("failure", "fallback") else "good" if name in ("resume", "done") else ""
    return (
        f"<tr><td class='{kind}'>{escape(name)}<td class=n>{'' if step is None else f'{step:,.0f}'}"
        f"<td class=what>{escape(said)}{details}<td class=t>{after}<td class=t>{clock(now)}</tr>"
    )


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk; `broken` says what is wrong with its manifest, `step` is then None."""

    name: str
    step: int | None
    size: int
    parts: int
    time: float | None
    broken: str = ""


def checkpoints_of(run: Run) -> list[Saved]:
    """What lies in `checkpoints/`, newest first. Hashes are not compared: that is the resume's business."""
    found = []
    for path in sorted(RunFolder(run.root).checkpoints.glob("step-*"), reverse=True):
        manifest = _json(path / "manifest.json")
        step, parts = manifest.get("step"), manifest.get("parts")
        whole = isinstance(step, int)
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            time = (path / "manifest.json").stat().st_mtime
        except OSError:
            size, time, whole = 0, None, False
        broken = "" if whole else "manifest.json is missing or broken"
        count = len(parts) if isinstance(parts, list) else 0
        found.append(Saved(path.name, step if whole else None, size, count, time, broken))
    return found


def _checkpoints(run: Run) -> str:
    there, written = checkpoints_of(run), run.of("checkpoint")
    if not there:
        return "<h2>Checkpoints</h2><p class=soft>no checkpoints yet: see <code>checkpoint.every</code></p>"
    took = {number(e.get("step")): number(e.get("seconds")) for e in written}
    rows = ""
    for one in there:
        seconds = took.get(one.step) if one.step is not None else None
        rows += (
            f"<tr><td class=t>{escape(one.name)}<td class=n>{size_text(one.size)}<td class=n>{one.parts or '-'}"
            f"<td class=n>{'-' if seconds is None else duration(seconds)}<td class=t>{clock(one.time)}"
            f"<td class=bad>{one.broken}</tr>"
        )
    head = "<tr><th>name<th class=n>size<th class=n>parts<th class=n>to save<th>written (UTC)<th></tr>"
    total = size_text(sum(one.size for one in there))
    said = f"{len(there)} on disk, {total}" + (f"; {len(written)} were written" if len(written) > len(there) else "")
    return f"<h2>Checkpoints</h2><p class=soft>{said}</p><div class='card scroll'><table>{head}{rows}</table></div>"


def _config(run: Run) -> str:
    note = "" if run.config else "<p class=warn>config.yaml is no YAML mapping: shown as it is.</p>"
    text = escape(run.config_text)
    return f"<h2>Config</h2>{note}<details class=card><summary>config.yaml</summary><pre>{text}</pre></details>"


def _footer(run: Run) -> str:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    command = escape(shell.join(["longreel", "report", str(run.root)]))
    return f"<footer class=soft>written {now} UTC; again with <code>{command}</code></footer>"


def _json(path: Path) -> Row:
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ParseError):
        return {}
    return found if isinstance(found, dict) else {}


STYLE = """
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1b1f24;--soft:#626b76;--line:#e4e5e7;
--c1:#2a63d6;--c2:#c96f0e;--c3:#626b76;--good:#15803d;--bad:#c8281e}
@media(prefers-color-scheme:dark){:root{--bg:#101317;--card:#191d23;--ink:#e7e9ec;--soft:#9aa4b0;--line:#2b313a;
--c1:#74a7ff;--c2:#f2a24c;--c3:#9aa4b0;--good:#5bd17c;--bad:#ff7d73}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:70rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
p{margin:.3rem 0 .7rem}.lead{font-size:1.08rem;max-width:46rem}
.soft{color:var(--soft)}.warn,.bad{color:var(--bad)}.good{color:var(--good)}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}code{overflow-wrap:anywhere}
pre{margin:.6rem 0 0;overflow-x:auto}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem 1rem;margin:0}
.grid,.gallery,dl{display:grid;gap:.9rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.grid{margin-top:.9rem}
dl{grid-template-columns:repeat(auto-fill,minmax(min(44%,11.5rem),1fr));gap:1rem 1.4rem}
dt,dl .soft,figcaption,table{font-size:.88rem}dt{color:var(--soft)}
dd{margin:0;font-size:1.3rem;line-height:1.3;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.gallery{grid-template-columns:repeat(auto-fill,minmax(min(46%,11rem),1fr))}
.gallery figure{padding:.5rem}.gallery figcaption{padding:.4rem .2rem 0;line-height:1.35;overflow-wrap:anywhere}
video{display:block;width:100%;border-radius:6px;background:#000}
.sheet{margin-top:.9rem}.sheet img{display:block;max-width:max(100%,36rem);border-radius:4px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}th{font-weight:600;text-align:left;color:var(--soft)}
th,td{padding:.35rem 1.3rem .35rem 0;vertical-align:top;border-bottom:1px solid var(--line)}
tr:last-child td{border-bottom:0}.what{overflow-wrap:anywhere;width:60%;min-width:11rem}
.n{text-align:right}.n,.t{white-space:nowrap;font-variant-numeric:tabular-nums}
summary{cursor:pointer}details details{margin:0}td pre{max-width:60rem;white-space:pre-wrap}
footer{margin-top:2.5rem;font-size:.85rem}
@media print{.card{break-inside:avoid}}
"""

SCRIPT = """
const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
for (const video of document.querySelectorAll('video')) {
  if (calm) { video.removeAttribute('autoplay'); video.pause(); }
  video.addEventListener('click', () => video.paused ? video.play() : video.pause());
}
"""
