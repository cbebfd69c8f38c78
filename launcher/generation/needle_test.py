"""`longreel needle`: which needles a run's model finds, by length and depth, as a table and a heat map.

    depth   0.0   # # # # .       each cell: the share of some haystacks whose secret the model says
            0.5   # # # . .
            1.0   # # # # #
                  1K  4K  16K     tokens

With frames, a haystack is a clip of plain frames in which one shows a coloured shape, and the colour is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data.chat.formats import conversation_of
from data.chat.turns import Conversation, Turn, Visual
from data.media.video import Frames
from data.synthetic.needle_in_haystack import needle
from data.synthetic.shape_questions import glimpse
from launcher.generation.answers import AnswerGenerator
from launcher.generation.evaluation import plain
from parallel.errors import InputError
from parallel.random import key_of

MOST_BYTES = 32  # of a token, in the mean of any haystack
CELL = (72, 40)  # pixels of the picture
MARGIN = (84, 34)
GOOD, BAD = np.array((46, 160, 90)), np.array((214, 69, 65))


@dataclass(frozen=True)
class Cell:
    """Haystacks of one length, their needles at one depth.

    Attributes:
        length: asked for: bytes of words, or frames.
        tokens: of the longest of them.
        depth: from 0 to 1.
        found, asked: needles.
    """

    length: int
    tokens: int
    depth: float
    found: int
    asked: int


def search(
    answerer: AnswerGenerator,
    lengths: Sequence[int],
    depths: int,
    each: int,
    secrets: int,
    frames: bool,
    seed: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Ask for needles of every length at every depth.

    Args:
        answerer: the model.
        lengths: of haystacks: bytes of words, or frames.
        depths: how many, from the beginning to the end.
        each: needles of a cell.
        secrets: in each haystack of words.
        frames: haystacks of frames instead of words.
        seed: of all that is random; training data should have another.
        on_progress: called with (done, total).

    Raises:
        InputError: the model sees nothing, or a number that cannot work.
    """
    if frames and answerer.builder.model.views is None:
        raise InputError("frames are for a model that sees", "model.vision is none", "leave out --frames")
    if min(*lengths, depths, each) < 1:
        raise InputError("lengths, depths and needles are at least 1", f"{lengths}, {depths}, {each}", "give 1 or more")
    if max(lengths) > MOST_BYTES * answerer.positions:
        told = f"--lengths {max(lengths):,}, the model knows {answerer.positions:,} positions"
        raise InputError("a haystack fits into the positions that the model knows", told, "shorter ones")
    cells, done, total = [], 0, len(lengths) * depths * each
    for length in lengths:
        for depth in np.linspace(0, 1, depths) if depths > 1 else (0.5,):
            found = most = 0
            for number in range(each):
                key = key_of(seed, length, depths, str(depth), number)
                conversation, shown = _haystack(answerer, key, length, float(depth), secrets, frames)
                layout, seen = answerer.layout(conversation, lambda _, shown=shown: shown)  # type: ignore[misc]
                said = answerer.answer(answerer.asked(layout, seen), most=8)
                found, most = found + (plain(said) == plain(_expected(conversation))), max(most, len(layout))
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            cells.append(Cell(length, most, float(depth), found, each))
    return cells


def heat_map(cells: Sequence[Cell], title: str) -> Image.Image:
    """Columns of lengths, rows of depths, the share that was found in each cell."""
    lengths, depths = list(dict.fromkeys(c.length for c in cells)), list(dict.fromkeys(c.depth for c in cells))
    width, height = MARGIN[0] + CELL[0] * len(lengths) + 12, MARGIN[1] + CELL[1] * len(depths) + 46
    picture = Image.new("RGB", (max(width, 380), height), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((10, 10), title, fill="black", font_size=14)
    bottom = MARGIN[1] + CELL[1] * len(depths)
    for cell in cells:
        left = MARGIN[0] + CELL[0] * lengths.index(cell.length)
        top = MARGIN[1] + CELL[1] * depths.index(cell.depth)
        share = cell.found / cell.asked
        colour = tuple(np.rint(share * GOOD + (1 - share) * BAD).astype(int).tolist())
        pen.rectangle((left, top, left + CELL[0] - 3, top + CELL[1] - 3), fill=colour)
        pen.text((left + CELL[0] // 2, top + CELL[1] // 2), f"{share:.0%}", fill="white", anchor="mm", font_size=14)
    for row, depth in enumerate(depths):
        middle = MARGIN[1] + CELL[1] * row + CELL[1] // 2
        pen.text((MARGIN[0] - 8, middle), f"{depth:.0%}", fill="black", anchor="rm", font_size=12)
    for column, (_, tokens, _, _) in enumerate(of_length(cells)):
        middle = MARGIN[0] + CELL[0] * column + CELL[0] // 2
        pen.text((middle, bottom + 10), f"{tokens:,}", fill="black", anchor="mm", font_size=12)
    pen.text((10, bottom + 10), "depth", fill="black", anchor="lm", font_size=12)
    pen.text((MARGIN[0], bottom + 28), "tokens", fill="black", anchor="lm", font_size=12)
    return picture


def of_length(cells: Sequence[Cell]) -> Iterator[tuple[int, int, int, int]]:
    """(length, tokens, found, asked) of each length, all depths together."""
    for length in dict.fromkeys(cell.length for cell in cells):
        mine = [cell for cell in cells if cell.length == length]
        yield length, max(c.tokens for c in mine), sum(c.found for c in mine), sum(c.asked for c in mine)


def _haystack(
    answerer: AnswerGenerator, key: int, length: int, depth: float, secrets: int, frames: bool
) -> tuple[Conversation, list[Frames]]:
    if not frames:
        return conversation_of(needle(key, length, depth, secrets)), []
    views = answerer.builder.model.views
    assert views is not None, "refused before"
    shown, colour = glimpse(key, length, views.pixels, depth)
    turns = (Turn("user", (Visual("video", "a clip"), "What colour?")), Turn("assistant", (colour,)))
    return Conversation("glimpse", turns), [shown]


def _expected(conversation: Conversation) -> str:
    return "".join(part for part in conversation.turns[-1].parts if isinstance(part, str))
