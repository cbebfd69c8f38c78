"""DeepSpeed, loaded for the CPU by whoever imports this: a server that ranks are forked from takes names of modules."""

from __future__ import annotations

import torch

from parallel.zero.deepspeed_import import import_deepspeed

import_deepspeed(torch.device("cpu"))
