"""Weights in the layout of Hugging Face: each rank reads what it holds (`pretrained_writer.py` writes them).

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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.checkpoints.safetensors_files import (
    COMPUTED,
    INDEX,
    SINGLE,
    Stored,
    few,
    refuse,
    stored_in,
)
from models.registry import spec_of
from parallel.errors import InputError
from parallel.fragments import shape_of
from parallel.hf_folder import from_folder
from parallel.zero.engine import Engine

CONFIG = "config.json"


def config_of(folder: Path) -> Any:
    """The transformers config of a folder; what runs code of the folder is refused.

    Raises:
        InputError: there is none, or it is of no model that this transformers knows.
    """
    from transformers import AutoConfig

    if not (folder / CONFIG).is_file():
        refuse(folder / CONFIG, "is not there", "give the folder that save_pretrained wrote, or a model's own")
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
    prefix, model = transformers_part(engine.module)
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
    _, model = transformers_part(module)
    here = matched(folder, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            flat = parameter.data.view(-1)
            for first, values in here[name].read(0, parameter.numel()):
                flat[first : first + len(values)].copy_(values)


def folder_of_weights(model: Any) -> Path | None:
    """The folder whose weights a model of these settings begins with; None if its numbers are drawn."""
    folder = spec_of(model).folder(model)
    if folder is None:
        return None
    stored = any((folder / name).is_file() for name in (SINGLE, INDEX)) or any(folder.glob("*.bin"))
    return folder if stored else None


def matched(folder: Path, model: Any) -> dict[str, Stored]:
    """Where the folder has each parameter of a model of transformers, whole or cut by ZeRO-3.

    Raises:
        InputError: tensors are missing, of another shape, or there are others; also see `stored_in`.
    """
    return _checked(folder, model, _by_own_name(model, stored_in(folder)))


def frozen_in(folder: Path, module: nn.Module) -> dict[str, Stored]:
    """Where the folder has each parameter of a module that is not trained, and so is in no checkpoint; as `matched`."""
    _, model = transformers_part(module)
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
        value = "; ".join(what + few(names) for what, names in told if names)
        refuse(folder, value, "give the folder whose config.json the model was made from")
    return here


def transformers_part(module: nn.Module) -> tuple[str, Any]:
    """The model of transformers in a module, and what comes before its own names of parameters."""
    from transformers import PreTrainedModel

    for name, part in module.named_modules():
        if isinstance(part, PreTrainedModel):
            prefix = f"{name}." if name else ""
            others = [n for n, _ in module.named_parameters() if not n.startswith(prefix)]
            assert not others, f"parameters that no folder of Hugging Face has: {few(others)}"
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


def _refuse_untied(folder: Path, model: Any, found: Mapping[str, Stored], engine: Engine, prefix: str) -> None:
    """Two names of one parameter have the same numbers, where the folder has both. Collective.

    Raises:
        InputError: on all ranks, if any of them sees a difference in what it holds.
    """
    pairs = {n[0]: [a for a in n[1:] if a in found] for n, _ in _tied(model) if n[0] in found}
    if not any(pairs.values()):
        return
    differ = torch.zeros((), device=device_of(engine))
    for fragment in engine.held():
        name = fragment.name.removeprefix(prefix)
        for alias in pairs.get(name, ()):
            stretches = zip(*(found[n].read(fragment.start, fragment.stop) for n in (name, alias)), strict=True)
            differ += any(not torch.equal(one.double(), other.double()) for (_, one), (_, other) in stretches)
    dist.all_reduce(differ)
    if differ:
        names = [f"{name} and {', '.join(aliases)}" for name, aliases in pairs.items() if aliases]
        refuse(folder, f"has other numbers for {few(names)}, which are tied", "tie_word_embeddings: false")


def device_of(engine: Engine) -> torch.device:
    """On which ranks talk."""
    return next(engine.module.parameters()).device
