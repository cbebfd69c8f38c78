"""The peer of benchmarks/train.py: a bare PyTorch loop in one process; prints the seconds of each step as JSON.

Clips are read before the clock starts: a step is noise, forward, backward, clip and AdamW, with no loading, no
collectives, no logging and no checkpoints.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from data.streams.curriculum import Position
from launcher.batches.datasets import geometry_of
from launcher.batches.diffusion_batches import DiffusionBatch
from launcher.config.loading import load
from launcher.config.lr_schedule import learning_rate
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from models.registry import DTYPES, build, build_objective


def with_new_noise(prepared: DiffusionBatch) -> DiffusionBatch:
    """The same clips at the same noise levels, with noise drawn as a bare loop would."""
    level = prepared.packed.noise_level[:, None]
    noisy = (1 - level) * prepared.target + level * torch.randn_like(prepared.target)
    return replace(prepared, packed=replace(prepared.packed, values=noisy))


def main(recipe: Path, steps: int, overrides: list[str]) -> None:
    """Train for `steps` steps."""
    config = load(recipe, overrides)
    assert config.objective.predict == "clean", "the target of the objective is the clean clip"
    device = torch.device("cpu")
    loader = build_loader(config, RankPlace(0, 1, 0, 1, ""), device)
    position, batches = Position(), []
    for _ in range(steps):
        batches.append(loader.batch(position))
        position = batches[-1].position
    model = build(config.model, geometry_of(config).channels, config.seed, DTYPES[config.dtype])
    objective = build_objective(config.objective)
    adam = config.optimizer
    optimizer = adam.build(adam.groups(model.parameters()))
    seconds = []
    for step, batch in enumerate(batches):
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, config.steps)
        optimizer.zero_grad()
        total = 0.0
        for micro in batch.micro_steps:
            prepared = with_new_noise(micro.batch)
            loss = objective.loss(model, prepared, micro.plans)[0] / batch.weight
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
