"""The learning rate of each step: a function of the config alone, so that no checkpoint has to hold it.

rate      /--------\\            constant: no end        a run of 8 steps, 2 of them of warm-up, cosine:
         /          \\__          cosine, wsd: down to     step   1    2    3 ...  7     8
        /              \\         final_ratio, with        rate  1/2   1    1     ...  final_ratio
       +----------------+-->     the last step
"""

from __future__ import annotations

import math

from parallel.optimizers.optimizer import OptimizerConfig

FALLING = 0.25  # of the steps, in which the rate of schedule "wsd" goes down


def learning_rate(config: OptimizerConfig, done: int, steps: int) -> float:
    """The rate of the step after `done` steps: linear warm-up, then constant, or down to the last of `steps`."""
    if done < config.warmup_steps:
        return config.learning_rate * (done + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    last = max(steps - 1, 1)  # of the first, 0; a run of one step has the highest rate
    if config.schedule == "wsd":
        falls = max(1.0, FALLING * steps)
        share = min(1.0, max(0, last - done) / falls)
    else:
        progress = (done - config.warmup_steps) / (last - config.warmup_steps) if last > config.warmup_steps else 1.0
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * share)
