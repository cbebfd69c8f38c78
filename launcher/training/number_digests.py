"""What decides the numbers of a step, as three digests that stand in its line of metrics.jsonl.

    numbers    model, objective, dtype, data of the segment, and where it begins; frozen parts; samples not read
    rounding   mesh, ZeRO, kernels, threads, devices, versions, our own code: last digits at most
    update     betas, clip ... and the rate of the step: they show in the next one

Two lines of the same step are comparable bit by bit where the first two are equal, nearly where only `rounding` is not,
and not at all where `numbers` differ; those after it, as long as `update` is equal too
(`launcher.training.resume_check`). Which key is in which digest is what it declares (`parallel.setting_effects`). The
manifest holds the same in words, for a person. A line has the number of the law by which digests are made, too: those
of another law cannot be compared.
"""

from __future__ import annotations

import os
import platform
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data.streams.curriculum import Curriculum
from launcher.checkpoints.external_hashes import TOKENIZER_OF, digest_of
from launcher.config.config_schema import leaves
from launcher.config.run_config import RunConfig
from launcher.core.versions import versions_here
from parallel.setting_effects import Effect

LAW = "2"  # raised whenever the same settings come to have another digest of `numbers` or `update`
ALSO = ("safetensors", "numpy", "transformers", "diffusers", "pillow")  # packages beside those of `versions_here`
WORDS = (  # of the environment, that change how libraries add up
    "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE",
)  # fmt: skip


class Made:
    """What the steps of one start are made with.

    Args:
        config: of the run, with the mesh that it runs on.
        machine: of all ranks (`machine_of_all`).
        outside: hashes of what is read beside checkpoints (`launcher.checkpoints.external_hashes`).
        datasets: digests of those of each segment (`datasets_of`).
    """

    def __init__(
        self,
        config: RunConfig,
        machine: Mapping[str, Any],
        outside: Mapping[str, str],
        datasets: Sequence[Sequence[str]] = (),
    ) -> None:
        self.config, self.machine, self.outside, self.datasets = config, machine, outside, datasets
        self._by_effect = _by_effect(config)
        self.versions = versions()
        self._rounding = digest_of([self._by_effect[Effect.ROUNDING], dict(machine), dict(self.versions)])
        self._segments: dict[int, str] = {}

    def of(self, step: int, rate: float, unreadable: Collection[str] = ()) -> dict[str, str]:
        """The digests of a step.

        Args:
            step: which, from 1 on.
            rate: learning rate of its update.
            unreadable: ids of samples that counted nothing in it.
        """
        segment = bisect_right(self.config.data.starts, step - 1) - 1
        if segment not in self._segments:
            self._segments[segment] = self._numbers(segment)
        numbers = self._segments[segment]
        return {
            "numbers": digest_of([numbers, sorted(unreadable)]) if unreadable else numbers,
            "rounding": self._rounding,
            "update": digest_of([self._by_effect[Effect.UPDATE], rate]),
            "law": LAW,
        }

    def _numbers(self, segment: int) -> str:
        data = self.config.data.merged()[segment]
        here = _by_effect(self.config.model_copy(update={"data": data}))
        settings = here[Effect.STATE] | here[Effect.DATA] | here[Effect.NUMBERS]
        others = {TOKENIZER_OF.format(n) for n in range(len(self.config.data.starts)) if n != segment}
        outside = {name: found for name, found in self.outside.items() if name not in others}
        datasets = [list(self.datasets[segment]) if self.datasets else [], list((data.weights or {}).values())]
        begins = self.config.data.starts[1 : segment + 1]  # samples are dealt anew from each, whatever it shows
        return digest_of([settings, datasets, outside, *begins])


def datasets_of(curriculum: Curriculum) -> list[list[str]]:
    """Digests of the datasets of each segment, and of the clips that its conversations are about."""
    return [list(stream.source.digests) for stream in curriculum.streams]


def _by_effect(config: RunConfig) -> dict[Effect, dict[str, Any]]:
    """Settings that stand; those of segments are merged into them, and their mesh is that of the ranks."""
    found: dict[Effect, dict[str, Any]] = {effect: {} for effect in Effect}
    for leaf in leaves(config.model_dump(mode="json")):
        if not leaf.key.startswith("data.segments."):
            found[leaf.effect][leaf.key] = leaf.value
    return found


@cache
def versions() -> Mapping[str, str]:
    """Of the packages that numbers come from, and of our own code."""
    found = versions_here()
    for package in ALSO:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def machine_here(device: torch.device, kernel: str) -> dict[str, Any]:
    """What of this process and machine decides last digits.

    Args:
        device: of this rank.
        kernel: of attention.
    """
    found: dict[str, Any] = {"kernel": kernel, "environment": {w: os.environ[w] for w in WORDS if w in os.environ}}
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        found |= {
            "device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "cudnn": cudnn.version(),
            "tf32": torch.get_float32_matmul_precision(), "strict": torch.are_deterministic_algorithms_enabled(),
        }  # fmt: skip
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        found |= {"device": f"{_processor()}, {capability}", "threads": torch.get_num_threads()}
    return found


def machine_of_all(device: torch.device, kernel: str) -> dict[str, Any]:
    """The same of all ranks: each word once where they agree, else a list by rank. Collective."""
    ranks: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(ranks, machine_here(device, kernel))
    agreed = {key: [rank.get(key) for rank in ranks] for key in dict.fromkeys(k for rank in ranks for k in rank)}
    return {key: values[0] if all(v == values[0] for v in values) else values for key, values in agreed.items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of machine or versions differs, one sentence each; nothing where it was not written down before."""
    return [f"{key}: {before[key]} became {now.get(key)}" for key in before if before[key] != now.get(key)]


def _processor() -> str:
    """The model of the CPU; kernels of libraries are chosen by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
