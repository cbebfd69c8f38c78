"""`longreel plan`: the table, the JSON and the picture say what the plans say; wrong requests are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.analysis.attention_plan import mask_of
from launcher.config.loading import to_yaml
from launcher.reports.mask_picture import MARGIN, STRIP, colour_of
from parallel.attention.plan import plan_of
from parallel.masks import mask as masks
from parallel.masks import video_patterns
from parallel.mesh import Mesh
from parallel.sequence.sharding import balanced
from tests.promises.test_wrong_input import longreel, refused
from tests.support.runs import config


def test_it_says_what_the_plans_say() -> None:
    said = json.loads(longreel("plan", "--mask", "packed-causal:300,500,224", "--ring", "4", "--json", code=0))
    mask, mesh = masks.packed([300, 500, 224], causal=True), Mesh(1, 4, 1)
    plans = [plan_of(mask, balanced(mask, mesh), mesh, mesh.place(i)) for i in range(4)]
    assert said["area"] == [plan.area for plan in plans]
    row = 2 * 24 * 128 * 2  # k and v of all heads in bf16
    for me, plan in enumerate(plans):
        sent = [0] * 4
        for d, hop in enumerate(plan.hops):
            sent[(me + d) % 4] += hop.send.count * row if d else 0
        assert said["forward_bytes"][me] == sent


def test_a_run_is_planned_by_its_first_pack(tmp_path: Path, dataset: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config(tmp_path / "out", dataset, mesh={"ring": 2, "ulysses": 2})))
    said = json.loads(longreel("plan", file, "--json", code=0))
    assert len(said["tokens"]) == 4
    assert 0 < sum(said["tokens"]) <= 700
    table = longreel("plan", file, code=0)
    assert "ring 2 x ulysses 2" in table
    assert not (tmp_path / "out").exists()


def test_the_picture_shows_who_computes_and_fetches_what(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    arguments = "--mask causal --tokens 64 --ring 2 --split contiguous --heads 4 --head-dim 8 --picture"
    longreel("plan", *arguments.split(), file, code=0)
    with Image.open(file) as image:
        pixels = np.asarray(image)
    side = 640 // 64
    left, top = MARGIN + STRIP + 4, MARGIN

    def cell(query: int, key: int) -> tuple[int, ...]:
        found = pixels[top + query * side + side // 2, left + key * side + side // 2]
        return tuple(found.tolist())

    first, second = colour_of(0, 2), colour_of(1, 2)
    assert cell(3, 3) == cell(31, 0) == first
    assert cell(40, 40) == cell(63, 32) == second
    assert cell(0, 1) == cell(10, 60) == (255, 255, 255)
    assert cell(50, 10) not in (first, second, (255, 255, 255))  # fetched


@pytest.mark.parametrize(
    ("arguments", "value", "remedy"),
    [
        ("--mask nope", "--mask nope", "packed:5000"),
        ("--mask packed:3,x", "packed:3,x", "full, causal"),
        ("--mask packed:3,0", "lengths [3, 0]", "leave empty"),
        ("--mask frame-causal:7 --tokens 64", "64 tokens in 7 frames", "--tokens"),
        ("--split best", "--split best", "balanced"),
        ("--picture plan.foo", "plan.foo", "plan.png"),
        ("--transport pigeon", "--transport pigeon", "ring or need"),
        ("--heads 5 --kv-heads 2", "5 query heads, 2 key heads", "number of key heads"),
    ],
)
def test_wrong_requests(arguments: str, value: str, remedy: str) -> None:
    refused("plan", *arguments.split(), value=value, remedy=remedy)


def test_masks_by_name() -> None:
    assert mask_of("window:3", 10).area == masks.window(10, 3).area
    assert mask_of("frame-window:5,1,0,1", 10).area == video_patterns.frame_window(5, 2, 1, 0, 1).area
    assert mask_of("spatial:5", 10).area == 20
