"""A codec of plain arithmetic, in a module of its own: processes that use it load no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset.latents_file import Dtype, Moments
from data.media.video import Frames
from data.prepare.encode_stage import EncodeOptions, EncodeSummary, encode
from parallel.sequence.geometry import Geometry


@dataclass
class Means:
    """Causal: the mean colour of each cell of the first frame of a latent; the log-variance is minus that.

    Attributes:
        calls: how many clips it has encoded.
        before: called before each.
    """

    stride: tuple[int, int, int] = (4, 8, 8)
    identity: str = "means 1"
    dtype: Dtype = "float32"
    settings: Mapping[str, Any] = field(default_factory=dict)
    calls: int = 0
    before: Callable[[], object] = lambda: None

    @property
    def geometry(self) -> Geometry:
        return Geometry(3, self.stride, (1, 1, 1), causal=True, sliceable=False)

    def __call__(self, frames: Frames) -> Moments:
        self.before()
        self.calls += 1
        _, y, x = self.stride
        n, height, width, _ = frames[:: self.stride[0]].shape
        cells = (
            frames[:: self.stride[0]].reshape(n, height // y, y, width // x, x, 3).mean(axis=(2, 4), dtype=np.float32)
        )
        means = cells.transpose(0, 3, 1, 2)  # [t, channels, h, w]
        return np.stack([means, -means])


def encode_all(source: str, out: Path) -> EncodeSummary:
    return encode(Path(source), out, Means())


def encode_part(source: Path, out: Path, part: int, parts: int) -> EncodeSummary:
    return encode(source, out, Means(), EncodeOptions(part=part, parts=parts))
