"""Which settings make a step take less memory: those that a run has not set yet, in the order of what they cost.

    relief(config, "gpu")  -->  ("model.recompute=true", "model.mlp_tiles=8", "zero.stage=3", ...)

First what costs a little time (recompute, activations in the host's memory, tiles), then other meshes, then ZeRO, and
last less work. Where the host's memory is what ran out, nothing is proposed that puts more into it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from parallel.errors import InputError

if TYPE_CHECKING:
    from launcher.config.run_config import RunConfig

TILES = 8  # of an MLP: its wide rows then take half the room of its input
Of = Literal["gpu", "host"]


def relief(config: RunConfig, of: Of) -> tuple[str, ...]:
    """The settings, each as it is typed; those to type together stand together.

    Args:
        config: of the attempt, with the mesh that it ran on.
        of: whose memory is short; on a CPU the host's.
    """
    return (*_model(config, of), *_mesh(config), *_zero(config, of), *_data(config))


def _model(config: RunConfig, of: Of) -> Iterator[str]:
    model = config.model
    if getattr(model, "recompute", None) is False:
        yield "model.recompute=true"
    if of == "gpu" and getattr(model, "offload", None) is False:
        yield "model.offload=true"
    if getattr(model, "mlp_tiles", TILES) == 1:
        yield f"model.mlp_tiles={TILES}"


def _mesh(config: RunConfig) -> Iterator[str]:
    mesh = config.mesh
    if mesh.ulysses > 1:
        yield f"mesh.ring={mesh.ring * mesh.ulysses} mesh.ulysses=1"
    if mesh.replica % 2 == 0:
        yield f"mesh.replica={mesh.replica // 2} mesh.ring={2 * mesh.ring}"
    else:
        yield f"mesh.ring={2 * mesh.ring} (twice the ranks)"


def _zero(config: RunConfig, of: Of) -> Iterator[str]:
    stage, offload = config.zero.stage, config.zero.offload
    if stage < 3 and config.mesh.mesh().ranks > 1:
        yield f"zero.stage={stage + 1}"
    if of == "host" and offload != "nothing":
        yield "zero.offload=nothing"
    elif of == "gpu" and offload == "nothing" and stage > 0:
        yield "zero.offload=optimizer"
    elif of == "gpu" and offload == "optimizer" and stage == 3:
        yield "zero.offload=parameters"


def _data(config: RunConfig) -> Iterator[str]:
    if any(config.out.glob("checkpoints/step-*")):
        return  # what is in a pack stays as it is in a resume
    if any(segment.pack_tokens for segment in config.data.segments):
        yield "a smaller pack_tokens in that segment of data.segments"
        return
    half, longest = max(1, config.data.pack_tokens // 2), _longest(config)
    if longest <= half:
        yield f"data.pack_tokens={half}"
    elif longest < config.data.pack_tokens:
        yield f"data.pack_tokens={longest}"
    else:
        yield "shorter samples: fewer data.frames or a smaller data.size, and data.pack_tokens to match"


def _longest(config: RunConfig) -> int:
    """Tokens of the longest sample; 0 if the data is not at hand."""
    from launcher.batches.datasets import open_curriculum

    try:
        return max(int(stream.plan.lengths.max()) for stream in open_curriculum(config).streams)
    except InputError:
        return 0
