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
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from launcher.core.run_folder import write_whole
from launcher.core.text import clock, counted, duration, escape_html, number, short, size_text
from launcher.reports.key_figures import figures
from launcher.reports.page_files import page_file
from launcher.reports.recorded_run import (
    Row,
    Run,
    checkpoints_of,
    median,
    read_run,
    state_of,
    wall_seconds,
)
from launcher.reports.run_charts import charts_of
from launcher.reports.sample_gallery import gallery
from parallel import shell

STYLES, SCRIPTS = ("run_report.css", "charts.css"), ("charts.js", "run_report.js")  # in page/, in this order
MOST_EVENTS = 300  # newest rows of the table


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


def render(run: Run) -> str:
    """The page."""
    name = escape_html(run.root.resolve().name)
    script = "".join("\n" + page_file(part) for part in SCRIPTS)
    style = "".join("\n" + page_file(part) for part in STYLES)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parts = (_summary, figures, charts_of, gallery, _events, _checkpoints, _config, _footer)
    body = "".join(part(run) for part in parts)
    return (
        f'<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta http-equiv=Content-Security-Policy content="'
        f'{policy}">\n<meta name=viewport content="width=device-width,initial-scale=1"><meta name=color-scheme '
        f'content="light dark"><title>{name} · longreel</title>\n<style>{style}</style></head>\n'
        f"<body><main><h1>{name}</h1>{body}</main>\n<script>{script}</script></body></html>\n"
    )


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
        f"{counted(count, 'line')} of {name} {'are' if count > 1 else 'is'} broken and left out"
        for name, count in run.broken.items()
        if count
    ]
    return f"<p class=warn>{'; '.join(said)}. A kill leaves one such line at most.</p>" if said else ""


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
    said = escape_html(", ".join(f"{name} {count}" for name, count in counts.items()))
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
    details = f"<details><summary>all of it</summary><pre>{escape_html(str(long))}</pre></details>" if long else ""
    kind = "bad" if name in ("failure", "fallback") else "good" if name in ("resume", "done") else ""
    return (
        f"<tr><td class='{kind}'>{escape_html(name)}<td class=n>{'' if step is None else f'{step:,.0f}'}"
        f"<td class=what>{escape_html(said)}{details}<td class=t>{after}<td class=t>{clock(now)}</tr>"
    )


def _checkpoints(run: Run) -> str:
    there, written = checkpoints_of(run), run.of("checkpoint")
    if not there:
        return "<h2>Checkpoints</h2><p class=soft>no checkpoints yet: see <code>checkpoint.every</code></p>"
    took = {number(e.get("step")): number(e.get("seconds")) for e in written}
    rows = ""
    for one in there:
        seconds = took.get(one.step) if one.step is not None else None
        rows += (
            f"<tr><td class=t>{escape_html(one.name)}<td class=n>{size_text(one.size)}<td class=n>{one.parts or '-'}"
            f"<td class=n>{'-' if seconds is None else duration(seconds)}<td class=t>{clock(one.time)}"
            f"<td class=bad>{one.broken}</tr>"
        )
    head = "<tr><th>name<th class=n>size<th class=n>parts<th class=n>to save<th>written (UTC)<th></tr>"
    total = size_text(sum(one.size for one in there))
    said = f"{len(there)} on disk, {total}" + (f"; {len(written)} were written" if len(written) > len(there) else "")
    return f"<h2>Checkpoints</h2><p class=soft>{said}</p><div class='card scroll'><table>{head}{rows}</table></div>"


def _config(run: Run) -> str:
    note = "" if run.config else "<p class=warn>config.yaml is no YAML mapping: shown as it is.</p>"
    text = escape_html(run.config_text)
    return f"<h2>Config</h2>{note}<details class=card><summary>config.yaml</summary><pre>{text}</pre></details>"


def _footer(run: Run) -> str:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    command = escape_html(shell.join(["longreel", "report", str(run.root)]))
    return f"<footer class=soft>written {now} UTC; again with <code>{command}</code></footer>"
