"""The funnel of a dataset: how much came in, what each step let through, and why the rest was left out.

    files found     10   ==================
                          \\              /      - 1   truncated
    readable         9     ==============
    shots          300   ==================       33.3 times as many as readable
                          \\              /      - 120   100  fewer than 8 frames
                           \\            /                20  shorter side below 144
    kept           180      ============

A bar is as wide as its share of the first stage that counts the same things: where a stage has more than the one
before it, files became shots, and the next funnel begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Stages = Sequence[tuple[str, int]]
Dropped = Mapping[str, Mapping[str, int]]

SCALE = 2  # pixels of the picture to one of the numbers below
FINER = 3  # shapes are drawn so many times larger and then averaged
MARGIN, COUNT_RIGHT = 36, 340
FUNNEL_LEFT, FUNNEL_WIDTH, REASONS_LEFT, REASONS_WIDTH = 376, 420, 800, 440
WIDTH = REASONS_LEFT + REASONS_WIDTH + MARGIN
BAR, LEAST_GAP, LINE = 44, 20, 20
REASONS = 4  # listed for a stage; the others are summed
INK, SOFT, LOSS, PAPER = (32, 36, 44), (112, 118, 128), (176, 58, 46), (255, 255, 255)
FIRST, LAST, NOTHING = (62, 104, 176), (46, 148, 128), (205, 209, 216)


@dataclass(frozen=True)
class FunnelRow:
    """One stage.

    Attributes:
        name, count: as given.
        base, base_name: count and name of the first stage that counts the same things.
        lost: of the stage before that did not get here.
        each: how many of this came from one of the stage before; None if it counts the same things.
        reasons: (reason, how many), most first; the last may sum up others.
    """

    name: str
    count: int
    base: int
    base_name: str
    lost: int
    each: float | None
    reasons: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """Of the base, 0 to 1."""
        return self.count / self.base if self.base else 0.0


def rows(stages: Stages, dropped: Dropped) -> list[FunnelRow]:
    """The stages with what a table or a picture says of them.

    Args:
        stages: (name, count) from the first to the last, names that differ; where the count rises, it counts
            something else from there on.
        dropped: by the name of the stage that they did not reach: reason -> how many. One thing may have several.
    """
    assert stages, "a funnel has stages"
    unknown = set(dropped) - {name for name, _ in stages}
    assert not unknown, f"no such stages: {sorted(unknown)}"
    found: list[FunnelRow] = []
    base_name, base = stages[0]
    before = stages[0][1]
    for name, count in stages:
        each = count / before if count > before and before else None
        if count > before:
            base_name, base = name, count
        found.append(
            FunnelRow(name, count, base, base_name, max(0, before - count), each, _most(dropped.get(name, {})))
        )
        before = count
    return found


def draw(stages: Stages, dropped: Dropped, title: str = "") -> Image.Image:
    """The picture, dark on white, 2552 pixels wide; arguments as in `rows`."""
    found = rows(stages, dropped)
    tops = _tops(found, MARGIN + (40 if title else 0))
    height = tops[-1] + BAR + MARGIN
    image = _shapes(found, tops, height)
    pen = _Pen(ImageDraw.Draw(image))
    if title:
        pen.text((MARGIN, MARGIN - 6), title, INK, 20, WIDTH - 2 * MARGIN)
    for number, (row, top) in enumerate(zip(found, tops, strict=True)):
        shared = row.base_name != row.name
        count = pen.text((COUNT_RIGHT, top + (1 if shared else 9)), f"{row.count:,}", INK, 19, anchor="ra")
        pen.text((MARGIN, top + 10), row.name, INK, 17, COUNT_RIGHT - count - 16 - MARGIN)
        if shared:
            pen.text((COUNT_RIGHT, top + 25), _per_cent(row.share), SOFT, 13, anchor="ra")
        if number:
            _between(pen, row, found[number - 1], tops[number - 1] + BAR)
    return image


def _between(pen: _Pen, row: FunnelRow, before: FunnelRow, top: int) -> None:
    """What is said beside the gap above a stage: how many were lost, and why."""
    if row.each is not None:
        times = f"{row.each:,.1f} times as many as {before.name}"
        pen.text((REASONS_LEFT + 110, top + 1), times, SOFT, 14, REASONS_WIDTH - 110)
        top += LINE
    if row.lost:
        share = _per_cent(row.lost / before.count)
        pen.text((REASONS_LEFT + 98, top + 1), f"-{row.lost:,}", LOSS, 14, anchor="ra")
        pen.text((REASONS_LEFT + 110, top + 1), f"{share} of {before.name}", LOSS, 14, REASONS_WIDTH - 110)
        top += LINE
    for reason, count in row.reasons:
        pen.text((REASONS_LEFT + 98, top + 2), f"{count:,}", INK, 14, anchor="ra")
        pen.text((REASONS_LEFT + 110, top + 2), reason, SOFT, 14, REASONS_WIDTH - 110)
        top += LINE


def _tops(found: Sequence[FunnelRow], top: int) -> list[int]:
    """Where each bar begins; the gap above it has room for what is said beside it."""
    tops = [top]
    for row in found[1:]:
        lines = (row.each is not None) + (row.lost > 0) + len(row.reasons)
        tops.append(tops[-1] + BAR + max(LEAST_GAP, LINE * lines + 8))
    return tops


def _shapes(found: Sequence[FunnelRow], tops: Sequence[int], height: int) -> Image.Image:
    """Bars, and between them what they narrow by."""
    fine = SCALE * FINER
    image = Image.new("RGB", (WIDTH * fine, height * fine), PAPER)
    ink = ImageDraw.Draw(image)
    for number, (row, top) in enumerate(zip(found, tops, strict=True)):
        colour = _blend(FIRST, LAST, number / max(1, len(found) - 1))
        left, right = _ends(row)
        if number and row.each is None and found[number - 1].count:
            foot = tops[number - 1] + BAR
            wide_left, wide_right = _ends(found[number - 1])
            corners = ((wide_left, foot), (wide_right, foot), (right, top), (left, top))
            ink.polygon([(x * fine, y * fine) for x, y in corners], fill=_blend(PAPER, colour, 0.2))
        box = [left * fine, top * fine, right * fine, (top + BAR) * fine]
        ink.rounded_rectangle(box, 4 * fine if right - left > 12 else 0, fill=colour if row.count else NOTHING)
    return image.resize((WIDTH * SCALE, height * SCALE), Image.Resampling.BOX)


def _ends(row: FunnelRow) -> tuple[float, float]:
    """Left and right of a bar; one that is there stays visible, however small its share."""
    half = max(1.5, FUNNEL_WIDTH / 2 * row.share)
    middle = FUNNEL_LEFT + FUNNEL_WIDTH / 2
    return middle - half, middle + half


class _Pen:
    """Writes text at places and sizes that do not know of SCALE."""

    def __init__(self, ink: ImageDraw.ImageDraw) -> None:
        self.ink = ink

    def text(
        self, place: tuple[float, float], text: str, colour: Colour, size: int, width: float = 0, anchor: str = "la"
    ) -> float:
        """One line, and its width; what is wider than `width` (0: no limit) is cut and ends in an ellipsis."""
        font = ImageFont.load_default(size * SCALE)
        line = " ".join(text.split())
        line = _cut(line, font, width * SCALE) if width else line
        self.ink.text((place[0] * SCALE, place[1] * SCALE), line, colour, font, anchor=anchor)
        return font.getlength(line) / SCALE


def _cut(text: str, font: Font, width: float) -> str:
    """The text, or as much of its beginning as fits with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # characters that fit, that do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = font.getlength(text[:middle].rstrip() + "\u2026") <= width
        low, high = (middle, high) if fits else (low, middle)
    return text[:low].rstrip() + "\u2026"


def _most(reasons: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The most frequent reasons; if there are too many, the others as one."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) <= REASONS:
        return tuple(ordered)
    others = [count for _, count in ordered[REASONS - 1 :]]
    return (*ordered[: REASONS - 1], (f"{len(others)} other reasons", sum(others)))


def _per_cent(share: float) -> str:
    """3.2 %, never 0.0 % of something or 100.0 % of less than all."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _blend(one: Colour, other: Colour, part: float) -> Colour:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue
