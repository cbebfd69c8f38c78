"""Files of safetensors, one or several with their index: where each tensor lies, and its bytes a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from parallel.errors import InputError
from parallel.parsing import parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CHUNK = 4 << 20  # elements read at a time
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
COMPUTED = ("rotary_emb.inv_freq", "position_ids")  # buffers that older files have and the model computes
SHOWN = 6  # names in a message
RULE = "a folder of Hugging Face holds the weights of the model"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        name: in the file.
        path: of the file.
        first: byte of its data in the file.
        dtype: of its elements.
        shape: of it.
    """

    name: str
    path: Path
    first: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Elements [start, stop) of the flattened tensor, in pieces, each with the number of its first."""
        with self.path.open("rb") as file:
            file.seek(self.first + start * self.dtype.itemsize)
            for first in range(start, stop, CHUNK):
                data = bytearray((min(first + CHUNK, stop) - first) * self.dtype.itemsize)
                if file.readinto(data) < len(data):
                    refuse(self.path, f"ends within {self.name}", "copy it again")
                yield first, torch.frombuffer(data, dtype=self.dtype)


def stored_in(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder, by their names in the files; headers alone are read.

    Raises:
        InputError: there are none, one is broken, or of a dtype that is not trained.
    """
    if (folder / INDEX).is_file():
        try:
            places: dict[str, str] = dict(parse_json((folder / INDEX).read_bytes())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(RULE, f"{folder / INDEX} is no index: {error}", "copy it again") from error
        headers = {file: _header(folder / Path(file).name) for file in sorted(set(places.values()))}
        for name, file in places.items():
            if name not in headers[file] and not name.endswith(COMPUTED):
                refuse(folder / file, f"has no {name}, which the index places there", "copy both again")
        return {name: headers[file][name] for name, file in places.items() if name in headers[file]}
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        refuse(
            folder / pickles[0],
            "is a pickle, and nothing is unpickled",
            "open it with transformers where you trust it, and save_pretrained",
        )
    refuse(folder, f"has neither {SINGLE} nor {INDEX}", "give the folder that save_pretrained wrote")


def refuse(where: Path, what: str, remedy: str) -> NoReturn:
    """Raise the InputError of a folder or a file of it: `where` and `what` make a sentence."""
    raise InputError(RULE, f"{where} {what}", remedy)


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _header(path: Path) -> dict[str, Stored]:
    """https://github.com/huggingface/safetensors#format; the library checks that the tensors fill the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            described: dict[str, Any] = parse_json(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(RULE, f"{path} is no whole safetensors file: {error}", "copy it again") from error
    described.pop("__metadata__", None)
    kept = {name: told for name, told in described.items() if not name.endswith(COMPUTED) or told["dtype"] in DTYPES}
    others = [f"{name} is {told['dtype']}" for name, told in kept.items() if told["dtype"] not in DTYPES]
    if others:
        refuse(path, f"has what is not trained: {few(others)}", f"give weights of {', '.join(DTYPES)}")
    return {
        name: Stored(name, path, 8 + size + told["data_offsets"][0], DTYPES[told["dtype"]], tuple(told["shape"]))
        for name, told in kept.items()
    }


def split(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in their order, in groups of at most `most` bytes; one that is larger is alone."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = most
        groups[-1].append(name)
        left -= size
    return groups


def header_of(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: str) -> bytes:
    """What a file of tensors of one dtype begins with.

    Args:
        shapes: by name, in the order of the file.
        sizes: the same in bytes.
        dtype: as the format calls it.
    """
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers does not open the file
    at = 0
    for name, shape in shapes.items():
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
