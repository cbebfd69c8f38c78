"""A world of fakes: tensors with shapes and no numbers, ranks that are not there, a device that is none.

    with fake_world(mesh, rank, counter):
        groups = join(mesh, rank)            groups of torch's "fake" backend: messages end at once
        model = build(...)                   FakeTensorMode: 8 billion parameters take no memory

Torch's device "meta" stands for the GPU, and the CPU is the host: a mix of both is an error, as on a GPU, and each copy
from one to the other is seen. (Fake tensors of device "cuda" cannot go backward on a machine without one: autograd asks
for the device.) DeepSpeed is told that its accelerator is "meta", and its own code runs at stages 1 to 3.

A number that only the tensors would know is made up: False, 0 or 1.0. Nothing that depends on it is counted, but the
wait of the host for it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # shapes of what collectives give
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from launcher.dryrun.operation_counter import Counter
from parallel.memory.activation_offload import PLACES, Places
from parallel.mesh import Mesh


@contextmanager
def fake_world(mesh: Mesh, rank: int, counter: Counter, deepspeed: bool = False) -> Iterator[FakeTensorMode]:
    """Within it, tensors are fake, and this process is one rank of the mesh.

    Args:
        mesh: of all ranks.
        rank: that this process is.
        counter: of what happens.
        deepspeed: it is going to be used.
    """
    assert not dist.is_initialized(), "this process is a rank already"
    place = {"RANK": rank, "WORLD_SIZE": mesh.ranks, "LOCAL_RANK": 0, "MASTER_PORT": 1}
    names = {**{key: str(value) for key, value in place.items()}, "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, names))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of DeepSpeed, which asks fake tensors for their addresses
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # DeepSpeed tells its memory
        stack.enter_context(_quiet_logs())
        backend = "fake" if counter.device == "cpu" else f"cpu:fake,{counter.device}:fake"
        dist.init_process_group(backend, rank=rank, world_size=mesh.ranks, store=FakeStore())
        stack.callback(dist.destroy_process_group)
        stack.callback(_forget_groups)
        stack.enter_context(patch.object(nn.Module, "_apply", _replace_parameters))
        if deepspeed:
            stack.enter_context(_alike())
        if deepspeed and counter.device != "cpu":
            stack.enter_context(_accelerated_by(counter.device))
        token = PLACES.set(Places((counter.device,) if counter.device != "cpu" else (), "cpu"))
        stack.callback(PLACES.reset, token)
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(counter)
        yield mode


def made_up(tensor: Tensor) -> bool | int | float:
    """In place of a number that fake tensors do not have."""
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else 0


def _replace_parameters(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """`Module._apply` for fakes, which torch wants to swap with what they become, and cannot.

    A parameter stays the same object, by which optimisers know it, unless it goes to another device.
    """
    known: dict[nn.Parameter, nn.Parameter] = {}

    def of(parameter: nn.Parameter) -> nn.Parameter:
        made = function(parameter.data)
        if made.device.type != parameter.device.type:
            return nn.Parameter(made, parameter.requires_grad)
        parameter.data = made
        return parameter

    for part in module.modules() if recurse else (module,):
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if parameter not in known:
                    known[parameter] = of(parameter)
                part._parameters[name] = known[parameter]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


@contextmanager
def _alike() -> Iterator[None]:
    """ZeRO-3 does not compare the ranks' modules, as it does once in a run: there are no other ranks."""
    from deepspeed.runtime.zero import partitioned_param_coordinator

    with patch.object(partitioned_param_coordinator, "assert_ints_same_as_other_ranks", lambda _: None):
        yield


class _Autocast:
    """What a linear layer of ZeRO-3 asks its accelerator for: a name that autocast knows, which is off."""

    @staticmethod
    def device_name() -> str:
        """Of a device that autocast knows."""
        return "cpu"


@contextmanager
def _accelerated_by(device: str) -> Iterator[None]:
    """DeepSpeed takes a device without a name of its own for its accelerator."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.zero import linear

    kind = type(get_accelerator())
    with contextlib.ExitStack() as stack:
        for name in ("device_name", "current_device_name"):
            stack.enter_context(patch.object(kind, name, lambda *_: device))
        stack.enter_context(patch.object(linear, "get_accelerator", lambda: _Autocast))
        yield


def _forget_groups() -> None:
    """DeepSpeed remembers the groups of a world in its modules, also when that world is gone."""
    comm, groups = (sys.modules.get(name) for name in ("deepspeed.comm.comm", "deepspeed.utils.groups"))
    if comm is None or groups is None:
        return
    vars(comm)["cdb"] = None
    for name, value in list(vars(groups).items()):
        if name.endswith(("_GROUP", "_GROUP_RANKS")):
            vars(groups)[name] = {} if isinstance(value, dict) else None


@contextmanager
def _quiet_logs() -> Iterator[None]:
    before: int = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def every_tensor(made: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors within dataclasses, mappings and sequences."""
    seen = set() if seen is None else seen
    if id(made) in seen:
        return
    seen.add(id(made))
    if isinstance(made, Tensor):
        yield made
        return
    parts: Any = ()
    if isinstance(made, dict):
        parts = made.values()
    elif isinstance(made, list | tuple):
        parts = made
    elif hasattr(made, "__dataclass_fields__"):
        parts = vars(made).values()
    for part in parts:
        yield from every_tensor(part, seen)
