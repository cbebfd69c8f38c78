"""`ShardReader`: the frames of a sample, or its latents, from only those bytes of its shard that hold them.

    row --index--> shard, offset, slice table --pread--> header + slices --hash--> decode --> scale --> crop

Each stretch that is read is compared with its BLAKE3 before it is decoded, because decoders show flipped bits as
pictures. Frames are converted and scaled one by one, so a slice is bit for bit that slice of the whole.

Price: about 0.7 ms for a clip of 8 frames of 32 x 32 on one core, of which opening the mp4 is a fifth.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from data.containers.byte_ranges import Slices, digest_bytes
from data.dataset import latents_file
from data.dataset.index import Index
from data.dataset.latents_file import Latents
from data.media import image, video
from data.media.video import Frames
from data.planning.clip_sampling import Sampling
from parallel.errors import InputError

OPEN_FILES = 256
CACHE_BYTES = 128 << 20  # of decoded frames and of latents, in each rank

Array = TypeVar("Array", bound=npt.NDArray[Any])


class ShardReader:
    """Frames and latents by row of an index. Threads may share one.

    Attributes:
        bytes_read: from shards, so far.
    """

    def __init__(self, index: Index, sampling: Sampling) -> None:
        self.index, self.sampling = index, sampling
        self.bytes_read = 0
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int, int], npt.NDArray[Any]] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()  # over the four above

    def frames(self, row: int, begin: int, end: int) -> Frames:
        """Stored frames range(begin, end, stride) as trained on: uint8 RGB [n, height, width, 3], scaled and cropped.

        Raises:
            InputError: the shard is missing, cut short or changed; names shard, sample and part.
        """
        return self._cached((row, begin, end), lambda: self._cropped(row, self._decoded(row, begin, end)))

    def latents(self, row: int, begin: int, end: int) -> Latents:
        """Stored latent frames [begin, end): raw means float32 [n, channels, h, w], cropped to whole tokens.

        Raises:
            InputError: as `frames`, or they are not of a codec with these strides and channels.
        """
        return self._cached((row, begin, end), lambda: self._whole_tokens(row, self._means(row, begin, end)))

    def black(self, row: int, begin: int, end: int) -> Frames:
        """In place of `frames` that cannot be read."""
        height, width = self.sampling.crop(int(self.index.height[row]), int(self.index.width[row]))
        return np.zeros((-(-(end - begin) // self.sampling.stride), height, width, 3), np.uint8)

    def zeros(self, row: int, begin: int, end: int) -> Latents:
        """In place of `latents` that cannot be read."""
        height, width = self.sampling.crop(int(self.index.height[row]), int(self.index.width[row]))
        _, y, x = self.sampling.geometry.stride
        return np.zeros((end - begin, self.sampling.geometry.channels, height // y, width // x), np.float32)

    def bytes_of(self, row: int, begin: int, end: int) -> int:
        """Bytes that `frames`, or `latents`, of the same arguments would read from the shard."""
        slices = self.index.slices(row)
        if slices is None:
            return self.index.part(row).size
        first, last = slices.covering(begin, end)
        return slices.offsets[0] + slices.offsets[last] - slices.offsets[first]

    def shares(self, row: int, end: int, begin: int) -> bool:
        """Whether a stretch that ends before `end` and a later one from `begin` on need a slice in common."""
        slices = self.index.slices(row)
        return slices is None or slices.covering(begin, begin + 1)[0] <= slices.covering(end - 1, end)[0]

    def close(self) -> None:
        """Closes the shards; they open again when they are read."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _cached(self, key: tuple[int, int, int], make: Callable[[], Array]) -> Array:
        with self._lock:
            if key in self._cache:  # small clips come again and again
                self._cache.move_to_end(key)
                return self._cache[key]  # type: ignore[return-value]  # a row is either frames or latents
        made = self._named(key[0], make)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = made
                self._cached_bytes += made.nbytes
            while self._cached_bytes > CACHE_BYTES:
                self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return made

    def _named(self, row: int, make: Callable[[], Array]) -> Array:
        """What it makes; an error names shard, sample and part."""
        try:
            return make()
        except InputError as error:
            raise _bad_part(self.index, row, error.value) from error
        except OSError as error:
            raise _bad_part(self.index, row, error.strerror or str(error)) from error

    def _decoded(self, row: int, begin: int, end: int) -> Frames:
        index, stride = self.index, self.sampling.stride
        size = self.sampling.scaled(int(index.height[row]), int(index.width[row]))
        slices = index.slices(row)
        if slices is not None:
            header, data, first = self._slices(row, slices, begin, end)
            return video.decode_slices(header + data, slices.rows[first], begin, end, stride, size)
        part = index.part(row)
        data = self._bytes(row, 0, part.size, (part.hash,))
        if index.media(row) in image.SUFFIXES:
            return image.decode(data, size)
        return video.decode(data, begin, end, stride, size)

    def _means(self, row: int, begin: int, end: int) -> Latents:
        slices = self.index.slices(row)
        if slices is None:
            raise _broken("its index row has no slice table")
        header, data, _ = self._slices(row, slices, begin, end)
        return latents_file.decode(header, data)

    def _slices(self, row: int, slices: Slices, begin: int, end: int) -> tuple[bytes, bytes, int]:
        """Header and slices that hold rows [begin, end), and which slice is the first."""
        first, last = slices.covering(begin, end)
        header = self._bytes(row, 0, slices.offsets[0], slices.hashes[:1])
        ends = slices.offsets[first : last + 1]
        return header, self._bytes(row, ends[0], ends[-1], slices.hashes[first + 1 : last + 1], ends), first

    def _bytes(
        self, row: int, start: int, stop: int, hashes: tuple[str, ...], ends: tuple[int, ...] | None = None
    ) -> bytes:
        """Bytes [start, stop) of the media part; `ends` divides them into stretches, each with a hash."""
        part = self.index.part(row)
        file = self._file(self.index.shard(row))
        try:
            data = os.pread(file, stop - start, part.offset + start)
        finally:
            os.close(file)
        self.bytes_read += len(data)
        if len(data) != stop - start:
            raise _broken(f"cut short: {len(data)} of {stop - start} bytes")
        bounds = ends or (start, stop)
        for (a, b), known in zip(pairwise(bounds), hashes, strict=True):
            found = digest_bytes(memoryview(data)[a - start : b - start])
            if found != known:
                raise _broken(f"bytes {a} to {b}: BLAKE3 {found}, the index says {known}")
        return data

    def _cropped(self, row: int, frames: Frames) -> Frames:
        height, width = self.sampling.crop(int(self.index.height[row]), int(self.index.width[row]))
        top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
        cropped = frames[:, top : top + height, left : left + width]
        if cropped.shape == frames.shape and frames.flags.writeable:  # pictures may come as Pillow's own memory
            return cropped
        return cropped.copy()  # a view would keep the rest

    def _whole_tokens(self, row: int, means: Latents) -> Latents:
        """Cropped evenly, by whole cells."""
        (_, y, x), channels = self.sampling.geometry.stride, self.sampling.geometry.channels
        height, width = int(self.index.height[row]), int(self.index.width[row])
        cells = (channels, height // y, width // x)
        if means.shape[1:] != cells:
            raise _broken(f"latents {list(means.shape[1:])}, this codec gives {list(cells)}")
        crop_y, crop_x = (size // n for size, n in zip(self.sampling.crop(height, width), (y, x), strict=True))
        top, left = (cells[1] - crop_y) // 2, (cells[2] - crop_x) // 2
        return np.ascontiguousarray(means[:, :, top : top + crop_y, left : left + crop_x])

    def _file(self, shard: Path) -> int:
        """A descriptor of the caller's own: another thread may close the kept one meanwhile."""
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
            else:
                self._files[shard] = os.open(shard, os.O_RDONLY)
                if len(self._files) > OPEN_FILES:
                    os.close(self._files.popitem(last=False)[1])
            return os.dup(self._files[shard])


def _broken(reason: str) -> InputError:
    return InputError("a part is as it was written", reason, "see the message around this one")


def _bad_part(index: Index, row: int, reason: str) -> InputError:
    return InputError(
        "every part of a sample is as it was written",
        f"shard {index.shard(row)}, sample {index.uid(row)}, part {index.media(row)}: {reason}",
        "restore the shard from a copy, or run longreel data check --repair on the dataset",
    )
