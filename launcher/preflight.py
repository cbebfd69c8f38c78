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
        left_out: samples that do not fill a token, with the reason.
        broken: checkpoints that will be passed over, with the reason.
    """

    step: int
    samples: int
    left_out: list[tuple[str, str]]
    broken: list[tuple[str, str]]


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
    return Ready(found.state.step if found else 0, len(index) - len(left_out), left_out, broken)


def _check_mesh(config: RunConfig, available: int) -> None:
    mesh = config.mesh.mesh()
    if available and mesh.ranks > available:
        what = f"{gpus()} GPUs" if gpus() else f"{cores()} cores, for at most {available} ranks"
        raise InputError(
            "a mesh has no more ranks than can run",
            f"{mesh} = {mesh.ranks} ranks; this machine has {what}",
            "a smaller mesh, or a cluster with --address",
        )
