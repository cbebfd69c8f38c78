"""Figures of a dataset against plain Python over the same rows."""

import json
import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from data.dataset.index import IN_MEMORY, SCHEMA, Index
from data.planning.clip_sampling import Sampling
from data.statistics.index_columns import BINS, FIGURES, QUANTILES, Figure, rounded, source_of, spread
from data.statistics.stats import as_dict, shapes, stats, tokens_of
from launcher.cli.app import app
from launcher.tables.stats_tables import bars, compact, render
from parallel.sequence.geometry import Geometry

SIZES = ((256, 256), (480, 854), (32, 48))
FILES = ("/data/a/b.mp4", "films/one.mp4", "s3://bucket/x/y.mp4", "alone.mp4", "films/deep/two.mp4")


@pytest.fixture(scope="module")
def index() -> Index:
    """Clips of 1 to 400 frames, 40 samples of text alone."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(400):
        text = i % 10 == 0
        height, width = (0, 0) if text else SIZES[i % 3]
        rows.append(
            {
                "uid": str(i), "shard": f"shards/{i // 100}.tar", "media": "" if text else "mp4",
                "media_size": None if text else 100 * i, "frames": 0 if text else i, "fps": 0.0 if text else 25.0,
                "height": height, "width": width, "caption": "é" * (i % 7), "caption_long": "long" if i == 3 else "",
                "file": FILES[i % 5], "motion": None if i % 4 else float(draw.lognormal()),
            }
        )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=SCHEMA).cast(IN_MEMORY)
    return Index.of((Path("dataset"),), ("digest",), (0, len(rows)), table)


def test_counts_are_those_of_the_rows(index: Index) -> None:
    found, rows = stats(index), index.table.to_pylist()
    assert (found.samples, found.shards, found.frames) == (400, 4, sum(r["frames"] for r in rows))
    assert found.bytes == sum(r["media_size"] or 0 for r in rows)
    assert found.seconds == pytest.approx(sum(r["frames"] / 25 for r in rows if r["frames"] > 1))
    assert {g.name: g.samples for g in found.media} == {"mp4": 360, "": 40}
    assert {g.name: g.samples for g in found.sources} == {"films": 160, "/data": 80, "s3://bucket": 80, "": 80}
    assert sum(g.frames for g in found.sources) == found.frames
    assert found.filled["caption"] == fmean(bool(r["caption"]) for r in rows)
    assert found.filled["caption_long"] == 1 / 400
    assert found.filled["motion"] == 0.25
    assert found.filled["phash"] == 0


def test_spreads_are_those_of_the_rows(index: Index) -> None:
    found, rows = {s.name: s for s in stats(index).spreads}, index.table.to_pylist()
    assert list(found) == [figure.name for figure in FIGURES]
    frames = sorted(r["frames"] for r in rows if r["frames"])
    assert found["frames"].known == 360
    assert found["frames"].mean == pytest.approx(fmean(frames))
    assert found["frames"].quantiles == tuple(frames[round(q * 359)] for q in QUANTILES)
    assert found["caption"].quantiles[-1] == 6  # characters, not bytes
    assert found["motion"].known == 100
    assert found["sharpness"].known == 0
    assert math.isnan(found["sharpness"].mean)
    for one in found.values():
        if one.histogram is not None:
            assert one.histogram.counts.sum() == one.known
            assert 1 <= len(one.histogram.counts) <= BINS


@pytest.mark.parametrize(
    "values",
    [[5.0], [5.0, 5.0, math.nan], [0.0, 0.0, 1e-9, 3.0], list(range(1000)), [0.1234567, 0.1234568], [1, 1e12]],
)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_histogram_holds_every_value_once(values: list[float], log: bool, whole: bool) -> None:
    column = np.array([math.ceil(v) if whole and v == v else v for v in values], np.float64)
    histogram = spread(Figure("x", "", lambda table: column, log, whole), column).histogram
    assert histogram is not None
    known = column[~np.isnan(column)]
    assert histogram.counts.sum() == len(known)
    inner = histogram.edges[1:-1]
    assert histogram.counts.tolist() == np.bincount(np.searchsorted(inner, known, "right"), minlength=1).tolist()


def test_rounding_keeps_digits() -> None:
    values = np.array([0.0, 123456.0, 0.00123456, -9.99996, 1.5])
    assert rounded(values).tolist() == [0.0, 123500.0, 0.001235, -10.0, 1.5]


def test_tokens_are_those_of_the_sampling(index: Index) -> None:
    sampling = Sampling(Geometry(stride=(4, 8, 8), patch=(1, 2, 2), causal=True))
    each = zip(index.frames.tolist(), index.height.tolist(), index.width.tolist(), strict=True)
    expected = [sampling.length(*shape) for shape in each]
    assert tokens_of(index.table, sampling).tolist() == expected
    assert shapes(index).counts.sum() == 360
    last = stats(index, sampling).lengths[-1]
    whole = sorted(n for n in expected if n)
    assert (last.frames, last.total, last.too_small) == (None, sum(expected), 360 - len(whole))
    assert last.tokens == tuple(whole[round(q * (len(whole) - 1))] for q in QUANTILES)
    eight = next(row for row in stats(index, sampling).lengths if row.frames == 8)
    assert eight.as_long == sum(n >= 8 for n in index.frames.tolist()) / 360
    fewer = Sampling(sampling.geometry, frames=8)
    assert eight.total == tokens_of(index.table, fewer).sum()


def test_sizes_tell_what_they_would_do(index: Index) -> None:
    found = stats(index)
    sizes = {(row.height, row.width): row for row in found.sizes}
    assert {size: row.samples for size, row in sizes.items()} == dict.fromkeys(SIZES, 120)
    assert all(row.lengths.sum() == row.samples for row in found.sizes)
    assert sizes[32, 48].enlarged == 0
    assert sizes[256, 256].enlarged == pytest.approx(1 / 3)
    assert sizes[256, 256].cut == pytest.approx((0 + (1 - 480 / 854) + (1 - 32 / 48)) / 3)
    assert sum(row.lengths[0] for row in found.sizes) == sum(1 <= n < found.bands[1] for n in index.frames.tolist())


def test_nothing_but_text_has_no_shapes() -> None:
    row = {"uid": "a", "shard": "s", "media": "", "frames": 0, "height": 0, "width": 0, "caption": "words", "file": "f"}
    table = pa.Table.from_pylist([row], schema=SCHEMA).cast(IN_MEMORY)
    found = stats(Index.of((Path("dataset"),), ("digest",), (0, 1), table), Sampling(Geometry()))
    assert (found.samples, found.sizes, found.lengths, found.bands) == (1, (), (), ())
    json.dumps(as_dict(found), allow_nan=False)
    assert render("dataset", found, "") is not None


def test_source_of_plain_and_dictionary_columns_agree(index: Index) -> None:
    plain = index.table.set_column(
        index.table.schema.get_field_index("file"), "file", index.table["file"].cast("string")
    )
    assert source_of(plain).to_pylist() == source_of(index.table).to_pylist()


def test_bars_show_what_is_little() -> None:
    assert bars(np.array([0, 1, 1000, 500])) == " ▁█▄"
    assert len(bars(np.arange(48))) == 16
    assert [compact(v) for v in (0, 0.0123, 0.5, 999, 12345, 3e9)] == ["0", "0.012", "0.5", "999", "12.3k", "3G"]


def test_command_fits_a_terminal_and_a_script(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = CliRunner().invoke(app, ["data", "stats", str(dataset)])
    assert done.exit_code == 0, done.output
    assert "24 samples" in done.output
    assert max(map(len, done.output.splitlines())) <= 80
    run = ["--run", "recipes/quickstart.yaml", "data.frames=4"]
    done = CliRunner().invoke(app, ["data", "stats", str(dataset), *run, "--json"])
    found = json.loads(done.output)
    assert (found["samples"], found["frames"]) == (24, 24 * 8)
    assert [row["tokens"][-1] for row in found["lengths"] if row["frames"] == 4] == [16]
