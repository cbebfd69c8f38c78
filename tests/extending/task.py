"""A conditioning task from outside of the packages: every second frame is given, the ones between are generated."""

from __future__ import annotations

import numpy as np

from models.objectives.conditioning import CONDITIONING, Conditioning, Tokens
from parallel.sequence.geometry import Grid


def even_frames(grid: Grid, key: int) -> Tokens:
    """Frames 0, 2, 4 ... of tokens."""
    even: Tokens = (np.arange(grid[0]) % 2 == 0)[:, None, None]
    return even


CONDITIONING.register("even_frames", Conditioning("every second frame", even_frames))
