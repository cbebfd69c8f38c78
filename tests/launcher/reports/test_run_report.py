"""The report of made-up runs: what it says, what it survives, and that nothing in it can run or be fetched."""

import base64
import json
import math
import random
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.media.video import encode
from launcher.core.run_folder import keep_steps
from launcher.core.run_records import read_steps
from launcher.core.text import duration, number, short, size_text
from launcher.reports.charts import (
    Curve,
    Mark,
    chart,
    label,
    linear_scale,
    log_scale,
    round_ticks,
    smooth,
    thin,
    thinning,
)
from launcher.reports.run_report import write_report
from launcher.reports.sample_gallery import MOST_SAMPLES, MOST_SHEETS
from parallel.errors import InputError

BEGIN = 1_790_000_000.0
CONFIG = """out: /runs/fake
seed: 0
dtype: bf16
steps: {total}
mesh: {{replica: 1, ring: 2, ulysses: 2}}
zero: {{stage: 2}}
data: {{dataset: /data/shapes, pack_tokens: 32768}}
checkpoint: {{every: 100, keep: 3}}
"""
VOID = {"meta", "img", "br", "input"}
OPTIONAL_END = {"td", "th", "tr"}


def fake_run(root: Path, steps: int = 400, total: int = 500, **changes: Any) -> Path:
    """A run folder with every part; `changes` replace fields of every step."""
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(CONFIG.format(total=total))
    draw = random.Random(0)
    with open(root / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            seconds = 1.4 + 0.2 * draw.random() + (2.0 if step % 90 == 0 else 0.0)
            line = {
                "step": step,
                "loss": 0.12 + 0.9 * math.exp(-step / 60) + 0.03 * draw.random(),
                "grad_norm": 0.3 + 3 * math.exp(-step / 30) * draw.random() + (25 if step == 210 else 0),
                "learning_rate": 1e-4 * min(1.0, step / 40) * 0.5 * (1 + math.cos(math.pi * step / total)),
                "seconds": seconds,
                "data_seconds": 0.1 + 0.1 * draw.random() + (1.8 if step % 90 == 0 else 0.0),
                "flops": 4.1e13,
                "tokens": 32768,
                "tokens_per_second": 32768 / seconds,
                "samples": [f"clip-{step}-{i}" for i in range(8)],
                "memory_bytes": int(3.1 * 2**30 + step * 2**18),
                "time": BEGIN + 1.6 * step + (40 if step > 230 else 0),
                **changes,
            }
            file.write(json.dumps(line) + "\n")
    return root


def with_events(root: Path) -> Path:
    events = [
        {"time": BEGIN, "event": "start", "step": 0, "steps": 500, "samples": 512, "mesh": "replica 1 x ring 2"},
        {"time": BEGIN + 1, "event": "ranks", "places": [{"rank": 0, "node": "a", "pid": 7}]},
        *({"time": BEGIN + 1.6 * s, "event": "checkpoint", "step": s, "seconds": 0.8} for s in (100, 200)),
        {
            "time": BEGIN + 370, "event": "failure", "rank": 1, "how": "died", "step": 231,
            "reason": "killed by SIGKILL <out of memory?>", "trace": "Traceback:\n  File \"x.py\"\nKilled",
        },
        {"time": BEGIN + 371, "event": "restart", "attempt": 1, "limit": 3},
        {"time": BEGIN + 380, "event": "fallback", "checkpoint": "step-00000200", "reason": "part-00001 is missing"},
        {"time": BEGIN + 381, "event": "resume", "step": 100, "checkpoint": "step-00000100"},
        *({"time": BEGIN + 40 + 1.6 * s, "event": "checkpoint", "step": s, "seconds": 0.9} for s in (200, 300, 400)),
        {"time": BEGIN + 700, "event": "quarantine", "samples": 2, "reason": "no frame can be decoded"},
        {"time": BEGIN + 701, "event": "stop", "step": 400},
    ]  # fmt: skip
    (root / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    for step in (200, 300, 400):
        folder = root / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "part-00000.safetensors").write_bytes(bytes(3 << 20))
        (folder / "manifest.json").write_text(json.dumps({"format": 1, "step": step, "parts": [{}, {}]}))
    return root


def clip(seed: int, size: int = 128) -> bytes:
    frames = np.full((8, size, size, 3), 24, np.uint8)
    for i, frame in enumerate(frames):
        frame[40:80, 5 + 10 * i : 40 + 10 * i] = [(seed * 67 + 80) % 256, (seed * 131) % 256, 200]
    return encode(frames, Fraction(8))


def with_samples(root: Path, count: int = 3) -> Path:
    folder = root / "samples"
    folder.mkdir()
    data = clip(0)
    for i in range(count):
        (folder / f"sample-{i:02d}.mp4").write_bytes(data)
        made = {"prompt": f"a red square moving right, number {i}", "seed": i, "steps": 50, "guidance": 4.0}
        (folder / f"sample-{i:02d}.json").write_text(json.dumps({**made, "checkpoint_step": 400}))
    Image.new("RGB", (1000, 160), "teal").save(folder / "sheet-step-400-seed-0.png")
    return root


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on an end tag that fits no begin."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text())
        self.close()
        assert self.open == [], self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID | OPTIONAL_END and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL_END:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data + (" " if data.strip() else "")

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        wanted = attributes.items()
        return [a for t, a in self.tags if t == tag and all(v in (a.get(k.strip("_")) or "") for k, v in wanted)]


def report(root: Path) -> Page:
    path = write_report(root)
    assert path == root / "report.html"
    return Page(path)


def test_a_whole_run_is_told(tmp_path: Path) -> None:
    page = report(with_samples(with_events(fake_run(tmp_path / "fox"))))
    assert page.text.startswith("fox · longreel fox")
    assert "400 of 500 steps and is stopped on request" in page.text
    losses = [json.loads(line)["loss"] for line in (tmp_path / "fox/metrics.jsonl").read_text().splitlines()]
    assert f"went from {losses[0]:.4g} to {losses[-1]:.4g} , which is {100 * losses[-1] / losses[0]:.3g} %" in page.text
    assert "It was restarted once after a failure." in page.text
    for known in ("13.1 M", "3,200", "11 min 20 s", "3.2 GiB", "replica 1 x ring 2 x ulysses 2", "ZeRO stage 2"):
        assert known in page.text, known
    for title in ("Loss", "Gradient norm", "Learning rate", "Throughput", "Step time", "Memory"):
        assert f" {title} " in page.text
    assert len(page.all("figure", class_="chart")) == 7
    assert "rank 1 died: killed by SIGKILL <out of memory?>" in page.text
    assert "samples 2, reason no frame can be decoded" in page.text, "an unknown event shows all its fields"
    assert "3 on disk, 9 MiB; 5 were written" in page.text
    assert "pack_tokens: 32768" in page.text
    assert len(page.all("video")) == 3
    assert "a red square moving right, number 2 seed 2, steps 50, guidance 4.0, from step 400" in page.text


def test_memory_and_use_of_gpus_are_drawn(tmp_path: Path) -> None:
    told = {
        "memory_of": "gpu", "memory_rank": 3, "memory_bytes": 71 << 30, "memory_allocated": 30 << 30,
        "memory_reserved": 90 << 30, "memory_total": 139 << 30, "mfu": 0.43, "kernel": "FlashCUDA", "host_waits": 2,
    }  # fmt: skip
    text = write_report(fake_run(tmp_path / "run", steps=30, **told)).read_text()
    memory = next(chart for chart in text.split("<figure")[1:] if "<b>Memory</b>" in chart)
    assert "GiB, fullest GPU" in memory
    assert re.findall(r"</i>([^<]+) <b class=value>(\d+)</b>", memory) == [
        ("of the GPU", "139"), ("reserved", "90"), ("peak", "71"), ("allocated after the step", "30"),
    ]  # fmt: skip
    share = next(chart for chart in text.split("<figure")[1:] if "<b>MFU</b>" in chart)
    assert "<b class=value>43</b>" in share
    for known in ("of 139 GiB of its GPU, rank 3", "FlashCUDA", "waits for the GPU 2 times a step"):
        assert known in text
    plain = write_report(fake_run(tmp_path / "plain", steps=30)).read_text()
    assert "MFU" not in plain


def test_faults_and_checkpoints_are_lines_on_the_loss_chart(tmp_path: Path) -> None:
    page = report(with_events(fake_run(tmp_path / "run")))
    kinds = {kind: len(page.all("path", class_=f"mark {kind}")) for kind in ("checkpoint", "failure", "resume")}
    assert kinds == {"checkpoint": 2 * 4, "failure": 2, "resume": 2}, "on the linear and the logarithmic chart"


def test_videos_and_pictures_are_inside_and_nothing_is_fetched(tmp_path: Path) -> None:
    root = with_samples(with_events(fake_run(tmp_path / "run")))
    page = report(root)
    video = page.all("video")[0]
    assert {"autoplay", "loop", "muted", "playsinline"} <= video.keys()
    head, _, data = str(video["src"]).partition(",")
    assert head == "data:video/mp4;base64"
    assert base64.b64decode(data) == (root / "samples/sample-00.mp4").read_bytes()
    addresses = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href", "action", "poster")]
    assert addresses
    assert all(str(v).startswith("data:") for v in addresses)
    text = (root / "report.html").read_text()
    assert not re.search(r"https?://|@import|url\(", text)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_what_users_wrote_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    root = with_samples(fake_run(tmp_path / "a<b>&c", 3, samples="<b>digest</b>"), 1)
    (root / "config.yaml").write_text(f"steps: 3\nnote: '</pre>{evil.replace(chr(39), '')}'\n")
    (root / "samples/sample-00.json").write_text(json.dumps({"prompt": evil, "seed": evil}))
    events = [
        {"event": e, "rank": evil, "how": evil, "reason": evil, "trace": evil, "time": 1} for e in (evil, "failure")
    ]
    (root / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    page = report(root)
    assert len(page.all("script")) == 1
    assert not [a for _, a in page.tags if "onerror" in a]
    assert all(str(a["src"]).startswith("data:") for a in page.all("img"))
    assert page.text.count(evil) >= 5
    assert "a<b>&c" in page.text


def test_missing_parts_are_said(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "run", 2)
    page = report(root)
    assert f"no samples yet: longreel sample {root}" in page.text
    assert "no events are recorded" in page.text
    assert "no checkpoints yet" in page.text
    (root / "metrics.jsonl").write_text("")
    page = report(root)
    assert "0 of 500 steps" in page.text
    assert "no steps yet" in page.text


def test_broken_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    root = with_events(fake_run(tmp_path / "run", 5))
    with open(root / "metrics.jsonl", "ab") as file:
        file.write(b'{"loss": 1.0}\n[3]\n\xff\xfe\n{"step": 6, "lo')
    page = report(root)
    assert "has done 5 of 500 steps" in page.text
    assert "4 lines of metrics.jsonl are broken and left out" in page.text
    assert "events.jsonl are broken" not in page.text


def test_a_step_that_was_done_twice_counts_once(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "run", 4, loss=0.5)
    lines = (root / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[1]) | {"loss": 0.25}
    (root / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(again)]) + "\n")
    page = report(root)
    assert "has done 4 of 500" in page.text
    assert "Lowest loss 0.25 at step 2" in page.text
    assert "Tokens 131 k" in page.text


def test_figures_that_are_missing_or_not_finite_are_gaps(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "run", 6)
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    rows[2]["loss"], rows[3]["loss"], rows[4]["memory_bytes"] = math.nan, math.inf, "much"
    for row in rows:
        del row["grad_norm"], row["samples"]
    (root / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = report(root)
    assert "2 steps have no finite loss" in page.text
    assert "Gradient norm no values yet" in page.text
    assert "Samples seen unknown" in page.text
    drawn = [a["data-points"] or "" for a in page.all("figure", class_="chart") if "data-points" in a]
    assert len(drawn) == 6
    assert not [d for d in drawn if "NaN" in d or "Infinity" in d]


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "", "steps: many\nmesh: 3\nzero: null"])
def test_a_strange_config_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    root = fake_run(tmp_path / "run", 2)
    (root / "config.yaml").write_text(text)
    page = report(root)
    assert "has done 2 steps" in page.text
    assert " ".join(text.split()) in page.text


def test_broken_checkpoints_and_samples_are_named(tmp_path: Path) -> None:
    root = with_samples(with_events(fake_run(tmp_path / "run", 3)), 1)
    (root / "checkpoints/step-00000300/manifest.json").write_text("{")
    (root / "checkpoints/step-00000200/manifest.json").unlink()
    (root / "samples/sample-00.json").write_text("[]")
    page = report(root)
    assert page.text.count("manifest.json is missing or broken") == 2
    assert "sample-00.mp4 no .json beside it" in page.text


def test_only_the_newest_samples_are_embedded(tmp_path: Path) -> None:
    root = with_samples(fake_run(tmp_path / "run", 2), MOST_SAMPLES + 3)
    for i in range(MOST_SHEETS):
        Image.new("RGB", (8, 8)).save(root / "samples" / f"sheet-{i}.png")
    page = report(root)
    assert len(page.all("video")) == MOST_SAMPLES
    assert len(page.all("img")) == MOST_SHEETS
    assert "Left out: 3 older videos; 1 older contact sheet." in page.text


def test_a_large_sample_is_named_and_not_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = with_samples(fake_run(tmp_path / "run", 2), 1)
    monkeypatch.setattr("launcher.reports.sample_gallery.MOST_BYTES", 100)
    page = report(root)
    assert not page.all("video")
    assert "what does not fit into 100 bytes or cannot be read (sample-00.mp4, sheet-step-400-seed-0.png)" in page.text


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", ""])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, missing: str) -> None:
    root = tmp_path / "none"
    if missing:
        (fake_run(root, 1) / missing).unlink()
    with pytest.raises(InputError) as caught:
        write_report(root)
    assert (missing or "config.yaml") in caught.value.rule
    assert str(root) in caught.value.value
    assert caught.value.remedy
    assert not (root / "report.html").exists()


def test_how_a_run_stands(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "run", 5)
    for events, said in (
        (["start"], "still running, or killed"),
        (["start", "checkpoint", "failure"], "failed"),
        (["start", "failure", "restart", "resume"], "still running, or killed"),
        (["start", "done"], "finished"),
    ):
        (root / "events.jsonl").write_text("".join(json.dumps({"event": e, "time": 1.0}) + "\n" for e in events))
        assert f"is {said}" in report(root).text


def test_a_long_run_makes_a_small_page_that_keeps_its_spikes(tmp_path: Path) -> None:
    values: list[float | None] = [1.0] * 20_000
    values[7777] = 9.0
    html = chart("Loss", range(1, 20_001), [Curve("loss", values, "mean")])
    assert len(html) < 80_000
    top = linear_scale([1.0, 9.0], zero=False)
    assert f" {1000 * (1 - top.height(9.0)):.1f}" in html
    assert "band" in html
    assert thinning(20_000) == 40


def test_many_marks_become_ticks_at_the_foot() -> None:
    marks = [Mark(step, "checkpoint") for step in range(0, 10_000, 10)] + [Mark(-5, "resume")]
    html = chart("Loss", range(10_000), [Curve("loss", [1.0] * 10_000)], marks=marks)
    assert html.count("mark checkpoint") <= 102
    assert 'V940"' in html
    assert '<path class="mark resume" d="M0 1000V0"/>' in html, "outside the chart: at its edge"
    assert "checkpoint <b>1000</b>" in html


def test_the_log_scale_is_offered_where_values_allow_it() -> None:
    def drawn(values: list[float | None]) -> str:
        return chart("x", range(len(values)), [Curve("x", values)], log=True)

    assert "log scale" in drawn([1.0, 2.0])
    assert "checked" not in drawn([1.0, 2.0])
    assert "checked" in drawn([1000.0, 1.0, 1.0, 2.0])
    assert "log scale" not in drawn([0.0, 2.0])
    assert "log scale" not in drawn([1.0, 1.0])


@pytest.mark.parametrize(
    "values", [[5.0], [0.0, 0.0], [1e-300, 2e-300], [-1e99, 1e99], [None, 3.0, None], [1.0, 1 + 1e-15]]
)
@pytest.mark.parametrize("zero", [True, False])
def test_any_values_can_be_drawn(values: list[float | None], zero: bool) -> None:
    html = chart("x", range(len(values)), [Curve("x", values, "mean"), Curve("y", values, "area")], log=True, zero=zero)
    coordinates = [float(n) for d in re.findall(r' d="([^"]*)"', html) for n in re.findall(r"[-\d.e]+", d)]
    assert coordinates
    assert all(-1 <= c <= 1001 for c in coordinates)


def test_scales_and_ticks() -> None:
    assert round_ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert round_ticks(0.11, 0.52, 5) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    scale = log_scale([0.01, 100.0])
    assert scale.height(1.0) == pytest.approx(0.5)
    assert scale.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert len(log_scale([1e-30, 1e30]).ticks()) <= 7
    texts = [label(v) for v in (0.0, 0.25, 1200, 15_000, 2.5e6, 3e-5, 1.5e-4, -0.5)]
    assert texts == ["0", "0.25", "1,200", "15k", "2.5M", "3e-5", "1.5e-4", "-0.5"]


def test_smoothing_averages_around_each_stretch_and_skips_gaps() -> None:
    values = [1.0, 2.0, None, 4.0, 5.0, 9.0]
    assert smooth(values, thin(6), 3) == pytest.approx([1.5, 1.5, 3.0, 4.5, 6.0, 7.0])
    assert smooth([None, None], thin(2), 3) == [None, None]
    assert [len(b) for b in thin(7, 3)] == [2, 2, 3]


def test_figures_in_words() -> None:
    assert [duration(s) for s in (0.1234, 12.34, 99.9, 245, 3600, 10_930, 200_000)] == [
        "0.123 s", "12.3 s", "99.9 s", "4 min 5 s", "1 h 0 min", "3 h 2 min", "2 d 7 h",
    ]  # fmt: skip
    assert [short(v) for v in (0.0123, 812, 999.9, 12_345, 4.56e6, 3e15)] == [
        "0.0123", "812", "1 k", "12.3 k", "4.56 M", "3 P",
    ]  # fmt: skip
    assert [size_text(v) for v in (0, 1536, 3 << 30, 5 << 40)] == ["0 bytes", "1.5 KiB", "3 GiB", "5 TiB"]
    assert [number(v) for v in (1, 2.5, True, "3", None, math.nan, -math.inf, 10**400)] == [1.0, 2.5] + [None] * 6


ODD = [
    '{"step": "7", "loss": 1.0}', '{"step": true, "loss": 1.0}', '{"step": 7.5}', '{"step": -1}', '{"step": null}',
    '{"step": 7, "loss": null}', '{"step": 7, "loss": [1]}', '{"step": 7, "loss": "1"}', '{"step": 7, "loss": true}',
    '{"step": 7, "time": "now"}', '{"step": 7, "tokens": {}}', '{"step": ' + "9" * 40 + "}",
    "7", '"step"', "null", "[[7]]", "[" * 200_000, '{"step": ' + "9" * 5000 + "}", '{"a":' * 5000, "{", "\x00",
]  # fmt: skip


def test_lines_of_other_types_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.cli.app import app

    root = with_events(fake_run(tmp_path / "run", 5))
    with open(root / "metrics.jsonl", "a") as file:
        file.write("".join(line + "\n" for line in ODD))
    with open(root / "events.jsonl", "a") as file:
        odd = ['{"event": 7}', '{"event": "stop", "time": "now"}', '{"event": "stop", "step": []}', "7", "{"]
        file.write("".join(line + "\n" for line in odd))
    page = report(root)
    assert "has done 5 of 500 steps" in page.text
    assert f"{len(ODD)} lines of metrics.jsonl are broken and left out; 5 lines of events.jsonl are" in page.text
    app(["report", str(root)], standalone_mode=False)
    assert f"metrics.jsonl: {len(ODD)} lines are no record and were left out" in capsys.readouterr().out
    missing, _, after = keep_steps(root / "metrics.jsonl", 3)
    assert (missing, [line["step"] for line in after]) == (0, [4, 5])
    assert len((root / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_line_is_never_read_whole_if_it_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.core.run_folder.LONGEST_LINE", 100)
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2, "a": "' + "x" * 1000 + '"}\n{"step": 3}\n{"step": 4, "b": "' + "y" * 200)
    found = read_steps(file)
    assert ([*found.column("step")], found.broken) == ([1, 3], 2)


def test_steps_of_a_record_are_columns(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [(3, 0.5), (1, 1.5), (2, math.inf), (3, 0.25), (4, 10**400)]
    file.write_text("".join(json.dumps({"step": s, "loss": v, "samples": ["a", "b"]}) + "\n" for s, v in rows))
    found = read_steps(file)
    assert [*found.column("step")] == [1, 2, 3, 4]
    assert [*found.known("loss")] == [1.5, 0.25]
    assert (found.first["step"], found.last["step"], found.done, len(found)) == (1, 4, 4, 4)
    assert [*found.known("samples")] == [2, 2, 2, 2]
    assert len(read_steps(tmp_path / "none")) == 0


def test_names_in_a_report_turn_no_direction(tmp_path: Path) -> None:
    root = fake_run(tmp_path / "run", 2)
    event = {"event": "fallback", "time": BEGIN, "checkpoint": "a\u202e\x1b[2J\x00", "reason": "caf\udce9"}
    (root / "events.jsonl").write_text(json.dumps(event) + "\n")
    text = write_report(root).read_text()
    assert r"a\u202e\x1b[2J\x00 is broken and was passed over: caf\udce9" in text
