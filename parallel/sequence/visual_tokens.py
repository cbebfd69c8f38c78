"""How the frames of a video become rows of a language model: pure arithmetic that data and models must agree on.

    frames   0 1 | 2 3 | 4 5 | 6 7 | 8          temporal_pool 2: 2 frames make one view, rows averaged
    views      0     1     2     3   4          the last may have fewer frames
    rows     ####    #     #   ####  #          slow_fast 3: every third view whole (side x side), the others 1

Averages over frames: STORM (Jiang et al., arXiv:2503.04130); few whole views among many of one row: LITA (Huang et al.,
arXiv:2403.19046); averages over neighbours in a frame (`side` smaller than the tower's own): LLaVA-Video (Zhang et al.,
arXiv:2410.02713). An image is a video of one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parallel.errors import InputError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Views:
    """Raises InputError if a number is not positive.

    Attributes:
        pixels: height and width of the frames that the model sees.
        side: a whole view is side x side rows.
        temporal_pool: frames of one view.
        slow_fast: every so many-th view is whole, from the first on.
    """

    pixels: int
    side: int
    temporal_pool: int = 1
    slow_fast: int = 1

    def __post_init__(self) -> None:
        if min(self.pixels, self.side, self.temporal_pool, self.slow_fast) < 1:
            raise InputError("views have pixels, rows and frames", str(self), "numbers of 1 or more")

    def rows(self, frames: int) -> Ints:
        """[views] rows of each view of a video of so many frames."""
        views = np.arange(-(-frames // self.temporal_pool))
        return np.where(views % self.slow_fast == 0, self.side**2, 1)

    def frames(self, frames: int) -> Ints:
        """[views] frames of each view; all have `temporal_pool`, but perhaps the last."""
        starts = np.arange(0, frames, self.temporal_pool)
        return np.minimum(starts + self.temporal_pool, frames) - starts

    def total(self, frames: int) -> int:
        """Rows of a video of so many frames."""
        return int(self.rows(frames).sum())
