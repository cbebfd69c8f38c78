"""Secrets are where they are said to be, once, in haystacks of the length that was asked for; and the heat map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.chat.formats import conversation_of
from data.synthetic.needle_in_haystack import needle, needles
from launcher.generation.needle_test import BAD, GOOD, Cell, heat_map, of_length
from parallel.errors import InputError
from parallel.random import key_of


@pytest.mark.parametrize(("length", "secrets"), [(256, 4), (2048, 4), (300, 1), (91, 4)])
def test_secrets_are_in_the_haystack_once(tmp_path: Path, length: int, secrets: int) -> None:
    path = tmp_path / "needles.jsonl"
    needles(path, 60, 0, length, secrets)
    before, depths = path.read_bytes(), []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        asked, answer = (turn["value"] for turn in record["conversations"])
        hay, question = asked.split("\n")
        assert length - 8 < len(hay) <= length
        assert hay.count("The secret of") == secrets
        assert hay.count(f"{question} {answer}.") == 1
        if length > 91:
            where = hay.index(question) / (len(hay) - len(f"{question} {answer}."))
            assert abs(where - record["depth"]) < 0.3 if secrets > 1 else 0.06
        depths.append(record["depth"])
        assert conversation_of(record).turns[-1].parts == (answer,)
    assert abs(np.mean(depths) - 0.5) < 0.12
    needles(path, 60, 0, length, secrets)
    assert path.read_bytes() == before
    needles(path, 60, 1, length, secrets)
    assert path.read_bytes() != before


def test_a_needle_lies_as_deep_as_asked() -> None:
    for depth in (0.0, 0.25, 1.0):
        hay = needle(key_of(3), 1000, depth)["conversations"][0]["value"].split("\n")[0]
        assert abs(hay.index("The secret") / (len(hay) - 24) - depth) < 0.02


@pytest.mark.parametrize(("records", "length", "secrets"), [(0, 256, 1), (1, 20, 1), (1, 256, 0), (1, 9999, 27)])
def test_what_cannot_work_is_refused(tmp_path: Path, records: int, length: int, secrets: int) -> None:
    with pytest.raises(InputError):
        needles(tmp_path / "n.jsonl", records, 0, length, secrets)
    assert not (tmp_path / "n.jsonl").exists()


def test_the_heat_map_shows_each_cell() -> None:
    cells = [Cell(n, n + 20, d, int(4 * (n == 64)), 4) for n in (64, 512) for d in (0.0, 1.0)]
    picture = np.asarray(heat_map(cells, "found"))
    assert all((picture == colour).all(axis=2).sum() > 2000 for colour in (GOOD, BAD))
    assert list(of_length(cells)) == [(64, 84, 8, 8), (512, 532, 0, 8)]
