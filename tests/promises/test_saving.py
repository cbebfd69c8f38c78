"""Saving costs training nothing but a copy; what fails is told, tried again, and leaves the checkpoint before it."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from data.streams.curriculum import Position
from launcher.checkpoints.checkpoint_manifest import Manifest, TrainState
from launcher.checkpoints.part import Part
from launcher.checkpoints.reading import newest, one
from launcher.checkpoints.saver import BUSY, Keep, Saver, UnsavedError
from launcher.checkpoints.storage import Chunk, LocalStorage, open_storage
from launcher.config.loading import to_yaml
from launcher.core.run_folder import RunFolder, read_lines
from launcher.preflight import preflight
from launcher.supervision.console_view import LINES
from launcher.supervision.local_ranks import free_port
from parallel.errors import InputError
from parallel.fragments import Fragment
from parallel.optimizers.adamw import AdamWConfig
from tests.support.commands import Forked
from tests.support.process_groups import run_world
from tests.support.runs import config, events, run, train

TENSOR_NAMES = AdamWConfig().tensor_names
NUMEL = 50
Break = Callable[[], Any]


class Stubborn(LocalStorage):
    """Fails with these errors, one at each write of rank 1; then works. Writes wait for `gate`."""

    def __init__(self, root: Path, errors: Iterable[OSError] = (), gate: threading.Event | None = None) -> None:
        super().__init__(root)
        self.errors, self.gate = list(errors), gate

    def write(self, name: str, file: str, chunks: Iterable[Chunk]) -> None:
        if self.gate is not None:
            self.gate.wait(60)
        if dist.get_rank() == 1 and self.errors and file != "manifest.json":
            raise self.errors.pop(0)
        super().write(name, file, chunks)


def fragment_of(rank: int, world: int) -> Fragment:
    start, stop = NUMEL * rank // world, NUMEL * (rank + 1) // world
    return Fragment("w", start, {key: torch.arange(float(start), float(stop)) for key in TENSOR_NAMES})


def saver_on(storage: LocalStorage, rank: int, told: list[dict[str, Any]], keep: Keep | None = None) -> Saver:
    def manifest(state: TrainState, parts: Any, recent: Any) -> Manifest:
        kept: tuple[Part, ...] = tuple(parts)
        return Manifest(state, {}, "layout", {}, tuple(recent), {"w": (NUMEL,)}, kept)

    def tell(event: str, **fields: Any) -> None:
        told.append({"event": event, **fields})

    fragments = [fragment_of(rank, dist.get_world_size())]
    return Saver(storage, fragments, manifest, keep or Keep(2), 0.01, tell if rank == 0 else lambda *_, **__: None)


def state(step: int) -> TrainState:
    return TrainState(Position(step), ())


def settle(saver: Saver) -> bool:
    """What a step does; gives whether a save is due."""
    words: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(words, (saver.save_status(), saver.is_due()))
    saver.resolve([word for word, _ in words])
    return bool(words[0][1])


def saves_while_it_goes_on(rank: int, root: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    gate = threading.Event()
    storage = Stubborn(root, gate=gate)
    saver = saver_on(storage, rank, told)
    values = saver.fragments[0].tensors["master"]
    before = values.clone()
    saver.begin(state(1))
    saver.wait_copied()
    values += 1000  # the next update; what is written must be the moment before it
    assert saver.save_status() == BUSY
    for step in range(2, 5):
        settle(saver)
        saver.begin(state(step))  # while the first is under way: due when it has ended
    assert told == []
    assert storage.names() == []
    gate.set()
    saver.finish()
    assert saver.is_due()
    found, _ = newest(storage)
    assert found is not None
    assert found.state.step == 1
    assert torch.equal(found.parameter("w", "master")[saver.fragments[0].start :][: len(before)], before)
    dist.barrier()
    saver.finish(state(5))
    saver.close()
    dist.barrier()
    return told


def test_training_goes_on_while_it_writes(tmp_path: Path) -> None:
    told = run_world(3, saves_while_it_goes_on, tmp_path)[0]
    assert [(event["event"], event["step"]) for event in told] == [("checkpoint", 1), ("checkpoint", 5)]
    assert LocalStorage(tmp_path).names() == ["step-00000001", "step-00000005"]


def keeps_steps_that_fall_into_a_save(rank: int, root: Path) -> list[str]:
    gate = threading.Event()
    storage = Stubborn(root, gate=gate)
    saver = saver_on(storage, rank, [], Keep(1, every=3))
    for step in range(1, 8):
        saver.fragments[0].tensors["master"].fill_(step)
        if step == 3:
            threading.Timer(0.2, gate.set).start()  # the save of step 1 is under way until somebody waits for it
        saver.begin(state(step))
        saver.wait_copied()
    saver.finish()
    saver.close()
    for step in (3, 6):
        found = one(storage, f"step-{step:08d}")
        assert found.parameter("w", "master").eq(step).all()
    dist.barrier()
    return storage.names()


def test_a_step_that_stays_for_ever_is_never_lost_to_a_save_under_way(tmp_path: Path) -> None:
    names = run_world(2, keeps_steps_that_fall_into_a_save, tmp_path)[0]
    assert {"step-00000003", "step-00000006"} <= set(names)


def fails_and_comes_back(rank: int, root: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    errors = [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")]
    storage = Stubborn(root, errors)
    LocalStorage(root)
    saver = saver_on(storage, rank, told)
    storage.errors = []
    saver.finish(state(1))
    storage.errors = errors
    saver.begin(state(2))
    for step in range(3, 100_000):
        if settle(saver):
            saver.begin(state(step))
        time.sleep(0.005)
        found, broken = newest(storage)
        assert found is not None, "the old checkpoint must stay"
        assert broken == []
        dist.barrier()
        last = [step if found.state.step > 1 else 0]
        dist.broadcast_object_list(last)
        if last[0]:
            break
    saver.finish()
    saver.close()
    dist.barrier()
    return told


def test_what_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    told = run_world(2, fails_and_comes_back, tmp_path)[0]
    assert [event["event"] for event in told] == ["checkpoint", "unsaved", "unsaved", "checkpoint"]
    assert [event["cause"] for event in told[1:3]] == ["full", "store"]
    assert told[1]["reason"] == "No space left on device"
    assert told[2]["again_in"] == 2 * told[1]["again_in"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{told[i]['step']:08d}" for i in (0, 3)]


def the_last_one_fails(rank: int, root: Path) -> tuple[str, list[Any]]:
    told: list[Any] = []
    saver = saver_on(Stubborn(root, [OSError(errno.EIO, "away")] * 99), rank, told)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: None)
        try:
            saver.finish(state(9))
        except UnsavedError as error:
            return str(error), told
    return "saved", told


def test_the_last_save_is_tried_several_times_and_then_the_run_fails(tmp_path: Path) -> None:
    for said, told in run_world(2, the_last_one_fails, tmp_path):
        if told:
            assert [event.get("again_in") for event in told] == [1.0, 2.0, 4.0, 8.0, None]
            lines = [LINES["unsaved"](event)[1] for event in told]
            assert lines[0] == "step 9 was not saved: away; tried again in 1 s"
            assert lines[-1] == "step 9 was not saved: away"
        assert "step 9, the last, could not be saved: away" in said
        assert said.startswith(f"[Errno {errno.EIO}]"), "the cause is known by it"
    assert LocalStorage(tmp_path).names() == []


def keeps(rank: int, root: Path) -> list[str]:
    storage = LocalStorage(root)
    saver = saver_on(storage, rank, [], Keep(2, every=4))
    for step in range(1, 11):
        saver.finish(state(step))
    dist.barrier()
    return storage.names()


def test_which_checkpoints_stay(tmp_path: Path) -> None:
    assert run_world(2, keeps, tmp_path)[0] == [f"step-{step:08d}" for step in (4, 8, 9, 10)]


def goes_on_behind_a_broken_one(rank: int, root: Path) -> list[dict[str, Any]]:
    storage, told = LocalStorage(root), list[dict[str, Any]]()
    saver = saver_on(storage, rank, told, Keep(1, every=4))
    for step in (3, 8, 5):  # as after a resume from step 3, which passed step 8 over
        saver.finish(state(step))
    return told


def test_a_checkpoint_that_was_passed_over_pushes_out_no_new_one(tmp_path: Path) -> None:
    (told,) = run_world(1, goes_on_behind_a_broken_one, tmp_path)
    assert LocalStorage(tmp_path).names() == ["step-00000005"]
    assert [(e["event"], e["step"], e.get("checkpoint")) for e in told[2:]] == [
        ("checkpoint", 5, None), ("removed", 5, "step-00000008")
    ]  # fmt: skip
    assert LINES["removed"](told[-1])[1].startswith("checkpoint step-00000008, which was passed over, is removed")


def test_steps_that_stay_are_saved_whatever_the_others_are(tmp_path: Path, dataset: Path) -> None:
    """Of checkpoint.keep_every=3 every third step is there, though checkpoint.every=4 alone would save none of them."""
    train(config(tmp_path, dataset, steps=7, checkpoint__every=4, checkpoint__keep=1, checkpoint__keep_every=3))
    assert LocalStorage(RunFolder(tmp_path).checkpoints).names() == [f"step-{n:08d}" for n in (3, 6, 7)]


# --- Real disks and stores, whole runs ------------------------------------------------------------------------------


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def trained_through(
    tmp_path: Path, dataset: Path, to: str, breaks: Callable[[], Any], mends: Callable[[], Any]
) -> None:
    """A run whose storage goes away after the first checkpoint and comes back after two failed saves."""
    out, steps = tmp_path / "run", 100_000
    run = config(out, dataset, steps=steps, dtype="float32", zero__stage=2, mesh={"ring": 2})
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(run))
    process = Forked(
        "train", file, f"checkpoint={{location: '{to}', every: 2, retry_seconds: 0.2, keep: 2}}", "--no-ray"
    )
    wait_for(lambda: events(out, "checkpoint"))
    breaks()
    wait_for(lambda: len(events(out, "unsaved")) >= 2)
    seen = len(list(read_lines(RunFolder(out).metrics)))
    wait_for(lambda: len(list(read_lines(RunFolder(out).metrics))) > seen)  # training goes on
    saved = len(events(out, "checkpoint"))
    mends()
    wait_for(lambda: len(events(out, "checkpoint")) > saved)
    process.terminate()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75, output
    assert "was not saved: " in output
    assert "training goes on" in output


def test_a_full_disk(tmp_path: Path, dataset: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk is mounted by root alone")
    filler = disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)) == 1 << 16:  # the last one is cut short, as no room is left
                pass

    try:
        trained_through(tmp_path, dataset, str(disk / "checkpoints"), fill, filler.unlink)
        first = events(tmp_path / "run", "unsaved")[0]
        assert first["cause"] == "full"
        found, broken = newest(LocalStorage(disk / "checkpoints"))
        assert found is not None
        assert broken == []
        assert found.state.step == len(list(read_lines(RunFolder(tmp_path / "run").metrics)))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


class FtpServer:
    """A store on a network of its own kind, which can go away and come back."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        logging.getLogger("pyftpdlib").setLevel(logging.ERROR)
        self.up()

    @property
    def url(self) -> str:
        return f"ftp://127.0.0.1:{self.port}/checkpoints"

    def up(self) -> None:
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.servers import ThreadedFTPServer

        authorizer = DummyAuthorizer()
        authorizer.add_anonymous(str(self.root), perm="elradfmw")
        handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
        self.server = ThreadedFTPServer(("127.0.0.1", self.port), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"handle_exit": False}, daemon=True)
        self.thread.start()

    def down(self) -> None:
        self.server.close_all()
        self.thread.join(10)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")  # the server's
def test_an_unreachable_store(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "store").mkdir()
    server = FtpServer(tmp_path / "store")
    try:
        trained_through(tmp_path, dataset, server.url, server.down, server.up)
        first = events(tmp_path / "run", "unsaved")[0]
        assert first["cause"] == "store"
        found, broken = newest(open_storage(tmp_path, server.url))
        assert found is not None
        assert broken == []
        assert found.state.step == len(list(read_lines(RunFolder(tmp_path / "run").metrics)))
    finally:
        server.down()
        os.sync()


def test_checkpoints_of_another_run_are_not_taken(tmp_path: Path, dataset: Path) -> None:
    """Neither gone on from nor removed, unless the run is told to take them over; then they are its own."""
    store = tmp_path / "store"
    of = {"checkpoint": {"every": 2, "location": str(store), "keep": 1}}
    train(config(tmp_path / "one", dataset, steps=4, **of))
    with pytest.raises(InputError, match="holds checkpoints of this run alone"):
        preflight.check(config(tmp_path / "other", dataset, steps=6, **of))
    (end, *_) = run(config(tmp_path / "other", dataset, steps=6, **of))
    assert end.how == "refused"
    assert [path.name for path in store.iterdir()] == ["step-00000004"]
    adopted = {"checkpoint": {**of["checkpoint"], "adopt": True}}
    assert preflight.check(config(tmp_path / "other", dataset, steps=6, **adopted)).step == 4
    train(config(tmp_path / "other", dataset, steps=6, **adopted))
    assert [path.name for path in store.iterdir()] == ["step-00000006"]
    train(config(tmp_path / "other", dataset, steps=8, **of))


def copies_from_the_second_gpu(rank: int, root: Path) -> list[tuple[str, str, str]]:
    """What the saver asks of CUDA, and in which threads; tensors on the CPU stand in for those of cuda:1."""
    told: list[tuple[str, str, str]] = []
    chosen: dict[str, str] = {}  # the device of each thread: as CUDA has it, the first unless told

    def tell(what: str, device: Any) -> None:
        thread = threading.current_thread().name.partition("_")[0]
        told.append((thread, what, str(device if device is not None else chosen.get(thread, "cuda:0"))))

    class Stream:
        def __init__(self, device: Any = None) -> None:
            self.device = device
            tell("stream", device)

        def wait_event(self, event: Any) -> None:
            tell("wait for event", self.device)

        def synchronize(self) -> None:
            tell("wait for stream", self.device)

    class Event:
        def record(self, stream: Any = None) -> None:
            tell("event", stream)

    def use(device: Any) -> None:
        chosen[threading.current_thread().name.partition("_")[0]] = str(device)
        tell("use", device)

    def memory(tensor: torch.Tensor) -> torch.Tensor:
        tell("pin", None)
        return torch.empty_like(tensor)

    with (
        patch("launcher.checkpoints.saver._gpu_of", return_value=torch.device("cuda", 1)),
        patch("launcher.checkpoints.saver._host_memory", memory),
        patch("torch.cuda.Stream", Stream),
        patch("torch.cuda.Event", Event),
        patch("torch.cuda.set_device", use),
        patch("torch.cuda.current_stream", lambda device=None: device),
        patch("torch.cuda.stream", lambda stream: (tell("copy on", stream.device), nullcontext())[1]),
    ):
        saver = saver_on(LocalStorage(root), rank, [])
        saver.finish(state(1))
    return told


def test_copies_are_made_on_the_gpu_that_they_come_from(tmp_path: Path) -> None:
    """A thread begins with the first GPU; a wait for a stream there is none for copies from another."""
    (told,) = run_world(1, copies_from_the_second_gpu, tmp_path)
    assert {device for _, _, device in told} == {"cuda:1"}
    assert [(thread, what) for thread, what, _ in told if what != "pin"] == [
        ("MainThread", "event"),
        ("checkpoint", "use"),
        ("checkpoint", "stream"),
        ("checkpoint", "wait for event"),
        ("checkpoint", "copy on"),
        ("checkpoint", "wait for stream"),
    ]
