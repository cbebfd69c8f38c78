"""The page of `longreel data show`: its columns, what hostile captions cannot do, and its filters in a real browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from data.dataset.index import IN_MEMORY, SCHEMA, Index
from data.dataset.previews import STRIPS, Strip, sheet_name, sheets
from data.planning.clip_sampling import Sampling
from launcher.cli.app import app
from launcher.reports import dataset_gallery
from launcher.reports.dataset_gallery import Tokens, choose, columns, render, write_gallery
from parallel.errors import InputError
from parallel.sequence.geometry import Geometry

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script><!--",
    "\"quotes\" & 'single' &lt;b&gt; <b>bold</b>",
    "قطة تمشي في الشارع \u202eoverride",
    "family 👨‍👩‍👧‍👦 and 🎬",
    "line one\nline two\r\n\u2028tab\t\u0000nul",
    "{{data}} {{script}} $& \\u003c",
    "long " * 20_000,
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync --window-size=1400,1000 --virtual-time-budget=1000 --dump-dom"


def made(folder: Path, samples: int, **changes: list[Any]) -> Index:
    """Clips, every tenth an image, every 25th text alone, in shards of 100."""
    rows = []
    for i in range(samples):
        kind = "" if i % 25 == 24 else "jpg" if i % 10 == 9 else "mp4"
        frames = {"": 0, "jpg": 1, "mp4": 8 + i % 90}[kind]
        rows.append(
            {
                "uid": hashlib.md5(str(i).encode()).hexdigest(),
                "shard": f"shards/{i // 100:032x}.tar",
                "media": kind,
                "media_offset": 1024 * i,
                "media_size": 500 * frames,
                "frames": frames,
                "fps": 24.0 if kind == "mp4" else 0.0,
                "height": 0 if not frames else 256 if i % 3 else 480,
                "width": 0 if not frames else 256 if i % 3 else 854,
                "caption": f"a {('red', 'green', 'blue')[i % 3]} thing {i}",
                "caption_long": f"at length, number {i}" if i % 4 == 0 else "",
                "file": f"{('north', 'south')[i % 2]}/clip {i}.mp4",
                "start": 0,
                "stop": frames,
                "motion": None if frames < 2 else (i * 37 % 100) / 10,
            }
            | {name: values[i] for name, values in changes.items()}
        )
    table = pa.Table.from_pylist(rows, schema=SCHEMA).cast(IN_MEMORY)
    return Index.of((folder,), ("digest",), (0, samples), table)


def written(index: Index, limit: int = 10_000, tokens: Tokens | None = None) -> tuple[Path, dict[str, Any]]:
    """The page beside the dataset, and the columns that are in it."""
    path = index.folders[0] / "show.html"
    rows, why = choose(index, limit)
    page = render(columns(index, rows, path, tokens), why)
    path.write_text(page, encoding="utf-8", newline="")
    found: dict[str, Any] = json.loads(re.findall(r"<script type=application/json id=data>(.*?)</script>", page)[0])
    return path, found


def with_sheets(index: Index, shards: int) -> None:
    """Previews of the first shards."""
    (index.folders[0] / "previews").mkdir()
    for number in range(shards):
        strips = []
        for frames in index.frames[100 * number : 100 * number + 100].tolist():
            strip = Strip()
            strip.add(np.full((64, 64, 3), 200, np.uint8))
            strips.append(strip.jpeg() if frames else None)
        for sheet, data in enumerate(sheets(strips)):
            (index.folders[0] / "previews" / sheet_name(f"{number:032x}", sheet)).write_bytes(data)


def browse(page: Path, hash_: str, profile: Path) -> str:
    """What a browser makes of the page, after a second of its clock."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: the filters of the page are not tried in a browser")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", f"{page.as_uri()}#{hash_}"]
    done = subprocess.run(command, capture_output=True, timeout=600)
    return done.stdout.decode("utf-8", "replace")


def shown(dom: str) -> str:
    return re.sub("<[^>]+>", "", re.findall(r"<output[^>]*>(.*?)</output>", dom)[0])


def test_columns_hold_what_the_index_says(tmp_path: Path) -> None:
    index = made(tmp_path, 150)
    _, page = written(index, tokens=Tokens(Sampling(Geometry(stride=(4, 8, 8), patch=(1, 2, 2), causal=True)), "words"))
    table = index.table
    for name in ("uid", "caption", "caption_long", "frames", "height", "width", "start", "stop"):
        assert page[name] == table[name].to_pylist()
    for name in ("file", "shard", "media"):
        assert [page[name]["names"][code] for code in page[name]["codes"]] == table[name].to_pylist()
    figures = {figure["name"]: figure for figure in page["figures"]}
    assert figures["motion"]["values"] == [v if v is None else round(v, 3) for v in table["motion"].to_pylist()]
    assert figures["frames"]["values"] == [v or None for v in table["frames"].to_pylist()]
    assert figures["tokens"]["values"][0] == (1 + 7 // 4) * (480 // 16) * (854 // 16)
    assert "sharpness" not in figures  # no sample has it
    for figure in figures.values():
        known = [v for v in figure["values"] if v is not None]
        assert figure["edges"] == sorted(set(figure["edges"]))
        assert figure["edges"][0] <= min(known) <= max(known) <= figure["edges"][-1]
    facets = {facet["name"]: facet for facet in page["facets"]}
    assert facets["source"]["names"] == ["north", "south"]
    assert facets["size"]["names"] == ["256x256", "480x854", "no picture"]
    assert [facets["media"]["names"][c] for c in facets["media"]["codes"]] == [
        m or "text alone" for m in table["media"].to_pylist()
    ]


def test_strips_are_found_by_arithmetic(tmp_path: Path) -> None:
    index = made(tmp_path, 350)
    with_sheets(index, 3)
    (tmp_path / "previews" / sheet_name(f"{1:032x}", 1)).unlink()
    rows = np.array([0, 63, 64, 99, 100, 164, 250, 349])
    page = columns(index, rows, tmp_path / "show.html")
    names = [page["sheet"]["names"][c] if c >= 0 else None for c in page["sheet"]["codes"]]
    first, second, third = ([sheet_name(f"{shard:032x}", sheet) for sheet in (0, 1)] for shard in range(3))
    assert names == [first[0], first[0], first[1], first[1], second[0], None, third[0], None]
    assert page["strip"] == [0, 63, 0, 99 - STRIPS, 0, 0, 50, 49]
    assert (page["previews"], page["bare"]) == ("previews/", False)
    elsewhere = columns(index, rows, tmp_path / "pages" / "show.html")
    assert elsewhere["previews"] == f"{tmp_path.as_uri()}/previews/"


def test_hostile_captions_stay_text(tmp_path: Path) -> None:
    index = made(tmp_path / "a <b> & c", len(HOSTILE), caption=HOSTILE, caption_long=HOSTILE[::-1])
    index.folders[0].mkdir()
    path, page = written(index)
    text = path.read_text(encoding="utf-8")
    assert page["caption"] == HOSTILE
    assert page["caption_long"] == HOSTILE[::-1]

    class Tags(HTMLParser):
        scripts = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.scripts += tag == "script"
            assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    tags = Tags()
    tags.feed(text)
    assert tags.scripts == 2  # the columns and the code
    code = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "<title>a &lt;b&gt; &amp; c · longreel</title>" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_more_samples_than_the_limit_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made(tmp_path, 100)
    rows, why = choose(index, 8)
    assert rows.tolist() == [0, 12, 25, 37, 50, 62, 75, 87]
    assert why == "--limit 8"
    _, page = written(index, limit=8)
    assert (page["total"], page["why"], len(page["uid"])) == (100, why, 8)
    monkeypatch.setattr(dataset_gallery, "MOST_TEXT", 400)
    rows, why = choose(index, 100)
    assert 10 <= len(rows) <= 20
    assert "captions" in why


@pytest.mark.parametrize(
    ("out", "limit", "rule"),
    [("page.txt", 5, "an .html file"), (".", 5, "an .html file"), ("page.html", 0, "a page has 1 to")],
)
def test_a_wrong_page_is_refused(tmp_path: Path, out: str, limit: int, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        write_gallery(tmp_path, tmp_path / out, limit)


def test_command_writes_the_page(dataset: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["data", "show", str(dataset), "--out", str(tmp_path / "x.html"), "--limit", "20"])
    assert done.exit_code == 0, done.output
    assert "20 samples of 24, evenly spread" in done.output
    assert dataset.as_uri() in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_filters_in_a_browser(tmp_path: Path) -> None:
    index = made(tmp_path, 300)
    with_sheets(index, 2)
    path, _ = written(index)
    rows = index.table.to_pylist()
    wanted = [
        row
        for row in rows
        if "red" in row["caption"]
        and "thing 1" not in row["caption"]
        and row["motion"] is not None
        and 2 <= row["motion"] <= 5
        and row["frames"] >= 16
        and row["file"].startswith("north")
        and row["height"] == 480
    ]
    assert wanted, "the filters of the test leave something"
    hash_ = "q=RED+-%22thing+1%22&motion=2-5&frames=16-&source=north&source=nowhere&size=480x854&sort=-frames"
    dom = browse(path, hash_, tmp_path / "profile")
    assert shown(dom) == f"{len(wanted)} of 300 shown"
    seen = dom[dom.index("<main") : dom.index("</main>")]
    captions = [html.unescape(c) for c in re.findall(r'<span class="short[^>]*>(.*?)</span>', seen)]
    assert captions == [row["caption"] for row in sorted(wanted, key=lambda row: -row["frames"])]
    with_picture = [row for row in wanted if row["shard"] < f"shards/{2:032x}.tar"]
    assert seen.count("no preview") == len(wanted) - len(with_picture) > 0
    assert seen.count('src="previews/') == 2 * len(with_picture) > 0  # two halves each, and they loaded


def test_detail_in_a_browser(tmp_path: Path) -> None:
    index = made(tmp_path, len(HOSTILE), caption=HOSTILE)
    path, page = written(index)
    dom = browse(path, f"open={page['uid'][-1]}&caption_long=none", tmp_path / "profile")
    assert shown(dom) == f"{page['caption_long'].count('')} of {len(HOSTILE)} shown"
    dialog = dom[dom.index("<dialog") : dom.index("</dialog>")]
    assert HOSTILE[-1] in dialog  # the whole of it, and in the row its beginning alone
    assert dom[: dom.index("<dialog")].count("long ") < 200
    command = html.unescape(re.findall(r"<code>(tail .*?)</code>", dialog)[0])
    (tmp_path / "shards").mkdir()
    tar = tmp_path / index.table["shard"][7].as_py()
    tar.write_bytes(bytes(1024 * 7) + bytes(range(1, 251)) * 100)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / f"{page['uid'][7]}.mp4").read_bytes() == (bytes(range(1, 251)) * 100)[: 500 * 15]
    assert "<title>" in dom
    assert "owned" not in re.findall("<title>(.*?)</title>", dom)[0]
