"""Latents as they are stored: the posterior of an autoencoder, mean and log-variance, in one .npy file a clip.

    part      | header | mean 0 | mean 1 | ... | mean t-1 | log-variance of all |      [2, t, channels, h, w]
    offsets            h        a        b                                    end
    rows               0        1        2     ...          t                          in latent frames

Any numpy reads it: `mean, log_variance = np.load(file)`. A rank reads the header and the means of its latent frames,
each with a hash of its own; the log-variance is there for who draws from the posterior, and costs nobody else a byte.
Values are those of the autoencoder itself, not normalised: what divides them stands in the codec's config.

float32 is stored as such ("<f4"). bf16 is stored as its bits, in unsigned 16-bit integers ("<u2"), because numpy has no
such type: `(array.astype("u4") << 16).view("f4")`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.containers.byte_ranges import Slices, slices_of
from data.dataset import shards
from data.dataset.index import Index
from data.dataset.shards import COMMITS
from data.planning.clip_sampling import Sampling
from parallel.errors import InputError

MEDIA = "npy"  # suffix of the part
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "bf16": np.dtype("<u2")}

Dtype = Literal["float32", "bf16"]
Latents = npt.NDArray[np.float32]  # raw means [latent frames, channels, h, w]
Moments = npt.NDArray[np.float32]  # mean and log-variance [2, latent frames, channels, h, w]


def encode(moments: Moments, dtype: Dtype) -> tuple[bytes, Slices]:
    """The file of a clip, and its slice table.

    Args:
        moments: [2, latent frames, channels, h, w].
        dtype: of what is stored; values must be of it, for nothing is rounded here.
    """
    assert moments.ndim == 5, f"{moments.shape}"
    assert len(moments) == 2, f"{moments.shape}"
    stored: npt.NDArray[Any] = np.ascontiguousarray(moments, "<f4")
    if dtype == "bf16":
        bits = stored.view("<u4")
        assert not (bits & 0xFFFF).any(), "values are not of bf16"
        stored = (bits >> 16).astype(DTYPES["bf16"])
    file = io.BytesIO()
    np.save(file, stored, allow_pickle=False)
    data = file.getvalue()
    return data, slices(data)


def slices(data: bytes) -> Slices:
    """The slice table of a file that `encode` wrote.

    Raises:
        InputError: it is another file.
    """
    shape, dtype, begin = _header(data)
    each = int(np.prod(shape[2:], dtype=np.int64)) * dtype.itemsize
    sizes = [each] * shape[1] + [each * shape[1]]
    if len(data) != begin + sum(sizes):
        raise _other(f"{len(data)} bytes, its header says {begin + sum(sizes)}")
    return slices_of(data, tuple(range(shape[1] + 1)), tuple(accumulate(sizes, initial=begin)))


def decode(header: bytes, data: bytes) -> Latents:
    """Means [n, channels, h, w] of the latent frames whose slices are `data`, end to end.

    Raises:
        InputError: `header` is not that of such a file.
    """
    shape, dtype, _ = _header(header)
    stored = np.frombuffer(data, dtype).reshape(-1, *shape[2:])
    if dtype == DTYPES["bf16"]:
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.copy()  # of its own: what came from bytes cannot be written to


def are_latents(index: Index) -> npt.NDArray[np.bool_]:
    """[rows] whether a sample is stored as latents."""
    media = index.table["media"].combine_chunks()
    if not pa.types.is_dictionary(media.type):
        media = media.dictionary_encode()
    names = [name == MEDIA for name in media.dictionary.to_pylist()]
    if not any(names):
        return np.zeros(len(index), np.bool_)
    found: npt.NDArray[np.bool_] = np.array(names, np.bool_)[media.indices.to_numpy()]
    return found


def makers(index: Index, latents: npt.NDArray[np.bool_]) -> Iterator[tuple[Path, str]]:
    """(dataset, identity of the codec) of those that hold latents; "" if no commit tells it.

    Args:
        index: of the samples.
        latents: which of them are stored as latents.
    """
    for folder, start, stop in zip(index.folders, index.starts, index.starts[1:], strict=False):
        if not latents[start:stop].any():
            continue
        tars = index.table["shard"].slice(start, stop - start).filter(pa.array(latents[start:stop])).unique()
        commits = (folder / COMMITS / f"{Path(tar).stem}.json" for tar in tars.to_pylist())
        there = next((path for path in commits if path.exists()), None)  # all of a dataset are made by one codec
        config = shards.unsealed(there, shards.read_json(there))["config"] if there else {}
        yield folder, str(config.get("codec", ""))


def check(index: Index, latents: npt.NDArray[np.bool_], sampling: Sampling) -> None:
    """Whether latents can be sampled so.

    Args:
        index: of the samples.
        latents: which of them are stored as latents.
        sampling: of the run.

    Raises:
        InputError: frames would have to be left out, or pictures scaled.
    """
    if not latents.any():
        return
    again = "encode the dataset that it was made from again"
    if sampling.stride != 1:
        found = f"data.stride={sampling.stride}, {_folder(index, int(latents.argmax()))} holds latents"
        raise InputError("latents are of every frame: stride 1", found, f"data.stride=1, or {again}")
    if sampling.size is None:
        return
    height, width = sampling.size
    other = latents & ((index.height != height) | (index.width != width))
    if other.any():
        row = int(other.argmax())
        found = f"{other.sum()} clips in {_folder(index, row)} do not, one is {index.height[row]} x {index.width[row]}"
        remedy = f"leave data.size out, or {again} with --size {height}x{width}"
        raise InputError(f"latents have the size that was encoded: data.size=[{height},{width}]", found, remedy)


def _folder(index: Index, row: int) -> Path:
    return index.shard(row).parent.parent


def _header(data: bytes) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """(shape, dtype, where the array begins)."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0), f"{version}"
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, AssertionError) as error:
        raise _other(str(error)) from error
    if fortran or dtype not in DTYPES.values() or len(shape) != 5 or shape[0] != 2 or min(shape) < 1:
        raise _other(f"{dtype} {list(shape)}")
    return shape, dtype, file.tell()


def _other(found: str) -> InputError:
    rule = "latents are a .npy of float32 or bf16 bits, [2, frames, channels, h, w]"
    return InputError(rule, found, "make them with longreel data encode")
