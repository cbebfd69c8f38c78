"""Weights in the layout of Hugging Face: each rank reads what it holds, and one parameter at a time is written.

    config.json      model.safetensors.index.json      model-00001-of-00002.safetensors      ...
         |                     |  name -> file              |  header: name -> dtype, shape, bytes
     `config_of`               +----------------------------+
         |                                  |  names in files <--renamings of transformers--> names in the model
    on_meta, engine_for --> `held`  <--load-+  of each fragment of this rank its bytes, and no others
                               |
                               +--save-->  whole parameters, one after the other, to rank 0 and its files

A tensor lies in its file row after row: elements [start, stop) of the flattened parameter are one stretch of bytes,
whatever its shape. So nothing but a header is read for nothing, and under ZeRO-3 no rank ever holds the whole model.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.checkpoints.reading import Checkpoint
from launcher.config.run_config import RunConfig
from models.language.video_lm import VideoLMConfig
from parallel.errors import InputError
from parallel.hf_folder import from_folder
from parallel.parsing import parse_json
from parallel.zero.engine import DeepSpeedEngine, Engine, shape_of, trained

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
CHUNK = 4 << 20  # elements read at a time
SHARD_BYTES = 5_000_000_000  # of a file
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
COMPUTED = ("rotary_emb.inv_freq", "position_ids")  # buffers that older files have and the model computes
BESIDE = (".json", ".txt", ".model", ".jinja")  # files of tokenisers and processors, which go along
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
                    _refuse(self.path, f"ends within {self.name}", "copy it again")
                yield first, torch.frombuffer(data, dtype=self.dtype)


def config_of(folder: Path) -> Any:
    """The transformers config of a folder; what runs code of the folder is refused.

    Raises:
        InputError: there is none, or it is of no model that this transformers knows.
    """
    from transformers import AutoConfig

    if not (folder / CONFIG).is_file():
        _refuse(folder / CONFIG, "is not there", "give the folder that save_pretrained wrote, or a model's own")
    try:
        return from_folder(AutoConfig, folder)
    except InputError:
        raise
    except (ValueError, KeyError, OSError) as error:
        remedy = "give a folder of a model that the installed transformers knows by itself"
        raise InputError("config.json tells a model of transformers", f"{folder / CONFIG}: {error}", remedy) from error


def load(folder: Path, engine: Engine) -> None:
    """Write the weights of a folder into an engine that has made no step; moments stay zero. Collective.

    Args:
        folder: with model.safetensors, or several such files and their index.
        engine: of a model of transformers, or of a module that has one and nothing else that is trained.

    Raises:
        InputError: the folder has no such files, a broken one, or other tensors than the model; nothing is written.
    """
    prefix, model = _pretrained(engine.module)
    found = _by_own_name(model, stored_in(folder))
    here = _checked(folder, model, found)
    _refuse_untied(folder, model, found, engine, prefix)
    with torch.no_grad():
        for fragment in (*engine.held(), *engine.frozen()):
            for first, values in here[fragment.name.removeprefix(prefix)].read(fragment.start, fragment.stop):
                start = first - fragment.start
                fragment.tensors["master"][start : start + len(values)].copy_(values)
    engine.refresh(0)


def fill(folder: Path, module: nn.Module) -> None:
    """Write the weights of a folder into a module, in one process; raises as `load`."""
    _, model = _pretrained(module)
    here = matched(folder, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat = parameter.data.view(-1)
            for first, values in here[name].read(0, parameter.numel()):
                flat[first : first + len(values)].copy_(values)


def folder_of_weights(config: RunConfig) -> Path | None:
    """The folder whose weights a run begins with; None if its numbers are drawn."""
    folder = config.model.path if isinstance(config.model, VideoLMConfig) else None
    if folder is None:
        return None
    stored = any((folder / name).is_file() for name in (SINGLE, INDEX)) or any(folder.glob("*.bin"))
    return folder if stored else None


def save(
    folder: Path,
    engine: Engine,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    like: Path | None = None,
) -> None:
    """Write the weights of an engine as a folder that transformers' `from_pretrained` opens. Collective.

    No rank holds more than one whole parameter. The folder gets its name when it is complete.

    Args:
        folder: that is not there yet; rank 0 writes it.
        engine: see `load`.
        dtype: of the files; that of the model by default.
        shard_bytes: that a file has at most, if it holds more than one tensor.
        like: the folder that was loaded: names stay as they are there, and its tokeniser goes along.

    Raises:
        InputError: on all ranks, if the folder is there already.
    """
    prefix, model = _pretrained(engine.module)
    dtype = dtype or next(model.parameters()).dtype
    refusal = [_refusal(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise refusal[0]
    whole = ((name.removeprefix(prefix), tensor) for name, tensor in _gathered(engine, dtype))
    if dist.get_rank() == 0:
        _write(folder, model, whole, dtype, shard_bytes, like)
    else:
        for _ in whole:  # nothing comes; it sends
            pass
    dist.barrier()


def export(
    folder: Path,
    found: Checkpoint,
    module: nn.Module,
    key: str = "master",
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
    like: Path | None = None,
) -> None:
    """The same as `save`, of a checkpoint and in one process without torch.distributed.

    Args:
        folder: that is not there yet.
        found: the checkpoint.
        module: the model that was trained; `on_meta` is enough, unless parts of it are frozen.
        key: "master", or "ema" for the moving average.
        dtype: of the files.
        shard_bytes: see `save`.
        like: see `save`.

    Raises:
        InputError: the folder is there already, or the checkpoint is of another model or without this key.
    """
    prefix, model = _pretrained(module)
    if (refusal := _refusal(folder)) is not None:
        raise refusal
    own, known = dict(model.named_parameters()), found.manifest.shapes.keys()
    if {prefix + name for name in trained(model)} != known:
        others = sorted({prefix + name for name in trained(model)} ^ known)
        value = f"{found.where}: {_few(others)} are of one alone"
        raise InputError("a checkpoint holds the parameters of the model", value, "give the config of its run")
    if key not in found.manifest.keys:
        value = f"{found.where} has no {key}"
        raise InputError("a moving average is exported if the run kept one", value, "--no-ema")
    whole = (
        (name, (found.parameter(prefix + name, key) if prefix + name in known else own[name].detach()).to(dtype))
        for name in own
    )
    _write(folder, model, whole, dtype, shard_bytes, like)


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
                _refuse(folder / file, f"has no {name}, which the index places there", "copy both again")
        return {name: headers[file][name] for name, file in places.items() if name in headers[file]}
    if (folder / SINGLE).is_file():
        return _header(folder / SINGLE)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        _refuse(
            folder / pickles[0],
            "is a pickle, and nothing is unpickled",
            "open it with transformers where you trust it, and save_pretrained",
        )
    _refuse(folder, f"has neither {SINGLE} nor {INDEX}", "give the folder that save_pretrained wrote")


def matched(folder: Path, model: Any) -> dict[str, Stored]:
    """Where the folder has each parameter of a model of transformers, whole or cut by ZeRO-3.

    Raises:
        InputError: tensors are missing, of another shape, or there are others; also see `stored_in`.
    """
    return _checked(folder, model, _by_own_name(model, stored_in(folder)))


def frozen_in(folder: Path, module: nn.Module) -> dict[str, Stored]:
    """Where the folder has each parameter of a module that is not trained, and so is in no checkpoint; as `matched`."""
    _, model = _pretrained(module)
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: stored for name, stored in matched(folder, model).items() if name in still}


def _checked(folder: Path, model: Any, found: Mapping[str, Stored]) -> dict[str, Stored]:
    here, shapes = {}, {}
    for names, parameter in _tied(model):
        shapes[names[0]] = tuple(shape_of(parameter))
        for name in reversed([name for name in names if name in found]):
            here[names[0]] = found[name]
    known = {name for names, _ in _tied(model) for name in names}
    missing = [name for name in shapes if name not in here]
    wrong = [f"{n} is {list(s.shape)} instead of {list(shapes[n])}" for n, s in here.items() if s.shape != shapes[n]]
    extra = [name for name in found if name not in known and not name.endswith(COMPUTED)]
    told = [("missing: ", missing), ("of another shape: ", wrong), ("of no use: ", extra)]
    if missing or wrong or extra:
        value = "; ".join(what + _few(names) for what, names in told if names)
        _refuse(folder, value, "give the folder whose config.json the model was made from")
    return here


def _refuse(where: Path, what: str, remedy: str) -> NoReturn:
    raise InputError(RULE, f"{where} {what}", remedy)


def _refusal(folder: Path) -> InputError | None:
    if not folder.exists():
        return None
    return InputError("weights are saved as a new folder", f"{folder} is there", "give another name, or remove it")


def _few(names: Sequence[str]) -> str:
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
        _refuse(path, f"has what is not trained: {_few(others)}", f"give weights of {', '.join(DTYPES)}")
    return {
        name: Stored(name, path, 8 + size + told["data_offsets"][0], DTYPES[told["dtype"]], tuple(told["shape"]))
        for name, told in kept.items()
    }


def _pretrained(module: nn.Module) -> tuple[str, Any]:
    """The model of transformers in a module, and what comes before its own names of parameters."""
    from transformers import PreTrainedModel

    for name, part in module.named_modules():
        if isinstance(part, PreTrainedModel):
            prefix = f"{name}." if name else ""
            others = [n for n, _ in module.named_parameters() if not n.startswith(prefix)]
            assert not others, f"parameters that no folder of Hugging Face has: {_few(others)}"
            return prefix, part
    rule = "weights of Hugging Face are those of a model of transformers"
    raise InputError(
        rule,
        f"{type(module).__name__} has none",
        "take a model of models.language.causal_lm or models.language.vision_tower",
    )


def _tied(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every parameter once, with all its names; the first is that of `named_parameters`."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


def _by_own_name(model: Any, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Under the names that `from_pretrained` gives them: files of LLaVA, for example, have older ones."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    every = get_model_conversion_mapping(model)
    renamings = [each for each in every if isinstance(each, WeightRenaming)]
    converters = [each for each in every if isinstance(each, WeightConverter)]
    own, found = model.state_dict(), {}
    for name, tensor in stored.items():
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        found[name if renamed in found else renamed] = tensor
    return found


def _names_in_files(model: Any, like: Path | None) -> dict[str, str]:
    """Of each parameter: as in the folder that was loaded, or as `save_pretrained` would write it."""
    if like is not None:
        return {own: stored.name for own, stored in matched(like, model).items()}
    from transformers.core_model_loading import revert_weight_conversion

    empty = {name: torch.empty(shape_of(parameter), device="meta") for name, parameter in model.named_parameters()}
    own = {id(tensor): name for name, tensor in empty.items()}
    written = revert_weight_conversion(model, empty).items()
    assert {id(tensor) for _, tensor in written} == own.keys(), f"{type(model).__name__} is not saved as it is"
    return {own[id(tensor)]: name for name, tensor in written}


def _refuse_untied(folder: Path, model: Any, found: Mapping[str, Stored], engine: Engine, prefix: str) -> None:
    """Two names of one parameter have the same numbers, where the folder has both. Collective.

    Raises:
        InputError: on all ranks, if any of them sees a difference in what it holds.
    """
    pairs = {n[0]: [a for a in n[1:] if a in found] for n, _ in _tied(model) if n[0] in found}
    if not any(pairs.values()):
        return
    differ = torch.zeros((), device=_device(engine))
    for fragment in engine.held():
        name = fragment.name.removeprefix(prefix)
        for alias in pairs.get(name, ()):
            stretches = zip(*(found[n].read(fragment.start, fragment.stop) for n in (name, alias)), strict=True)
            differ += any(not torch.equal(one.double(), other.double()) for (_, one), (_, other) in stretches)
    dist.all_reduce(differ)
    if differ:
        names = [f"{name} and {', '.join(aliases)}" for name, aliases in pairs.items() if aliases]
        _refuse(folder, f"has other numbers for {_few(names)}, which are tied", "tie_word_embeddings: false")


def _device(engine: Engine) -> torch.device:
    """On which ranks talk."""
    return next(engine.module.parameters()).device


def _gathered(engine: Engine, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """On rank 0 each parameter in the model's order, on the CPU; the other ranks send. Collective."""
    rank, device = dist.get_rank(), _device(engine)
    whole_here = engine.frozen() if rank == 0 or (isinstance(engine, DeepSpeedEngine) and engine.stage == 3) else []
    mine = {fragment.name: fragment for fragment in (*engine.owned(), *whole_here)}
    ranges = {name: (fragment.start, fragment.stop) for name, fragment in mine.items()}
    owners: list[dict[str, tuple[int, int]]] | None = [{}] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(ranges, owners)
    for name, parameter in engine.module.named_parameters():
        master = mine[name].tensors["master"].to(device, dtype) if name in mine else None
        if owners is None:
            if master is not None:
                _transfer([dist.P2POp(dist.isend, master.contiguous(), 0)])
            continue
        shape = shape_of(parameter)
        whole = torch.empty(shape.numel(), dtype=dtype, device=device)
        coming = []
        for owner, of_owner in enumerate(owners):
            if name in of_owner:
                part = whole[slice(*of_owner[name])]
                if master is not None and owner == rank:
                    part.copy_(master)
                else:
                    coming.append(dist.P2POp(dist.irecv, part, owner))
        _transfer(coming)
        yield name, whole.view(shape).cpu()


def _transfer(messages: list[dist.P2POp]) -> None:
    """Through the communicator that all ranks have: a message that is in no batch makes NCCL start one for its pair."""
    for work in dist.batch_isend_irecv(messages) if messages else []:
        work.wait()


def _write(
    folder: Path,
    model: Any,
    whole: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    shard_bytes: int,
    like: Path | None,
) -> None:
    """The folder, from parameters in the model's order, under its name when all of it is on the disk."""
    names = _names_in_files(model, like)
    shapes = {names[own]: tuple(shape_of(parameter)) for own, parameter in model.named_parameters()}
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    shards = split(sizes, shard_bytes)
    several = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = several if len(shards) > 1 else [SINGLE]
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = iter(whole)
    for file, shard in zip(files, shards, strict=True):
        with (part / file).open("wb") as out:
            out.write(_header_of({name: shapes[name] for name in shard}, sizes, NAMES[dtype]))
            for name in shard:
                own, tensor = next(tensors)
                assert names[own] == name, f"{own} came in place of {name}"
                out.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            out.flush()
            os.fsync(out.fileno())
    assert next(tensors, None) is None, "more parameters than the model has"
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (part / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    _write_config(part, model, dtype, like)
    part.rename(folder)


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


def _header_of(shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], dtype: str) -> bytes:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # without it transformers does not open the file
    at = 0
    for name, shape in shapes.items():
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_config(part: Path, model: Any, dtype: torch.dtype, like: Path | None) -> None:
    if like is not None:
        for path in sorted(like.iterdir()):
            if path.is_file() and path.suffix in BESIDE and path.name not in (CONFIG, INDEX):
                shutil.copyfile(path, part / path.name)
    elif model.can_generate():
        model.generation_config.save_pretrained(part)
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = str(dtype).removeprefix("torch."), [type(model).__name__]
    config.save_pretrained(part)
