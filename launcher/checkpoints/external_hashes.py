"""What the numbers of a run depend on and no checkpoint holds, each named in the manifest by a hash.

    name                      what                                                       hashed
    model.path config         config.json and preprocessor_config.json of the folder     meaning: no versions, no names
    model.path frozen         parameters that are not trained: read there at each start  by the model's names, so that
                                                                                         files may be cut otherwise
    codec.path                the autoencoder: encodes while training, decodes samples   settings and weights
    extensions NAME           files of Python that the run names                         bytes
    tokenizer of segment N    tokenizer and chat template of a chat dataset              meaning

Datasets have digests of their own in the manifest, and each sample its hash. A path may change as it likes: what lies
there is compared when a run goes on, when it is sampled and when it is exported.

Price: one reading of what is frozen, about a second a gigabyte, the first time on each machine; then the hash is taken
from `.hashes.json` of the run folder, as long as every file has the size, times and inode that it had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from blake3 import blake3
from torch import nn

from data.chat.chat_index import ChatIndex
from data.streams.curriculum import Curriculum
from launcher.checkpoints.pretrained import CONFIG, folder_of_weights, frozen_in
from launcher.checkpoints.reading import Checkpoint
from launcher.checkpoints.safetensors_files import Stored
from launcher.config.extensions import hashes_of
from launcher.config.run_config import RunConfig
from launcher.core.run_folder import RunFolder, write_whole
from models.codecs.diffusers_vae import identity_of, weights_of
from models.registry import spec_of
from parallel.errors import InputError
from parallel.parsing import parse_json

HASHES = ".hashes.json"
PREPROCESSOR = "preprocessor_config.json"
VOLATILE = ("transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype")  # say nothing of numbers
TOKENIZER_OF = "tokenizer of segment {}"
LENGTH = 16  # bytes of a hash


class Hashes:
    """Hashes of files that have not changed since they were read: by path, size, times and inode.

    Args:
        path: of the record; None for none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.known = path, dict[str, Any]()
        if path is not None and path.exists():
            with suppress(OSError, ValueError):  # it is only faster
                self.known = dict(parse_json(path.read_bytes()))

    def of(self, name: str, files: Sequence[Path], make: Callable[[], str]) -> str:
        """The hash that `make` gives, or gave for the same files."""
        states = [(str(file), file.stat()) for file in files]
        seen = [[path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in states]
        before = self.known.get(name)
        if not isinstance(before, dict) or before.get("files") != seen:
            self.known[name] = before = {"files": seen, "hash": make()}
        return str(before["hash"])

    def keep(self) -> None:
        """For the next start; a full disk only makes that slower."""
        if self.path is not None and self.known:
            with suppress(OSError):
                write_whole(self.path, json.dumps(self.known).encode())


def gather_outside(
    config: RunConfig, module: nn.Module, curriculum: Curriculum, is_first_of_node: bool
) -> dict[str, str]:
    """The hashes of a run, as the first rank of each node sees them. Collective.

    Raises:
        InputError: on all ranks: two nodes see different things, or one cannot read them.
    """
    mine: dict[str, str] | InputError | None = None
    hashes = Hashes(RunFolder(config.out).root / HASHES)
    if is_first_of_node:
        try:
            mine = outside_of(config, module, curriculum, hashes)
        except InputError as error:
            mine = error
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    said = [each for each in found if each is not None]
    failed = next((each for each in said if isinstance(each, InputError)), None)
    if failed is not None:
        raise failed
    for other in said[1:]:
        name = next((name for name in said[0] if other.get(name) != said[0][name]), None)
        if name is not None:
            rule = "all nodes of a run read the same files"
            remedy = f"copy {_where(config, name)} anew to every node, or lay it on storage that all see"
            raise InputError(rule, f"{name} is not the same on all nodes", remedy)
    if dist.get_rank() == 0:
        hashes.keep()
    return dict(said[0])


def outside_of(
    config: RunConfig, module: nn.Module | None, curriculum: Curriculum | None, hashes: Hashes
) -> dict[str, str]:
    """Hashes by name; those of `module` and `curriculum` only where they are given.

    Raises:
        InputError: something is not there.
    """
    found = {f"extensions {name}": digest for name, digest in hashes_of(config.extensions).items()}
    published = spec_of(config.model).folder(config.model)
    if published is not None:
        about = [file for file in (published / CONFIG, published / PREPROCESSOR) if file.is_file()]
        found["model.path config"] = _of_meaning(about)
        folder = folder_of_weights(config.model)
        if folder is not None and module is not None and (frozen := frozen_in(folder, module)):
            files = sorted({stored.path for stored in frozen.values()})
            name = f"frozen {digest_of(sorted(frozen))} of {folder}"
            found["model.path frozen"] = hashes.of(name, files, lambda: _of_tensors(frozen))
    if config.codec.folder is not None:
        codec = config.codec.folder
        try:
            files = [codec / CONFIG, *weights_of(codec)]
            found["codec.path"] = hashes.of(f"codec {codec}", files, lambda: identity_of(codec))
        except (OSError, ValueError) as error:
            rule = "a diffusers codec is a folder with config.json and weights"
            raise InputError(rule, f"{codec}: {error}", "give codec.path=FOLDER that has both") from None
    for number, stream in enumerate(curriculum.streams if curriculum is not None else ()):
        if isinstance(stream.index, ChatIndex) and stream.index.tokenizer_folder.is_dir():
            found[TOKENIZER_OF.format(number)] = hash_of_tokenizer(stream.index)
    return found


def hash_of_tokenizer(chats: ChatIndex) -> str:
    """Of the copy that lies with the conversations, template and all."""
    return _of_meaning(sorted(file for file in chats.tokenizer_folder.iterdir() if file.is_file()))


def refuse_other_outside(checkpoint: Checkpoint, config: RunConfig, now: Mapping[str, str]) -> None:
    """What is in no checkpoint is what it was when the run began; segments that have not begun may change.

    Raises:
        InputError: names the first that is not.
    """
    later = {TOKENIZER_OF.format(n) for n in range(len(checkpoint.state.datasets), len(config.data.starts) + 1)}
    for name, was in checkpoint.manifest.outside.items():
        if name in now and now[name] != was and name not in later:
            where = _where(config, name)
            remedy = f"put back what was there, or give a copy of it: {where}=FOLDER"
            if name.startswith("extensions"):
                remedy = "put back what was there, or give a copy of it: extensions=[FILE]"
            if name.startswith("tokenizer"):
                remedy = "put back what was there: the tokenizer folder of that chat dataset"
            raise InputError(
                "what a run reads beside its checkpoints stays as it was when the run began",
                f"{name}: its hash is {now[name]}, {checkpoint.where} was made with {was}",
                f"{remedy}; or start another run with out=FOLDER",
            )


def digest_of(value: Any) -> str:
    """Of what JSON can tell, whatever the order of its keys."""
    return str(blake3(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest(length=LENGTH))


def _where(config: RunConfig, name: str) -> str:
    """The setting that leads there."""
    return "data.dataset" if name.startswith("tokenizer") else name.partition(" ")[0]


def _of_meaning(files: Sequence[Path]) -> str:
    """Of small files: what JSON says, without versions and names, and the bytes of others."""
    found = {}
    for file in files:
        data = file.read_bytes()
        try:
            told = json.loads(data) if file.suffix == ".json" else None
        except (ValueError, RecursionError):
            told = None
        raw = blake3(data).hexdigest(length=LENGTH)
        found[file.name] = _steady(told) if told is not None else raw
    return digest_of(found)


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if key not in VOLATILE}
    return [_steady(inner) for inner in value] if isinstance(value, list) else value


def _of_tensors(stored: Mapping[str, Stored]) -> str:
    """Of names, dtypes, shapes and numbers, wherever they lie."""
    whole = blake3()
    for name, tensor in sorted(stored.items()):
        one = blake3(max_threads=blake3.AUTO)
        for _, values in tensor.read(0, math.prod(tensor.shape)):
            one.update(values.view(torch.uint8).numpy().data)
        whole.update(f"{name} {tensor.dtype} {tensor.shape} {one.hexdigest()}\n".encode())
    return str(whole.hexdigest(length=LENGTH))
