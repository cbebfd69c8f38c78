"""The least memory that a run takes, counted before anything starts: what cannot fit is refused, with both numbers.

    weights + gradients + optimizer + average        of each rank, by its ZeRO stage and what is offloaded
    + what every block keeps of a pack               inputs alone with model.recompute, else what attention and MLP read
    x ranks of this machine on a CPU                 against its memory and swap, or the limit of its container
    a rank's on a GPU                                against the GPU's memory

It is a lower bound, so that nothing that fits is refused: workspaces, buffers of DeepSpeed, the text encoder and the
batch come on top (`longreel dryrun` counts all of it). A run between this and what it really takes starts, and is ended
by the system: `supervisor` does not start it again as it was. Counting costs milliseconds: parameters have no numbers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch

from data.streams.curriculum import Curriculum
from launcher.batches.datasets import geometry_of
from launcher.config.loading import check, parse_override
from launcher.config.run_config import RunConfig
from launcher.core.hardware import gpus, memory_and_swap
from launcher.preflight.memory_savers import relief
from models.core.specs import memory_of
from models.registry import DTYPES, build, spec_of
from parallel.errors import InputError
from parallel.mesh import Mesh

GIB = 1 << 30
PROCESS = GIB // 4  # of a rank before it has a model: Python, torch, DeepSpeed
# rows of a token in a block; dry runs say more, so that this stays a lower bound
INPUTS = 2.0  # with recompute
KEPT = 10.0  # without
FEW = 30_000_000  # parameters that are sooner drawn than counted without numbers, whose first use takes a second
ASK_SECONDS = 10.0


@dataclass(frozen=True)
class Parameters:
    """Numbers of a model: those that are trained, and those that are not."""

    trained: int
    frozen: int


@dataclass(frozen=True)
class Demand:
    """Bytes of a rank, at least.

    Attributes:
        weights, gradients, optimizer, average, activations: on its device.
        host: of these, on the host instead, where they are offloaded.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    host: float = 0.0

    @property
    def device(self) -> float:
        """All on the device."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def __str__(self) -> str:
        parts = [(field.name, getattr(self, field.name)) for field in fields(self) if field.name != "host"]
        return ", ".join(f"{name} {size / GIB:,.1f}" for name, size in parts if size >= 0.05 * GIB)


def parameters_of(config: RunConfig) -> Parameters:
    """Parameters of the whole model, tied ones counted once; nothing is drawn if there are many."""
    model = config.model
    with nullcontext() if spec_of(model).about(model) < FEW else torch.device("meta"):
        made = build(model, geometry_of(config).channels, config.seed, DTYPES[config.dtype], config.objective)
    counts = [(p.requires_grad, p.numel()) for p in made.parameters()]
    return Parameters(sum(n for learns, n in counts if learns), sum(n for learns, n in counts if not learns))


def demand_of(config: RunConfig, mesh: Mesh, parameters: Parameters, tokens: float, on_gpu: bool) -> Demand:
    """The least of a rank.

    Args:
        config: of the run.
        mesh: that it runs on.
        parameters: of its model.
        tokens: of a usual pack.
        on_gpu: whether what is offloaded leaves the device.
    """
    stage, offload, model, size = config.zero.stage, config.zero.offload, config.model, DTYPES[config.dtype].itemsize
    master, ranks = max(4, size), mesh.ranks
    whole, n = parameters.trained + parameters.frozen, parameters.trained
    weights = size * whole / (ranks if stage == 3 else 1)
    gradients = size * n / (ranks if stage >= 2 else 1)
    optimizer = (
        (len(config.optimizer.state_names) * master + (master if size < master else 0))
        * n
        / (ranks if stage >= 1 else 1)
    )
    average = master * n / ranks if config.optimizer.ema else 0.0
    rows = tokens / mesh.sequence_ranks * model.depth * model.dim * size  # of one width in all layers
    memory = memory_of(model)
    activations = rows * (INPUTS if memory.recompute else KEPT + spec_of(model).kept(model))
    found = Demand(weights, gradients, optimizer, average, activations)
    return _offloaded(found, offload, memory.offload) if on_gpu else found


def _offloaded(found: Demand, offload: str, activations_too: bool) -> Demand:
    gone: dict[str, float] = {}
    if offload != "nothing":
        gone["optimizer"] = found.optimizer
    if offload == "parameters":
        gone["weights"] = found.weights
    if activations_too:
        gone["activations"] = found.activations
    left: dict[str, Any] = {**{f.name: getattr(found, f.name) for f in fields(found)}, **dict.fromkeys(gone, 0.0)}
    return Demand(**{**left, "host": sum(gone.values())})


def usual_packs(curriculum: Curriculum, first: int) -> list[float]:
    """Mean tokens of the packs of each segment from `first` on."""
    found = []
    for stream in curriculum.streams[first:]:
        window = stream.plan.window_at(0, 0, 0)
        found.append(float(stream.plan.lengths[window.samples].sum()) / len(window))
    return found


@dataclass(frozen=True)
class MachineMemory:
    """Memory of this machine.

    Attributes:
        host: bytes, with swap.
        device: bytes of the largest GPU; None if ranks compute on the CPU, or nobody knows.
    """

    host: int
    device: int | None = None


def memory_here(config: RunConfig) -> MachineMemory | None:
    """Of this machine, for a run on it; None if its GPUs tell nothing."""
    if not gpus(config.device):
        return MachineMemory(memory_and_swap())
    device = gpu_memory()
    return MachineMemory(memory_and_swap(), device) if device else None


def gpu_memory() -> int | None:
    """Bytes of the largest GPU, as nvidia-smi says it: torch would take memory of each to tell; None if it does not."""
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=ASK_SECONDS, check=True).stdout
        return max(int(line) for line in answer.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def refuse_too_large(
    config: RunConfig,
    parameters: Parameters,
    packs: Sequence[float],
    first: int,
    machine: MachineMemory,
    longest: int | None = None,
) -> None:
    """A run fits into the memory of its machine.

    Args:
        config: of the run.
        parameters: of its model.
        packs: mean tokens of the packs of each segment from `first` on.
        first: segment that is trained next.
        machine: of the machine.
        longest: tokens of the longest sample, if packs may be made shorter.

    Raises:
        InputError: it takes more than there is, in the least; says both, and what would fit.
    """
    found = _lacks(config, parameters, packs, first, machine)
    if found is None:
        return
    larger = f"a machine with at least {found.need / GIB:,.0f} GiB of {found.of} memory"
    remedy = " or ".join([*_fitting(config, packs, first, machine, longest), larger])
    rule = f"a run fits into the {found.of} memory of its machine"
    raise InputError(rule, found.words, f"{remedy}; longreel dryrun counts what a step takes")


@dataclass(frozen=True)
class Lack:
    """What is too much: `need` bytes of the GPU's or the machine's memory, in words."""

    of: str
    need: float
    words: str


def _lacks(
    config: RunConfig, parameters: Parameters, packs: Sequence[float], first: int, machine: MachineMemory
) -> Lack | None:
    segments = config.data.segments
    for number, tokens in enumerate(packs, first):
        own = segments[number].mesh if segments else None
        mesh = (own or config.mesh).mesh()
        one = demand_of(config, mesh, parameters, tokens, machine.device is not None)
        each = f"{one} GiB a rank"
        if machine.device is not None and one.device > machine.device:
            words = f"at least {one.device / GIB:,.1f} GiB ({each}); the GPU has {machine.device / GIB:,.1f}"
            return Lack("GPU", one.device, words)
        on_host = one.host if machine.device is not None else one.device
        need = mesh.ranks * (on_host + PROCESS)
        if need > machine.host:
            what = f"{mesh.ranks} ranks offload {on_host / GIB:,.1f} GiB each" if machine.device is not None else each
            words = (
                f"at least {need / GIB:,.1f} GiB for {mesh.ranks} ranks ({what}); there are {machine.host / GIB:,.1f}"
            )
            return Lack("host", need, words)
    return None


def _fitting(
    config: RunConfig, packs: Sequence[float], first: int, machine: MachineMemory, longest: int | None
) -> Iterator[str]:
    """Settings with which the run would fit, by this count, each complete: what is typed together stands together.

    What saves memory comes first, then shorter packs, then a smaller model.
    """
    parameters, taken, now = parameters_of(config), list[str](), config

    def excess(one: RunConfig, of: Parameters) -> float:
        lack = _lacks(one, of, packs, first, machine)
        return lack.need if lack is not None else 0.0

    for setting in relief(config, "gpu" if machine.device is not None else "host"):
        if "(" in setting or "=" not in setting or "pack_tokens" in setting:
            continue  # more ranks, or a choice that depends on the data
        changed = _with(now, setting)
        if changed is not None and excess(changed, parameters) < excess(now, parameters):
            taken.append(setting)
            now = changed
            if not excess(now, parameters):
                yield " ".join(taken)
                return
    tokens = config.data.pack_tokens // 2
    while longest and not config.data.segments and tokens >= max(longest, config.mesh.mesh().sequence_ranks):
        setting = f"data.pack_tokens={tokens}"
        shorter = _with(now, setting)
        if shorter is not None and _lacks(shorter, parameters, [min(tokens, *packs)], first, machine) is None:
            yield " ".join([*taken, setting])
            return
        tokens //= 2
    key = spec_of(config.model).narrower
    width = getattr(config.model, key) if key is not None else 1
    while width % 2 == 0:
        width //= 2
        smaller = _with(config, f"model.{key}={width}")
        if smaller is None:
            return
        if not excess(smaller, parameters_of(smaller)):
            yield f"model.{key}={width}"
            return


def _with(config: RunConfig, settings: str) -> RunConfig | None:
    """The run with other settings; None if they cannot be."""
    changed: dict[str, Any] = config.model_dump(mode="json")
    for key, value in (parse_override(one) for one in settings.split()):
        here = changed
        for name in key.split(".")[:-1]:
            here = here[name]
        here[key.rpartition(".")[2]] = value
    try:
        return check(changed)
    except InputError:
        return None
