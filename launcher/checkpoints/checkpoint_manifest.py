"""What a checkpoint says of itself, and whether what lies there is that."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from blake3 import blake3

from data.streams.curriculum import Position
from launcher.checkpoints.part import Part, hash_of
from launcher.checkpoints.storage import MANIFEST, PREFIX, Storage
from parallel.parsing import ParseError, parse_json

FORMAT = 4  # raise it when a key of its config gets another name, or a tensor another place
SEAL = "seal"
OTHER_FORMAT = "format"


class BrokenError(ValueError):
    """A checkpoint that cannot be trusted; says which file and how."""


@dataclass(frozen=True)
class Updates:
    """Which steps changed the model (`launcher.training.anomaly_guard`).

    Attributes:
        done: how many did.
        norms: of the gradients of the last of them, the newest last.
        skipped: steps in a row, up to now, that did not because something was wrong with them.
    """

    done: int = 0
    norms: tuple[float, ...] = ()
    skipped: int = 0


@dataclass(frozen=True)
class TrainState:
    """What a run is besides tensors; rates and noises are functions of it and of the config.

    Attributes:
        position: in the data.
        datasets: digests of those of each segment that has begun.
        updates: of the model.
    """

    position: Position
    datasets: tuple[tuple[str, ...], ...]
    updates: Updates = Updates()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.position.step


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        state: the moment.
        config: of the run that wrote it, as JSON.
        layout: how it was computed: mesh, ZeRO stage, dtype (`layout_of`).
        versions: of packages, by name.
        recent: the lines of metrics.jsonl of the last steps.
        shapes: of every parameter, in the model's order.
        parts: the files.
        run: the identity of the run folder; empty if it was not known.
        outside: hashes of what the numbers depend on and no checkpoint holds (`launcher.checkpoints.external_hashes`),
        by name. machine: what computed it: threads, devices, kernels (`launcher.training.number_digests`).
    """

    state: TrainState
    config: dict[str, Any]
    layout: str
    versions: dict[str, str]
    recent: tuple[dict[str, Any], ...]
    shapes: dict[str, tuple[int, ...]]
    parts: tuple[Part, ...]
    run: str = ""
    outside: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The tensors of each parameter."""
        return self.parts[0].keys

    @property
    def size(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts)

    def to_json(self) -> bytes:
        """With a seal: the hash of all that is in it."""
        record = {
            "format": FORMAT,
            "run": self.run,
            "step": self.state.step,
            "position": json.loads(self.state.position.to_json()),
            "datasets": self.state.datasets,
            "updates": asdict(self.state.updates),
            "config": self.config,
            "layout": self.layout,
            "versions": self.versions,
            "outside": dict(self.outside),
            "machine": dict(self.machine),
            "recent": self.recent,
            "shapes": self.shapes,
            "parts": [asdict(part) for part in self.parts],
        }
        return json.dumps({SEAL: _seal(record), **record}, indent=1).encode()

    @staticmethod
    def from_json(data: bytes | bytearray) -> Manifest:
        """As written.

        Raises:
            BrokenError: it was changed, or is of another format.
        """
        try:
            record: dict[str, Any] = parse_json(data)
            if not isinstance(record, dict):
                raise BrokenError(f"{MANIFEST}: is no JSON object")
            seal = record.pop(SEAL, None)
            found = record["format"]
            if found != FORMAT:
                raise BrokenError(f"{MANIFEST}: {OTHER_FORMAT} {found}, this version reads {FORMAT}")
            if seal != _seal(record):
                raise BrokenError(f"{MANIFEST}: its content is not what was written")
            position = Position.from_json(json.dumps(record["position"]))
            return Manifest(
                state=TrainState(position, tuple(map(tuple, record["datasets"])), _updates(record, position.step)),
                config=record["config"],
                layout=record["layout"],
                versions=record["versions"],
                recent=tuple(record["recent"]),
                shapes={name: tuple(shape) for name, shape in record["shapes"].items()},
                parts=tuple(Part.from_json(part) for part in record["parts"]),
                run=str(record.get("run", "")),
                outside=dict(record.get("outside", {})),
                machine=dict(record.get("machine", {})),
            )
        except BrokenError:
            raise
        except ParseError:
            raise BrokenError(f"{MANIFEST}: is not the JSON that was written") from None
        except KeyError as error:
            raise BrokenError(f"{MANIFEST}: lacks {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise BrokenError(f"{MANIFEST}: {error}") from None


def name_of(step: int) -> str:
    """The folder of a step."""
    return f"{PREFIX}{step:08d}"


def _updates(record: dict[str, Any], step: int) -> Updates:
    found = record.get("updates", {"done": step, "norms": (), "skipped": 0})  # all made one before they were counted
    return Updates(int(found["done"]), tuple(map(float, found["norms"])), int(found["skipped"]))


def layout_of(config: Mapping[str, Any]) -> str:
    """On the same layout a run repeats itself bit by bit: mesh, ZeRO stage and dtype, for a person too."""
    mesh, zero = config["mesh"], config["zero"]
    cut = f"{mesh['replica']} x {mesh['ring']} x {mesh['ulysses']}"
    return f"{cut}, ZeRO {zero['stage']}, {config['dtype']}"


def open_manifest(storage: Storage, name: str) -> Manifest:
    """The manifest of a checkpoint whose files are there, no more and no less, and of the right sizes.

    Raises:
        BrokenError: they are not.
    """
    try:
        sizes = storage.files(name)
        _check_file(MANIFEST, sizes)
        manifest = Manifest.from_json(storage.read(name, MANIFEST))
    except OSError as error:
        raise BrokenError(f"{MANIFEST}: {error.strerror or error}") from None
    if name_of(manifest.state.step) != name:
        raise BrokenError(f"{MANIFEST}: is of step {manifest.state.step}")
    _check_parts(manifest.parts, sizes)
    _check_cover(manifest)
    return manifest


def verify(storage: Storage, name: str, parts: Iterable[Part]) -> str | None:
    """What is wrong with these parts of a checkpoint, by their hashes; None if nothing is."""
    for part in parts:
        try:
            found = hash_of(storage, name, part)
        except (OSError, EOFError) as error:
            return f"{part.file}: {getattr(error, 'strerror', None) or error}"
        if found != part.blake3:
            return f"{part.file}: its content is not what was written"
    return None


def _check_parts(parts: Iterable[Part], sizes: Mapping[str, int]) -> None:
    expected = {MANIFEST}
    for part in parts:
        if PurePath(part.file).name != part.file or "\\" in part.file:
            raise BrokenError(f"{MANIFEST}: {part.file!r} lies outside of the checkpoint")
        if not part.file.endswith(".safetensors"):
            raise BrokenError(f"{MANIFEST}: {part.file!r} is no .safetensors file: nothing else is opened")
        _check_file(part.file, sizes)
        if sizes[part.file] != part.bytes:
            raise BrokenError(f"{part.file}: {sizes[part.file]:,} bytes, not {part.bytes:,}")
        expected.add(part.file)
    strange = sorted(sizes.keys() - expected)
    if strange:
        raise BrokenError(f"{strange[0]}: is no file of this checkpoint, which holds tensors and JSON alone")


def _check_file(file: str, sizes: Mapping[str, int]) -> None:
    """A link may lead anywhere, and a pipe would be waited for."""
    if file not in sizes:
        raise BrokenError(f"{file}: is missing")
    if sizes[file] < 0:
        raise BrokenError(f"{file}: is no file of its own, but a link, a folder or a pipe")


def _check_cover(manifest: Manifest) -> None:
    """Every element of every parameter is there once."""
    held: dict[str, list[tuple[int, int]]] = {name: [] for name in manifest.shapes}
    for part in manifest.parts:
        if part.keys != manifest.keys:
            raise BrokenError(f"{MANIFEST}: {part.file} holds {part.keys}, the others {manifest.keys}")
        for name, start, stop in part.fragments:
            if name not in held:
                raise BrokenError(f"{MANIFEST}: {part.file} holds {name}, which has no shape")
            held[name].append((start, stop))
    for name, stretches in held.items():
        at = 0
        for start, stop in sorted(stretches):
            if start != at:
                raise BrokenError(
                    f"{MANIFEST}: elements {min(at, start)} to {max(at, start)} of {name} are held wrongly"
                )
            at = stop
        if at != math.prod(manifest.shapes[name]):
            raise BrokenError(f"{MANIFEST}: {at} elements of {name}, whose shape is {manifest.shapes[name]}")


def _seal(record: Mapping[str, Any]) -> str:
    return blake3(json.dumps(record, sort_keys=True).encode()).hexdigest()
