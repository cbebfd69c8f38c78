"""A thread's own queue for a device: what is made there is waited for, and told who reads it; a CPU has none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.streams.curriculum import Position
from launcher.batches.loader import BatchLoader
from launcher.training.loop import build_loader
from launcher.training.rendezvous import RankPlace
from parallel.device_stream import CudaStream, Handover, Stream, stream_for, tensors_of
from tests.support import conversations
from tests.support.runs import config

CPU = torch.device("cpu")


class Recorder(Stream):
    """Says who did what, in order."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.done: list[tuple[str, str]] = []

    def note(self, what: str) -> None:
        self.done.append((what, threading.current_thread().name))

    def send(self, x: Tensor) -> Tensor:
        self.note("send")
        return x

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.note("enter")
        yield
        self.note("leave")

    def mark(self) -> Handover:
        self.note("mark")
        return lambda made: self.note(f"hand over {len(tensors_of(made)) > 5}")


def loader_of(dataset: Path, **changes: Any) -> BatchLoader:
    return build_loader(config(Path("unused"), dataset, **changes), RankPlace(0, 1, 0, 1, ""), CPU)


def test_a_batch_is_made_in_the_feed_and_handed_over_to_the_rank(dataset: Path) -> None:
    loader, stream = loader_of(dataset), Recorder()
    vars(loader.builder)["stream"] = stream
    batches = loader.batches(Position())
    next(batches)
    batches.close()
    here = threading.current_thread().name
    assert stream.done[0] == ("enter", "loader")
    first = stream.done.index(("mark", "loader"))
    assert ("send", "loader") in stream.done[1:first]
    assert stream.done.index(("hand over True", here)) > first
    assert {name for what, name in stream.done if not what.startswith("hand")} == {"loader"}
    assert stream.done[-1] == ("leave", "loader")


@pytest.mark.parametrize("speaks", [False, True])
def test_all_that_a_model_reads_is_on_the_device(tmp_path: Path, dataset: Path, speaks: bool) -> None:
    """The meta device stands in: whatever the loader forgets to send, it would meet with in an operator."""
    made = conversations.make(tmp_path / "chats", dataset) if speaks else dataset
    eyes = {"temporal_pool": 2, "slow_fast": 2}
    loader = loader_of(made, **(conversations.settings(made, model={**conversations.MODEL, **eyes}) if speaks else {}))
    stream, packs, _ = loader.curriculum.next_step(Position())
    builder: Any = replace(loader.builder, device=torch.device("meta"))  # type: ignore[type-var]
    found = tensors_of(builder.micro_step(stream, packs[0]).batch)
    assert len(found) > 10
    assert all(tensor.is_meta for tensor in found)


def test_a_cpu_has_no_queue() -> None:
    stream, x = stream_for(CPU), torch.ones(3)
    with stream.entered():
        assert stream.send(x) is x
    stream.mark()(x)
    assert type(stream) is Stream


class FakeEvent:
    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream


class FakeStream:
    def __init__(self, device: torch.device, name: str = "own") -> None:
        self.device, self.name, self.waits = device, name, list[Any]()

    def wait_stream(self, other: FakeStream) -> None:
        self.waits.append(other)

    def wait_event(self, event: FakeEvent) -> None:
        self.waits.append(event)

    def record_event(self) -> FakeEvent:
        return FakeEvent(self)


class Told:
    """A tensor on a device, which is told its readers."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.readers = device, list[Any]()

    def record_stream(self, stream: FakeStream) -> None:
        self.readers.append(stream)


def test_a_cuda_stream_belongs_to_its_device_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own part is played by a stand-in: which stream of which device waits for what."""
    current = threading.local()
    default = {index: FakeStream(torch.device("cuda", index), "default") for index in (0, 3)}

    @contextmanager
    def entered(stream: FakeStream) -> Iterator[None]:
        current.stream = stream
        yield
        current.stream = None

    def now(device: torch.device) -> FakeStream:
        return getattr(current, "stream", None) or default[device.index]

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(current, "device", device))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default[device.index])
    monkeypatch.setattr(torch.cuda, "current_stream", now)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    device = torch.device("cuda", 3)
    stream, made, found = CudaStream(device), [Told(device), Told(CPU)], dict[str, Any]()
    monkeypatch.setattr("parallel.device_stream.tensors_of", list)

    def feed() -> None:
        with stream.entered():
            found["device"], found["stream"] = current.device, now(device)
            found["hand over"] = stream.mark()

    thread = threading.Thread(target=feed)
    thread.start()
    thread.join()
    assert found["device"] == device
    assert (found["stream"].name, found["stream"].device) == ("own", device)
    assert found["stream"].waits == [default[3]]
    found["hand over"](made)
    (event,) = default[3].waits
    assert event.stream is found["stream"]
    assert [tensor.readers for tensor in made] == [[default[3]], []]
    assert not default[0].waits


def test_tensors_are_found_wherever_they_are() -> None:
    a, b, c, d = (torch.ones(n) for n in range(1, 5))

    @dataclass(frozen=True)
    class Held:
        x: Tensor
        more: Any
        host: Any = None

        @cached_property
        def late(self) -> Tensor:
            return d

    held = Held(a, {"y": [b, (c, a)]}, np.ones(3))
    assert {len(x) for x in tensors_of(held)} == {1, 2, 3}
    assert held.late is d
    assert {len(x) for x in tensors_of([held, held, "words", 3])} == {1, 2, 3, 4}
