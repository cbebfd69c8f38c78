"""How much of a picture looks like text laid over it: subtitles, titles, tickers, logos.

No model, only what lines of letters have in common and leaves, grass and bricks seldom have, at a height of 144 pixels:

          quiet                   above and below a line there is little ink
    THE QUICK BROWN FOX           ink all along the line, in strokes thinner than 5 pixels that stand out from
          quiet                   what is around them; many strokes side by side; five times as wide as high

Ink is what a top hat (bright strokes) or black hat (dark strokes) leaves. A window of each height slides over it; where
it meets all conditions, it is text. It is meant for means over a second of film: what is laid over stands still and
stays, what moves behind it fades.

The limits were chosen on 117 drawings (13 kinds of text over 9 real shots) and 39 pictures without overlaid text, and
on these same ones 88 % of the drawings are found (the score rises by 0.4 of their area or more), with two to three
times their area as a rule, because windows are larger than letters; of the others the most mistaken scores 0.015.
Expect less of other material. Missed are letters under 4 % of the height, text of little contrast and text that
scrolls. Words on a wall are text too. 0.6 ms a picture of 256 x 144.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from data.media.video import Frames

Floats = npt.NDArray[np.float32]

STROKE = 5  # pixels; ink is thinner
CONTRAST = 44  # of 255, from ink to what is around it
HEIGHTS = (4, 6, 9, 13, 18)  # of a line, in pixels
ASPECT = 5  # width of the window over its height
CELL = 4  # pixels of a row that are counted together
LEAST_INK, MOST_INK = 0.2, 0.75  # share of the window
STROKES = 0.8  # at least so many side by side in a stretch as long as the line is high
EVEN = 0.6  # ink in the emptiest quarter of the window, relative to all of it
QUIET = 0.25  # ink above and below, at most, relative to the line's


def text_share(luma: Frames) -> float:
    """Share of a picture that text covers, 0 to 1.

    Args:
        luma: uint8 [height, width], a short side of about 144; of smaller pictures only larger letters are found.
    """
    kernel = np.ones((STROKE, STROKE), np.uint8)
    bright, dark = (_lines(cv2.morphologyEx(luma, hat, kernel)) for hat in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))
    return float(np.mean(bright | dark)) if bright.size else 0.0


def _lines(hat: Frames) -> npt.NDArray[np.bool_]:
    """[height, width / CELL]: where the ink forms lines of text."""
    height, cells = hat.shape[0], hat.shape[1] // CELL
    found = np.zeros((height, cells), bool)
    if cells <= 3:
        return found
    ink = cv2.threshold(hat[:, : cells * CELL], CONTRAST, 1, cv2.THRESH_BINARY)[1]
    if not ink.any():
        return found
    edges = np.zeros_like(ink)
    cv2.absdiff(ink[:, 1:], ink[:, :-1], edges[:, 1:])
    ink, edges = _by_cells(ink), _by_cells(edges)
    for line in HEIGHTS:
        rows, across = line | 1, max(3, ASPECT * line // CELL) | 1
        if rows + line // 2 < height and across < cells:
            found |= _windows(ink, edges, line, rows, across)
    return found


def _windows(ink: Floats, edges: Floats, line: int, rows: int, across: int) -> npt.NDArray[np.bool_]:
    """The union of the windows of `rows` pixels x `across` cells that are a line of text, `line` pixels high."""
    share = _mean(ink, across, rows)
    good = (share >= LEAST_INK) & (share <= MOST_INK)
    if not good.any():
        return good
    good &= _mean(edges, across, rows) >= 2 * STROKES / line
    margin = max(1, line // 4)
    ring, quiet = _mean(ink, across, margin), QUIET * share
    away = rows // 2 + (margin + 1) // 2
    good[away:] &= ring[:-away] <= quiet[away:]
    good[:-away] &= ring[away:] <= quiet[:-away]
    if not good.any():
        return good
    quarter = max(1, across // 4)
    emptiest = cv2.erode(_mean(ink, quarter, rows), np.ones((1, across - quarter + 1), np.uint8))
    good &= emptiest >= EVEN * share
    return np.asarray(cv2.dilate(good.astype(np.uint8), np.ones((rows, across), np.uint8)), bool)


def _by_cells(counted: Frames) -> Floats:
    """[height, width / CELL]: means."""
    means = counted.astype(np.float32).reshape(-1, CELL) @ np.full(CELL, 1 / CELL, np.float32)
    return np.asarray(means.reshape(len(counted), -1))


def _mean(of: Floats, across: int, rows: int) -> Floats:
    return np.asarray(cv2.boxFilter(of, -1, (across, rows), borderType=cv2.BORDER_CONSTANT))
