"""Everything that can be found wrong with a run before a worker starts."""

from __future__ import annotations

from dataclasses import dataclass

from data.index import Index
from data.sampling import Sampling
from data.stream import Stream
from launcher import checkpoint
from launcher.config import RunConfig
from launcher.folder import RunFolder
from launcher.hardware import cores, gpus, ranks_here
from models.latents import open_codec
from parallel.errors import InputError


@dataclass(frozen=True)
class Ready:
    """What the checks found.

    Attributes:
        step: of the checkpoint that the run will go on from; 0 for a fresh run.
        samples: that will be trained on.
        notes: what works, but perhaps not as the person thinks, one sentence each.
    """

    step: int
    samples: int
    notes: tuple[str, ...]


def check(config: RunConfig, ranks_available: int | None = None) -> Ready:
    """Check dataset, packing, mesh and checkpoint of a run.

    Args:
        config: of the run.
        ranks_available: how many ranks can run; this machine's own number if not given, 0 for unknown.

    Raises:
        InputError: something cannot work.
    """
    _check_mesh(config, ranks_here() if ranks_available is None else ranks_available)
    index = Index.open(config.data.dataset)
    geometry = open_codec(config.codec, config.model.patch).geometry
    sampling = Sampling(geometry, config.data.frames, config.data.size, config.data.stride)
    with Stream(index, sampling, config.data.pack_tokens, config.seed, config.data.window) as stream:
        left_out = stream.left_out
    found, broken = checkpoint.newest(RunFolder(config.out).checkpoints)
    if found is not None:
        checkpoint.refuse_changes(found, config, index.digest)
    notes = [f"checkpoint {name} is broken and will be passed over: {reason}" for name, reason in broken]
    changed = checkpoint.changed_settings(found, config) if found is not None else []
    if found is not None and changed:
        notes.append(f"changed since step {found.state.step}: {'; '.join(changed)}")
    if left_out:
        uid, reason = left_out[0]
        notes.append(f"{len(left_out)} of {len(index)} samples are left out; {uid}: {reason}")
    longest = int(index.frames.max())
    if (config.data.frames or 0) * config.data.stride > longest:
        asked = f"data.frames={config.data.frames} at data.stride={config.data.stride}"
        notes.append(f"{asked} is more than any clip has: clips are taken whole, the longest has {longest} frames")
    return Ready(found.state.step if found else 0, len(index) - len(left_out), tuple(notes))


def _check_mesh(config: RunConfig, available: int) -> None:
    mesh = config.mesh.mesh()
    if available and mesh.ranks > available:
        what = f"{gpus()} GPUs" if gpus() else f"{cores()} cores, for at most {available} ranks"
        raise InputError(
            "a mesh has no more ranks than can run",
            f"{mesh} = {mesh.ranks} ranks; this machine has {what}",
            "a smaller mesh, or a cluster with --address",
        )
