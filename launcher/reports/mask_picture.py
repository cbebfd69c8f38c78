"""A picture of a mask and its split: what each rank computes, and which keys it fetches for that.

Rows are queries, columns are keys, from the first token to the last. A cell has the colour of the place that computes
it: strong where that place holds the keys itself, pale where it fetches them, white where nobody looks. The strip on
the left says who holds which queries; bars on the right compare area and bytes sent of all ranks.
"""

from __future__ import annotations

from colorsys import hls_to_rgb

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from parallel.attention.cost import Explanation
from parallel.masks import rectangles
from parallel.masks.mask import Mask
from parallel.masks.rectangles import K0, K1, Q0
from parallel.sequence.ownership import Holding, held_by
from parallel.sequence.sharding import Split

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

CELLS = 256  # at most, on each side
SIDE = 640  # pixels
MARGIN, STRIP, BARS, LINE = 44, 14, 300, 22
INK, PAPER = (34, 34, 34), (255, 255, 255)


def draw(mask: Mask, split: Split, said: Explanation, title: str) -> Image.Image:
    """The picture; `said` explains the same mask and split."""
    held = held_by(split.ranges, said.mesh.ulysses)
    colours = [colour_of(place, said.mesh.ring) for place in range(said.mesh.ring)]
    cells = min(CELLS, mask.queries)
    pixels = np.repeat(np.repeat(_cells(mask, held, colours, cells), -(-SIDE // cells), 0), -(-SIDE // cells), 1)
    height, width = pixels.shape[:2]
    rows = max(height, LINE * (said.mesh.sequence_ranks + 3))
    image = Image.new("RGB", (2 * MARGIN + STRIP + width + BARS, rows + 2 * MARGIN), PAPER)
    ink = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    ink.text((MARGIN, 12), title, INK, font)
    left, top = MARGIN + STRIP + 4, MARGIN
    image.paste(Image.fromarray(pixels), (left, top))
    ink.rectangle((left - 1, top - 1, left + width, top + height), outline=(190, 190, 190))
    for start, stop, place in zip(held.starts, held.stops, held.places, strict=True):
        box = (MARGIN, top + start * height // mask.queries, MARGIN + STRIP, top + stop * height // mask.queries - 1)
        if box[3] >= box[1]:
            ink.rectangle(box, fill=colours[place])
    _bars(ink, (left + width + 24, top), said, colours, font)
    ink.text((left, top + height + 8), "keys: strong are held here, pale are fetched", INK, font)
    return image


def colour_of(place: int, places: int, lightness: float = 0.45) -> Colour:
    """Hues apart from each other."""
    red, green, blue = hls_to_rgb(place / max(1, places), lightness, 0.65)
    return int(255 * red), int(255 * green), int(255 * blue)


def _cells(mask: Mask, held: Holding, colours: list[Colour], cells: int) -> Pixels:
    """[cells, cells, 3]: a cell is coloured if any pair in it is computed."""
    pixels = np.full((cells, cells, 3), 255, np.uint8)
    borders = np.arange(cells + 1) * mask.queries // cells
    key_borders = np.arange(cells + 1) * mask.keys // cells
    places = held.places[np.searchsorted(held.starts, borders[:-1], "right") - 1]  # of a cell's first query
    pieces, row = rectangles.cut_by(mask.table, borders[:-1], borders[1:], Q0)
    pieces, source = rectangles.cut_by(pieces, held.starts, held.stops, K0)
    row = np.searchsorted(borders, pieces[:, Q0], "right") - 1
    first = np.searchsorted(key_borders, pieces[:, K0], "right") - 1
    last = np.searchsorted(key_borders, pieces[:, K1], "left")
    for r, a, b, s in zip(row.tolist(), first.tolist(), last.tolist(), held.places[source].tolist(), strict=True):
        place = int(places[r])
        pixels[r, a:b] = colours[place] if s == place else _pale(colours[place])
    return pixels


def _pale(colour: Colour) -> Colour:
    red, green, blue = (255 - (255 - c) * 2 // 5 for c in colour)
    return red, green, blue


def _bars(
    ink: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    said: Explanation,
    colours: list[Colour],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Area and bytes of each rank."""
    x, y = corner
    sent = (said.forward_bytes + said.backward_bytes).sum(axis=1)
    ink.text((x, y), "rank   work / mean        sent, both ways", INK, font)
    for rank in range(said.mesh.sequence_ranks):
        y += LINE
        place = rank // said.mesh.ulysses
        share = float(said.flops[rank] / said.flops.mean())
        ink.text((x, y), f"{rank:3}", INK, font)
        ink.rectangle((x + 34, y + 3, x + 34 + int(70 * min(share, 2)), y + 14), fill=colours[place])
        ink.text((x + 40, y), f"{share:.2f}", PAPER, font)
        ink.text((x + 180, y), f"{sent[rank] / 2**20:8.1f} MiB", INK, font)
    ink.text((x, y + 2 * LINE), f"busiest / mean {said.uneven:.3f}", INK, font)
