"""One file of a checkpoint: the tensors of one rank, as safetensors, written as a stream and read by the element.

    8 bytes     size of the header, little-endian
    header      JSON: {"<parameter>[<start>:<stop>].<key>": {"dtype": "F32", "shape": [n], "data_offsets": [a, b]}, ...}
    data        fragment after fragment, and for each of them key after key

(https://github.com/huggingface/safetensors#format.) The library writes from one copy of everything in memory, which
a part may be too large for; any reader of safetensors opens these files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from launcher.checkpoints.storage import Chunk, Storage
from parallel.fragments import Fragment

CHUNK = 16 << 20  # bytes written, hashed or read at a time
LARGE = 4 << 20  # bytes that are worth a read of their own, without another copy
DTYPES = {"F32": torch.float32, "F64": torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
HEADER_ALIGN = 8


@dataclass(frozen=True)
class Part:
    """What a file holds.

    Attributes:
        file: its name.
        bytes: its size.
        blake3: hash of all of it, in hex.
        data_start: first byte of the data.
        dtype: of all its tensors, "F32" or "F64".
        keys: what it holds of each fragment, in this order.
        fragments: (parameter, first element, element after the last), in the order of the data.
    """

    file: str
    bytes: int
    blake3: str
    data_start: int
    dtype: str
    keys: tuple[str, ...]
    fragments: tuple[tuple[str, int, int], ...]

    @staticmethod
    def from_json(found: dict[str, Any]) -> Part:
        """As the manifest tells it; KeyError or TypeError if it does not."""
        fragments = tuple((str(name), int(start), int(stop)) for name, start, stop in found["fragments"])
        return Part(**{**found, "keys": tuple(found["keys"]), "fragments": fragments})


BufferOf = Callable[[str, str, int, int], Tensor | None]  # parameter, key, first element, element after the last
_Place = tuple[int, int, str, str, int]  # first byte, byte after the last, parameter, key, first element


@dataclass(frozen=True)
class Stretch:
    """Consecutive elements of one tensor of one parameter, as read."""

    name: str
    key: str
    start: int
    values: Tensor


def file_of(rank: int) -> str:
    """The name of a rank's part."""
    return f"part-{rank:05d}.safetensors"


def write_part(storage: Storage, name: str, file: str, fragments: Sequence[Fragment]) -> Part:
    """Write a file of a checkpoint that is not committed yet.

    Args:
        storage: where.
        name: of the checkpoint.
        file: its name.
        fragments: on the CPU, all with the same keys and of one dtype.
    """
    keys = tuple(fragments[0].tensors) if fragments else ()
    dtype = NAMES[fragments[0].tensors[keys[0]].dtype] if fragments else "F32"
    header = _header(fragments, keys, dtype)

    def chunks() -> Iterator[Chunk]:
        return chain([memoryview(header)], _data(fragments, keys))

    def digest() -> str:
        hasher = blake3()
        for chunk in chunks():
            hasher.update(chunk)
        return hasher.hexdigest()

    with ThreadPoolExecutor(1) as pool:  # the disk takes its time, in which the hash is ready
        hash_ = pool.submit(digest)
        storage.write(name, file, chunks())
    size, stretches = sum(map(len, chunks())), tuple((f.name, f.start, f.stop) for f in fragments)
    return Part(file, size, hash_.result(), len(header), dtype, keys, stretches)


def hash_of(storage: Storage, name: str, part: Part) -> str:
    """The hash of the file as it is now."""
    hasher = blake3()
    for start in range(0, part.bytes, CHUNK):
        hasher.update(storage.read(name, part.file, start, min(start + CHUNK, part.bytes)))
    return hasher.hexdigest()


def read_part(
    storage: Storage,
    name: str,
    part: Part,
    wanted: dict[str, tuple[int, int]],
    keys: Sequence[str],
    buffer_of: BufferOf = lambda *_: None,
) -> Iterator[Stretch]:
    """The tensors of a part that are wanted; small neighbours in the file are read together.

    Args:
        storage: where.
        name: of the checkpoint.
        part: of it.
        wanted: elements [start, stop) by parameter.
        keys: which tensors.
        buffer_of: memory for elements [start, stop) of a tensor, if there is any: large ones are read there.
    """
    dtype = DTYPES[part.dtype]
    run: list[_Place] = []
    for found in _places(part, wanted, keys, dtype.itemsize):
        alone = max(found[1] - found[0], run[-1][1] - run[-1][0] if run else 0) >= LARGE
        if run and (alone or found[0] != run[-1][1] or found[1] - run[0][0] > CHUNK):
            yield from _read_run(storage, name, part.file, run, dtype, buffer_of)
            run = []
        run.append(found)
    if run:
        yield from _read_run(storage, name, part.file, run, dtype, buffer_of)


def _read_run(
    storage: Storage,
    name: str,
    file: str,
    run: list[_Place],
    dtype: torch.dtype,
    buffer_of: BufferOf,
) -> Iterator[Stretch]:
    first, last, parameter, key, element = run[0]
    if len(run) == 1:
        target = buffer_of(parameter, key, element, element + (last - first) // dtype.itemsize)
        if target is not None and target.dtype == dtype and target.device.type == "cpu" and target.is_contiguous():
            storage.read_into(name, file, first, target.view(torch.uint8).numpy().data)
            yield Stretch(parameter, key, element, target)
            return
    data = memoryview(storage.read(name, file, first, run[-1][1]))
    for start, stop, parameter, key, element in run:
        values = torch.frombuffer(data[start - first : stop - first], dtype=dtype)
        yield Stretch(parameter, key, element, values)


def _places(
    part: Part, wanted: dict[str, tuple[int, int]], keys: Sequence[str], itemsize: int
) -> Iterator[tuple[int, int, str, str, int]]:
    at = part.data_start
    for parameter, start, stop in part.fragments:
        low, high = wanted.get(parameter, (0, 0))
        low, high = max(low, start), min(high, stop)
        for key in part.keys:
            if low < high and key in keys:
                for element in range(low, high, CHUNK // itemsize):
                    first = at + (element - start) * itemsize
                    numel = min(high - element, CHUNK // itemsize)
                    yield first, first + numel * itemsize, parameter, key, element
            at += (stop - start) * itemsize


def _header(fragments: Sequence[Fragment], keys: Sequence[str], dtype: str) -> bytes:
    at, described = 0, {}
    for fragment in fragments:
        for key in keys:
            numel = len(fragment.tensors[key])
            end = at + numel * DTYPES[dtype].itemsize
            name = f"{fragment.name}[{fragment.start}:{fragment.stop}].{key}"
            described[name] = {"dtype": dtype, "shape": [numel], "data_offsets": [at, end]}
            at = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGN)
    return len(text).to_bytes(8, "little") + text


def _data(fragments: Sequence[Fragment], keys: Sequence[str]) -> Iterator[memoryview]:
    for fragment in fragments:
        for key in keys:
            data = fragment.tensors[key].numpy().data.cast("B")
            yield from (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
