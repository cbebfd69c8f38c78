"""The funnel says what was lost where, and its picture has nothing on top of anything else."""

from itertools import combinations

import numpy as np
import pytest
from PIL import ImageDraw

from launcher.reports import funnel
from launcher.reports.funnel import BAR, FUNNEL_WIDTH, MARGIN, PAPER, SCALE, WIDTH, draw, rows

STAGES = [("files found", 10), ("readable", 9), ("shots", 300), ("long enough", 200), ("kept", 150)]
DROPPED = {
    "readable": {"cut short": 1},
    "long enough": {"fewer than 8 frames": 100},
    "kept": {f"rule {n}": n for n in (1, 2, 3, 4, 20, 25)},
}


def test_rows():
    found = rows(STAGES, DROPPED)
    assert [row.lost for row in found] == [0, 1, 0, 100, 50]
    assert [row.base_name for row in found] == ["files found"] * 2 + ["shots"] * 3
    assert [round(row.share, 3) for row in found] == [1, 0.9, 1, 0.667, 0.5]
    assert [row.each and round(row.each, 1) for row in found] == [None, None, 33.3, None, None]
    assert found[4].reasons == (("rule 25", 25), ("rule 20", 20), ("rule 4", 4), ("3 other reasons", 6))
    with pytest.raises(AssertionError, match="no such stages: \\['x'\\]"):
        rows(STAGES, {"x": {}})


def test_zeros():
    found = rows([("a", 0), ("b", 0), ("c", 4), ("d", 0)], {})
    assert [row.share for row in found] == [0, 0, 1, 0]
    assert [row.lost for row in found] == [0, 0, 0, 4]
    draw([("a", 0), ("b", 0), ("c", 4), ("d", 0)], {})


def test_bars_are_as_wide_as_their_shares():
    image = np.asarray(draw(STAGES, DROPPED)).astype(int)
    tops = funnel._tops(rows(STAGES, DROPPED), MARGIN)
    left = (funnel.FUNNEL_LEFT - 10) * SCALE
    right = (funnel.FUNNEL_LEFT + FUNNEL_WIDTH + 10) * SCALE
    for row, top in zip(rows(STAGES, DROPPED), tops, strict=True):
        line = image[(top + BAR // 2) * SCALE, left:right]
        assert (line != PAPER).any(1).sum() == pytest.approx(FUNNEL_WIDTH * SCALE * row.share, abs=2)


@pytest.mark.parametrize("stages", [1, 2, 5, 14])
def test_no_text_overlaps_or_leaves_the_picture(stages, monkeypatch):
    boxes, plain = [], ImageDraw.ImageDraw.text

    def text(self, place, line, fill, font, anchor):
        boxes.append((line, self.textbbox(place, line, font, anchor=anchor)))
        plain(self, place, line, fill, font, anchor=anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    names = [f"stage {n} with a name that is far too long to be shown in full" for n in range(stages)]
    counts = [10**9 // 3**n for n in range(stages)]
    dropped = {name: {f"reason {i} " + "why " * 40: 12345678 + i for i in range(n)} for n, name in enumerate(names)}
    image = draw(list(zip(names, counts, strict=True)), dropped, "a title " * 60)
    assert image.width == WIDTH * SCALE
    for line, (left, top, right, bottom) in boxes:
        assert left >= 0, line
        assert top >= 0, line
        assert right <= image.width - MARGIN * SCALE // 2, line
        assert bottom <= image.height, line
    for (one, a), (other, b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (one, other)
    assert sum("\u2026" in line for line, _ in boxes) >= stages  # names are cut
    # nothing is written into the funnel
    span = funnel.FUNNEL_LEFT * SCALE, (funnel.FUNNEL_LEFT + FUNNEL_WIDTH) * SCALE
    assert all(right <= span[0] or left >= span[1] for _, (left, _, right, _) in boxes[1:])  # after the title


def test_shares_are_never_rounded_to_none_or_all():
    assert [funnel._per_cent(x) for x in (0, 1, 0.0001, 0.99999, 0.5, 0.1234)] == [
        "0 %",
        "100 %",
        "< 0.1 %",
        "> 99.9 %",
        "50 %",
        "12.3 %",
    ]
