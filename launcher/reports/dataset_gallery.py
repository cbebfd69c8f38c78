"""`longreel data show`: one HTML page with every sample of a dataset: its frames, captions and figures, to look at.

    index --rows--> columns --JSON--> show.html   with the files of `page/` inside
    previews/<shard>-0000.jpg ...  <-- pointed at; a strip is cropped out by arithmetic (`dataset/previews.py`)

The page fetches nothing but these pictures: a Content-Security-Policy forbids the rest, and every script but its own.
Captions are hostile until proven otherwise: they are JSON in which no "<" is left, and become text nodes. A sample
costs about 250 bytes and its captions. 50,000 of them open in about a second; more are thinned out evenly, and the
page says so. A hash makes filters linkable: show.html#q=red&frames=16-64&source=films&sort=-motion
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset.index import Index, Ints
from data.dataset.previews import place, sheet_name
from data.dataset.shards import PREVIEWS, shard_of
from data.planning.clip_sampling import Sampling
from data.statistics.index_columns import FIGURES, Figure, Floats, edges_of, rounded, source_of
from data.statistics.stats import tokens_of
from launcher.core.run_folder import write_whole
from launcher.reports.page_files import page_file
from parallel.errors import InputError

PAGE = "show.html"
LIMIT = 50_000  # samples on a page
MOST = 1_000_000  # that may be asked for
MOST_TEXT = 96 << 20  # bytes of captions on a page: a browser keeps them twice
MOST_NAMES = 60  # of a facet; the rest are one
SCRIPTS = ("samples.js", "panels.js", "list.js", "detail.js", "main.js")  # in page/, in this order
HEAVY = ("media_hash", "json_hash", "slice_rows", "slice_offsets", "slice_hashes")  # columns that no one looks at


@dataclass(frozen=True)
class Tokens:
    """How clips become tokens, and in words."""

    sampling: Sampling
    words: str


@dataclass(frozen=True)
class Page:
    """A page that was written, with `shown` of the dataset's `samples`."""

    path: Path
    shown: int
    samples: int


def write_gallery(dataset: Path, out: Path | None = None, limit: int = LIMIT, tokens: Tokens | None = None) -> Page:
    """Writes the page.

    Args:
        dataset: a folder that `prepare` or `import` wrote.
        out: the page; show.html in the dataset if not given.
        limit: samples on the page; of more, as many are taken evenly.
        tokens: without it the page says nothing of tokens.

    Raises:
        InputError: no such dataset, or nothing to write to.
    """
    out = out or dataset / PAGE
    if not 1 <= limit <= MOST:
        raise InputError(f"a page has 1 to {MOST} samples", f"--limit {limit}", f"--limit {LIMIT}")
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError("a page is an .html file", f"--out {out}", f"--out {PAGE}")
    index = Index.open(dataset)
    rows, why = choose(index, limit)
    write_whole(out, render(columns(index, rows, out, tokens), why).encode())
    return Page(out, len(rows), len(index))


def choose(index: Index, limit: int) -> tuple[Ints, str]:
    """Rows that are shown, evenly spread, and why they are not all; fewer than `limit` where captions are very long."""
    rows, why = _spread(len(index), limit), f"--limit {limit}"
    while (size := _text_bytes(index, rows)) > MOST_TEXT and len(rows) > 1:
        rows = _spread(len(index), max(1, len(rows) * MOST_TEXT // size))
        why = f"their captions fill {MOST_TEXT >> 20} MiB"
    return rows, why


def columns(index: Index, rows: Ints, page: Path, tokens: Tokens | None = None) -> dict[str, Any]:
    """What the page knows, as one list per column; see page/samples.js.

    Args:
        index: of one dataset.
        rows: ascending, those to show.
        page: where it will lie: pictures in the same folder are pointed at by relative names.
        tokens: how clips become them.
    """
    dataset = index.folders[0].absolute()
    table = index.table.drop_columns(list(HEAVY)).take(pa.array(rows))
    sheets, strips = _places(index, rows, dataset / PREVIEWS)
    shard, media = (_coded(table[name].cast(pa.string()).to_pylist()) for name in ("shard", "media"))
    beside = page.absolute().parent == dataset
    long, phash = (table[name].fill_null("").to_pylist() for name in ("caption_long", "phash"))
    shape = zip(*(table[name].to_pylist() for name in ("frames", "height", "width")), strict=True)
    sizes = [f"{height}x{width}" if frames else "no picture" for frames, height, width in shape]
    return {
        "name": dataset.name,
        "folder": f"{dataset}{os.sep}",
        "total": len(index),
        "previews": f"{PREVIEWS}/" if beside else f"{(dataset / PREVIEWS).as_uri()}/",
        "bare": all(code < 0 for code in sheets["codes"]),
        "sheet": sheets,
        "strip": strips,
        "uid": table["uid"].to_pylist(),
        "caption": table["caption"].fill_null("").to_pylist(),
        "caption_long": long if any(long) else [],
        "phash": phash if any(phash) else [],
        "file": _coded(table["file"].cast(pa.string()).fill_null("").to_pylist()),
        "shard": shard,
        "media": media,
        "offset": table["media_offset"].to_pylist(),
        **{name: table[name].fill_null(0).to_pylist() for name in ("frames", "height", "width", "start", "stop")},
        "facets": [
            _facet("source", "first folder", [name or "no folder" for name in source_of(table).to_pylist()]),
            _facet("media", "", [media["names"][code] or "text alone" for code in media["codes"]]),
            _facet("size", "height x width", sizes),
        ],
        "figures": [found for figure in _figures(tokens) if (found := _figure(figure, table))],
    }


def render(columns: dict[str, Any], why: str) -> str:
    """The page."""
    script = "".join(map(page_file, SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": escape(columns["name"]),
        "style": page_file("style.css"),
        "data": as_script({**columns, "why": why}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page_file("frame.html"))


def as_script(value: Any) -> str:
    """JSON that can stand in a <script>, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").encode("utf-8", "replace").decode()


def _spread(samples: int, limit: int) -> Ints:
    shown = min(samples, limit)
    return np.arange(shown, dtype=np.int64) * samples // shown


def _text_bytes(index: Index, rows: Ints) -> int:
    at = pa.array(rows)
    texts = (index.table[name].take(at) for name in ("caption", "caption_long"))
    return sum(int(pc.sum(pc.binary_length(text)).as_py() or 0) for text in texts)


def _places(index: Index, rows: Ints, previews: Path) -> tuple[dict[str, Any], list[int]]:
    """The sheet of each row, -1 where there is no such file, and the strip in it."""
    there = {file.name for file in previews.glob("*.jpg")}
    shard = index.table["shard"].combine_chunks().cast(pa.dictionary(pa.int32(), pa.string()))
    codes, names = shard.indices.to_numpy(), shard.dictionary.to_pylist()
    begins = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1))
    ordinals = rows - begins[np.searchsorted(begins, rows, "right") - 1]
    placed = [place(ordinal) for ordinal in ordinals.tolist()]
    ids = [shard_of(Path(name)) for name in names]
    sheets = [sheet_name(ids[code], sheet) for code, (sheet, _) in zip(codes[rows].tolist(), placed, strict=True)]
    found = _coded([sheet if sheet in there else "" for sheet in sheets], absent="")
    return found, [strip for _, strip in placed]


def _coded(values: Sequence[str], absent: str | None = None) -> dict[str, Any]:
    """Names, and for each value the number of its name; -1 for `absent`."""
    numbers: dict[str, int] = {}
    codes = [-1 if value == absent else numbers.setdefault(value, len(numbers)) for value in values]
    return {"names": list(numbers), "codes": codes}


def _facet(name: str, unit: str, values: Sequence[str]) -> dict[str, Any]:
    """The most frequent values and those of each sample; rare ones are one."""
    names, codes, counts = np.unique(np.array(values, object), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    listed = names[order[:MOST_NAMES]].tolist()
    if len(names) > MOST_NAMES:
        listed.append(f"{len(names) - MOST_NAMES:,} others")
    return {"name": name, "unit": unit, "names": listed, "codes": np.minimum(rank, MOST_NAMES)[codes].tolist()}


def _figures(tokens: Tokens | None) -> Iterable[Figure]:
    for figure in FIGURES:
        yield figure
        if figure.name == "seconds" and tokens is not None:
            yield Figure("tokens", tokens.words, partial(_tokens, tokens.sampling), log=True, whole=True)


def _tokens(sampling: Sampling, table: pa.Table) -> Floats:
    found = tokens_of(table, sampling).astype(np.float64)
    return np.where(found > 0, found, np.nan)


def _figure(figure: Figure, table: pa.Table) -> dict[str, Any] | None:
    """One column of numbers with the edges of its bins; None if no sample has it."""
    values = figure.column(table)
    known = np.isfinite(values)
    if not known.any():
        return None
    numbers = values[known].astype(np.int64) if figure.whole else rounded(values[known])
    listed = np.full(len(values), None, object)
    listed[known] = numbers.tolist()
    edges = edges_of(np.sort(numbers.astype(np.float64)), figure).tolist()
    return {"name": figure.name, "unit": figure.unit, "whole": figure.whole, "edges": edges, "values": listed.tolist()}
