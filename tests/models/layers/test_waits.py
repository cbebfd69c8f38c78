"""Forward and backward ask the host for nothing: no wait for a number of the device, no transfer from the host to it.

Fake tensors of a device that is not here run a whole forward pass: on them whatever needs a number of the device in
Python raises, and so does an operator that meets tensors of two devices; transfers are counted. The device is the one
that torch leaves free for backends of others; it is known to a whole process, so that each case is one of its own.
Backward is looked at on the CPU besides, where the operators that would wait have the same names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from data.streams.curriculum import Position
from launcher.batches.datasets import geometry_of
from launcher.batches.loader import MicroStep
from launcher.config.run_config import RunConfig
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from models.registry import DTYPES, build
from tests.support import conversations
from tests.support.process_groups import run_world
from tests.support.runs import config

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "unique")
NAME = "standin"


class Asked(TorchDispatchMode):
    """Counts operators that make the host wait, or that copy from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        before = {x.device.type for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        after = {x.device.type for x in tree_iter(made) if isinstance(x, Tensor)}
        by_mask = name.startswith("index") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_iter(args[1:2])
        )
        if any(name == wait or name.startswith(f"{wait}_") for wait in WAITS) or by_mask:
            self.found[name] += 1
        elif {"cpu", NAME} <= before | after:
            self.found[f"{name} between devices"] += 1
        return made


def faked(made: Any) -> Any:
    """The same batch on the device, in a fake mode."""
    if isinstance(made, Tensor):
        return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=NAME)
    if isinstance(made, list | tuple):
        return type(made)(faked(one) for one in made)
    if is_dataclass(made) and not isinstance(made, type) and type(made).__name__ not in ("Plan", "Groups"):
        own = {field.name: getattr(made, field.name) for field in fields(made)}
        return replace(made, **{name: faked(value) for name, value in own.items()})
    return made


def asked(rank: int, settings: RunConfig) -> Counter[str]:
    """What the forward pass of the first pack asks for on a device, and forward and backward on a CPU."""
    loader = build_loader(settings, RankPlace(0, 1, 0, 1, ""), torch.device("cpu"))
    micro: MicroStep = loader.batch(Position()).micro_steps[0]
    model = build(settings.model, geometry_of(settings).channels, 0, DTYPES[settings.dtype], settings.objective)
    counter = Asked()
    with counter:
        loader.builder.objective.loss(model, micro.batch, micro.plans)[0].backward()
    _setup_privateuseone_for_python_backend(NAME)
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        for module in model.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=NAME)
                    where = module._parameters if name in module._parameters else module._buffers
                    where[name] = torch.nn.Parameter(fake) if name in module._parameters else fake
        batch = faked(micro.batch)
        with counter:
            loader.builder.objective.loss(model, batch, micro.plans)
    return counter.found


DIT: dict[str, Any] = {"model__absolute_positions": True, "dtype": "bf16"}
FLAT: dict[str, Any] = {**conversations.MODEL, "temporal_pool": 2, "slow_fast": 2}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_that_draws(dataset: Path, recompute: bool) -> None:
    settings = config(Path("unused"), dataset, model__recompute=recompute, **DIT)
    assert run_world(1, asked, settings) == [Counter()]


@pytest.mark.parametrize("more", [{}, {"recompute": True, "mlp_tiles": 2}], ids=str)
def test_a_model_that_speaks(tmp_path: Path, dataset: Path, more: dict[str, Any]) -> None:
    made = conversations.make(tmp_path / "chats", dataset)
    settings = conversations.settings(made, model={**FLAT, **more}, dtype="bf16")
    assert run_world(1, asked, config(Path("unused"), made, **settings)) == [Counter()]


def asking(rank: int) -> Counter[str]:
    _setup_privateuseone_for_python_backend(NAME)
    counter = Asked()
    with counter:
        x = torch.ones(3)
        x[x > 0].sum().item()
        x.nonzero()
    with FakeTensorMode(), counter:
        torch.zeros(3, device=NAME) + torch.zeros(3).to(NAME)
        with pytest.raises(DynamicOutputShapeException):
            torch.zeros(3, device=NAME).nonzero()
        with pytest.raises(FakeTensorDeviceMismatchError):
            torch.zeros(3, device=NAME) + torch.zeros(3)
    return counter.found


def test_what_asks_is_counted() -> None:
    (found,) = run_world(1, asking)
    assert found == {"index": 1, "_local_scalar_dense": 1, "nonzero": 1, "_to_copy between devices": 1}
