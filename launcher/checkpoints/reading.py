"""The newest whole checkpoint, and its tensors: whole parameters, or the elements that a rank needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.checkpoints.checkpoint_manifest import (
    OTHER_FORMAT,
    BrokenError,
    Manifest,
    TrainState,
    open_manifest,
    verify,
)
from launcher.checkpoints.part import DTYPES, BufferOf, Stretch, read_part
from launcher.checkpoints.storage import MANIFEST, Storage
from parallel.errors import InputError
from parallel.fragments import Fragment

DISTRUSTED = "distrusted: "  # a reason that is not about the files
Verify = Callable[[Storage, str, Manifest], str | None]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files are there."""

    storage: Storage
    name: str
    manifest: Manifest

    @property
    def state(self) -> TrainState:
        """The moment that it holds."""
        return self.manifest.state

    @property
    def where(self) -> str:
        """For messages."""
        return self.storage.where(self.name)

    def stretches(
        self, wanted: Mapping[str, tuple[int, int]], keys: Sequence[str], buffer_of: BufferOf = lambda *_: None
    ) -> Iterator[Stretch]:
        """The elements [start, stop) of each parameter, in pieces, reading little else; see `read_part`.

        Raises:
            InputError: the checkpoint has no such parameter, or not so many elements of it.
        """
        for name, (_, stop) in wanted.items():
            shape = self.manifest.shapes.get(name)
            if shape is None or stop > math.prod(shape):
                found = f"{self.where}: {name} is {'not there' if shape is None else f'of shape {shape}'}"
                raise InputError("a checkpoint holds the parameters of the model", found, "give the config of its run")
        for part in self.manifest.parts:
            yield from read_part(self.storage, self.name, part, dict(wanted), keys, buffer_of)

    def fill(self, fragments: Sequence[Fragment], keys: Sequence[str]) -> None:
        """Overwrite these tensors of the fragments with what the checkpoint holds of them, dtypes converted."""
        by_name = {fragment.name: fragment for fragment in fragments}
        assert len(by_name) == len(fragments), "a rank holds one stretch of a parameter"

        def buffer_of(name: str, key: str, start: int, stop: int) -> Tensor:
            fragment = by_name[name]
            return fragment.tensors[key][start - fragment.start : stop - fragment.start]

        with torch.no_grad():
            for found in self.stretches({f.name: (f.start, f.stop) for f in fragments}, keys, buffer_of):
                target = buffer_of(found.name, found.key, found.start, found.start + len(found.values))
                if target.data_ptr() != found.values.data_ptr():
                    target.copy_(found.values)

    def parameter(self, name: str, key: str) -> Tensor:
        """One whole tensor of a parameter."""
        shape = self.manifest.shapes[name]
        whole = torch.empty(math.prod(shape), dtype=DTYPES[self.manifest.parts[0].dtype])
        for found in self.stretches({name: (0, len(whole))}, (key,)):
            whole[found.start : found.start + len(found.values)] = found.values
        return whole.view(shape)


def by_hash(storage: Storage, name: str, manifest: Manifest) -> str | None:
    """Read every part, and say what is wrong with one."""
    return verify(storage, name, manifest.parts)


def trusting(storage: Storage, name: str, manifest: Manifest) -> str | None:
    """Sizes are enough, because somebody else compares the hashes."""
    return None


def newest(storage: Storage, check: Verify = by_hash) -> tuple[Checkpoint | None, list[tuple[str, str]]]:
    """The newest whole checkpoint, and (name, reason) of the broken ones that were passed over.

    Args:
        storage: of the run; it need not hold any.
        check: says what is wrong with one whose files are there.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    broken: list[tuple[str, str]] = []
    for name in reversed(storage.names()):
        try:
            manifest = open_manifest(storage, name)
            reason = check(storage, name, manifest)
        except BrokenError as error:
            reason = str(error)
        if reason is None:
            return Checkpoint(storage, name, manifest), broken
        broken.append((name, reason))
    if broken:
        raise InputError(
            "a run resumes from a whole checkpoint",
            f"{storage.where('')}: none of {len(broken)} is; {broken[0][0]}: {broken[0][1]}",
            _remedy(broken[0][1]),
        )
    return None, broken


def _remedy(reason: str) -> str:
    """What to do about a run none of whose checkpoints is whole, the newest for this reason."""
    if reason.startswith(DISTRUSTED):
        return "restart.verify=false, to go on with other numbers"
    if reason.startswith(f"{MANIFEST}: {OTHER_FORMAT}"):
        return "train it anew: longreel train RUN.yaml out=ANOTHER_FOLDER"
    return "bring one back from a copy, or remove the folder to train from the start"


def one(storage: Storage, name: str, check: Verify = by_hash) -> Checkpoint:
    """A checkpoint by its name.

    Raises:
        InputError: it is not there, or broken.
    """
    there = storage.names()
    rule, remedy = "a checkpoint is there and whole", f"there are: {', '.join(there) or 'none'}"
    if name not in there:
        raise InputError(rule, f"{storage.where(name)} is not", remedy)
    try:
        manifest = open_manifest(storage, name)
        reason = check(storage, name, manifest)
    except BrokenError as error:
        reason = str(error)
    if reason is not None:
        raise InputError(rule, f"{storage.where(name)}: {reason}", remedy)
    return Checkpoint(storage, name, manifest)
