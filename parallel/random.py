"""Random numbers by counter: a draw depends on (key, purpose, position), never on the rank or on what was drawn before.

Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), from numpy, is a block cipher:
block i of the stream can be had without the blocks before it. One block gives four 64-bit words, and one word two
32-bit uniforms, which Box and Muller (1958) turn into two normals: each token owns ceil(dim / 8) blocks. So a rank
that holds positions [a, b) draws exactly the numbers that one process would have drawn there, and there is no RNG
state to save. Single precision is enough for noise and costs 5 ns a normal on one core; double, four times that.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

NORMALS_PER_BLOCK = 8
CHUNK_WORDS = 1 << 15  # temporaries stay in the cache: four times as fast as one pass over a large array


def key_of(*parts: int | str) -> int:
    """64 bits that depend on every part, for example key_of(seed, epoch, uid) or key_of(document.key, "noise")."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def normal(key: int, start: int, stop: int, dim: int) -> npt.NDArray[np.float32]:
    """Standard normals of positions [start, stop): [stop - start, dim], bit for bit the rows of any larger request."""
    blocks = -(-dim // NORMALS_PER_BLOCK)
    out = np.empty((max(0, stop - start), dim), np.float32)
    generator = np.random.Philox(key=np.array([key, 0], np.uint64))  # a plain list would become floats
    generator.advance(start * blocks)
    rows = max(1, CHUNK_WORDS // (4 * blocks))
    for row in range(0, len(out), rows):
        piece = out[row : row + rows]
        words = generator.random_raw(4 * len(piece) * blocks).reshape(len(piece), 4 * blocks)
        first = ((words >> np.uint64(32)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)  # never 0
        second = (words & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2.0 * np.pi * 2.0**-32)
        radius = np.sqrt(np.float32(-2.0) * np.log(first))
        normals = np.concatenate((radius * np.cos(second), radius * np.sin(second)), axis=1)
        piece[:] = normals[:, :dim]
    return out


def normal_at(key: int, positions: npt.NDArray[np.int64], dim: int) -> npt.NDArray[np.float32]:
    """Standard normals [positions, dim] of any positions, the same numbers as `normal` has there.

    All between the lowest and the highest are drawn, so it costs what their span does.
    """
    if not len(positions):
        return np.empty((0, dim), np.float32)
    first, last = int(positions.min()), int(positions.max()) + 1
    drawn = normal(key, first, last, dim)
    return drawn if len(positions) == last - first and (np.diff(positions) == 1).all() else drawn[positions - first]


def uniform(key: int) -> float:
    """One number in [0, 1) with 53 bits."""
    return (key_of(key, "uniform") >> 11) * 2.0**-53
