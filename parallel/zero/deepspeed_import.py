"""DeepSpeed, imported without a word and told to read each norm once. This module is not called as the package is."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor


def import_deepspeed(device: torch.device) -> Any:
    """The package, imported for this kind of device and without a word.

    At import it looks which of its operators could be compiled, and prints a line for each that could not, in every
    process; none of them is used here. Its warnings, such as "no GPU found", are no news on a laptop.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with redirect_stdout(io.StringIO()):
        import deepspeed
        import deepspeed.ops
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, for 41 s, where a compiler is
    _leave_muon_uncompiled()
    _read_norms_once()
    return deepspeed


def _leave_muon_uncompiled() -> None:
    """Spare every start the second in which torch's compiler is loaded, for a function that no run calls.

    Each of DeepSpeed's optimizers for ZeRO imports Muon's step, and that is handed to `torch.compile` as it is defined.
    """
    from deepspeed.runtime import compiler

    before = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = before


def _read_norms_once() -> None:
    """Let the host read the global norm of the gradients once a step.

    DeepSpeed keeps it on the device and asks it again and again, whether it is finite, whether to clip, and the host
    waits for the device each time. So what computes it hands it over as a number of the host.
    """
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    names = ((stage3, "combine_grad_norm_groups"), (stage_1_and_2, "combine_grad_norm_groups"))
    for module, name in (*names, (bf16_optimizer, "get_global_norm_of_tensors")):
        compute = getattr(module, name)
        if not isinstance(compute, _OnHost):
            setattr(module, name, _OnHost(compute))


class _OnHost:
    """A function whose result comes to the host."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **more: Any) -> Any:
        found = self.function(*args, **more)
        return found.cpu() if isinstance(found, Tensor) else found
