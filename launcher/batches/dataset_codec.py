"""The codec that a dataset of latents was made by: noted beside it, and taken by a run that names none.

    longreel data encode --codec models/vae --out D     D/codec.json: where that folder is, which codec, how
    a run on D without `codec`                          codec.kind=diffusers codec.path=models/vae

The note is a hint: the codec itself is compared with what the dataset's commits say (`provenance`), so a folder that
was moved or changed is refused, and never taken for the one that made the latents.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.dataset.index import Index
from data.dataset.latents_file import are_latents
from launcher.config.sections import DataConfig
from launcher.core.run_folder import write_whole
from models.codecs.codec import CodecConfig
from models.codecs.diffusers_vae import DiffusersCodecConfig
from parallel.errors import InputError
from parallel.parsing import parse_json

NOTE = "codec.json"


def note(dataset: Path, codec: Path, identity: str, tiling: bool) -> None:
    """Write where the codec of a dataset lies."""
    told = {"path": str(codec.absolute()), "identity": identity, "tiling": tiling}
    write_whole(dataset / NOTE, json.dumps(told, indent=1).encode())


def noted(dataset: Path) -> DiffusersCodecConfig | None:
    """The codec of a dataset, if it was noted and its folder is still there."""
    try:
        told: Any = parse_json((dataset / NOTE).read_bytes())
        path = Path(told["path"])
        tiling = bool(told["tiling"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        DiffusersCodecConfig(kind="diffusers", path=path, tiling=tiling) if (path / "config.json").is_file() else None
    )


def refuse_pixels(codec: CodecConfig, data: DataConfig, index: Index) -> None:
    """A run on latents has a codec; the pixel codec would take their numbers for colours.

    Raises:
        InputError: it has the pixel codec, by default or by choice.
    """
    if codec.kind != "pixel" or not are_latents(index).any():
        return
    where = next((folder for folder in data.folders if holds_latents(folder)), data.folders[0])
    known = noted(where)
    found = f"{where}: latents, the run has the pixel codec"
    remedy = "codec.kind=diffusers codec.path=FOLDER, the one that longreel data encode --codec was given"
    if known is not None:
        remedy = f"codec.kind=diffusers codec.path={known.path}"
    raise InputError("latents are trained on with the codec that made them", found, remedy)


def holds_latents(folder: Path) -> bool:
    """Whether a dataset has latents; a broken one has none."""
    try:
        return bool(are_latents(Index.open(folder)).any())
    except InputError:
        return False  # it is told where the dataset is opened
