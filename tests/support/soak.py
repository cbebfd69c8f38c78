"""One run under a seeded schedule of faults, for as long as you like, and then the same run undisturbed.

    python -m tests.support.soak --minutes 30 [--seed 0] [--out FOLDER]

Two thirds of the time on this machine: a rank is killed or stopped (SIGSTOP), the command is killed or told to end
(SIGTERM), the newest checkpoint is cut short, the disk of the checkpoints (a small tmpfs) is full, a shard is corrupt.
The last third on hosts made of network namespaces (`host_backoff.py`), as the same run in the same folder: a node is
killed, a link is cut, a link is slow. What this machine does not allow is listed as not run, with the reason.

The undisturbed run then takes as many steps, and the same sample is corrupt from the same step on. Every loss and
gradient norm must be the same, bit for bit. Exit code 0 if all were survived and all are equal.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from data.prepare.pipeline import PrepareOptions, prepare
from data.synthetic.shapes import synth
from launcher.analysis.data_audit import audit
from launcher.analysis.subprocess_run import Command, Record
from launcher.checkpoints.storage import LocalStorage
from launcher.config.loading import to_yaml
from launcher.core.run_folder import RunFolder
from launcher.supervision.run import DONE, STOPPED
from tests.support.hosts import Cluster, tell, why_not
from tests.support.runs import config

MANY = 10_000_000  # steps: it is stopped by SIGTERM
EVERY = 20
DISK_BYTES = 64 << 20
RECOVER_SECONDS, START_SECONDS = 240.0, 240.0
FULL_SECONDS, CUT_SECONDS, SLOW_SECONDS = 6.0, 20.0, 10.0
SLOW_MEGABITS = 2
HERE = ("kill of a rank", "pause of a rank", "kill of the driver", "SIGTERM", "truncated checkpoint", "full disk",
        "corrupt shard")  # fmt: skip
GO_ON = ("full disk", "slow link", "link cut")  # no restart is needed
THERE = ("kill of a node", "link cut", "slow link")


class Started(Protocol):
    """`longreel train`, running somewhere."""

    def poll(self) -> int | None: ...
    def tell(self, number: signal.Signals) -> None: ...
    def end(self) -> None: ...
    def last_words(self) -> str: ...


class OnHost:
    """See `Started`: on a host of namespaces."""

    def __init__(self, cluster: Cluster, file: Path) -> None:
        command = (sys.executable, "-m", "launcher", "train", file, "--address", cluster.address)
        self.process = cluster.hosts["head"].start(*command)

    def poll(self) -> int | None:
        return self.process.poll()

    def tell(self, number: signal.Signals) -> None:
        tell(self.process, number)

    def end(self) -> None:
        if self.poll() is None:
            self.tell(signal.SIGKILL)
            self.process.wait(60)

    def last_words(self) -> str:
        return "\n".join((self.process.communicate(timeout=60)[0] or "").splitlines()[-12:])


@dataclass
class Row:
    """What became of a kind of fault."""

    injected: int = 0
    survived: int = 0
    seconds: list[float] = field(default_factory=list)
    reason: str = ""


class Soak:
    """One run, and what strikes it."""

    def __init__(self, out: Path, seed: int, tmpfs: bool) -> None:
        self.out, self.chance, self.tmpfs = out, random.Random(seed), tmpfs
        self.rows = {kind: Row() for kind in (*HERE, *THERE)}
        self.record = Record(RunFolder(out / "run"))
        self.checkpoints = out / "disk" / "checkpoints" if tmpfs else self.record.folder.checkpoints
        self.corrupted_at: int | None = None
        self.bag: list[str] = []
        self.start: Callable[[], Started] = self.start_here
        self.cluster: Cluster | None = None
        self.file = self.settings("run", "data", MANY, str(self.checkpoints) if tmpfs else None)
        self.job: Started | None = None

    def settings(self, run: str, dataset: str, steps: int, to: str | None = None) -> Path:
        """A run of two ranks that could be on two machines."""
        made = config(
            self.out / run, self.out / dataset, steps=steps, dtype="float32", zero__stage=2, mesh={"ring": 2},
            checkpoint={"every": EVERY, "location": to, "retry_seconds": 2}, restart__rejoin_timeout_seconds=60,
        )  # fmt: skip
        file = self.out / f"{run}.yaml"
        file.write_text(to_yaml(made))
        return file

    def start_here(self) -> Started:
        return Command(self.file, ["--no-ray"], self.out / "log")

    def train(self, kinds: dict[str, Callable[[], None]], seconds: float) -> None:
        """Let these faults strike in turn until the time is over; then stop, with a checkpoint."""
        deadline = time.monotonic() + seconds
        self.job = self.start()
        self.steps_on(START_SECONDS)
        while kinds and time.monotonic() < deadline:
            self.wait_saved()
            self.rest(self.chance.uniform(0.5, 4))
            self.strike(kinds)
        self.stop()

    def strike(self, kinds: dict[str, Callable[[], None]]) -> None:
        """The next fault: every kind comes before one comes again."""
        if not self.bag:
            self.bag = self.chance.sample(sorted(kinds), len(kinds))
        kind = self.bag.pop()
        row, step = self.rows[kind], self.record.step
        if kind == "corrupt shard":
            del kinds[kind]  # once: the undisturbed run does the same
        row.injected += 1
        at = time.time()
        try:
            kinds[kind]() if kind in kinds else self.corrupt()
            seconds = self.recovered(at, kind not in GO_ON)
        except (TimeoutError, RuntimeError) as error:  # it is told, and the others get their turn
            self.say(f"{kind} at step {step}: not survived: {error}")
            if self.job is not None:
                self.job.end()
            self.job = self.start()
            return
        row.survived += 1
        row.seconds.append(seconds)
        self.say(f"{kind} at step {step}: {seconds:.1f} s without a new step")

    def recovered(self, at: float, resumes: bool) -> float:
        """The longest time without a new step since `at`, once training goes on, resumed if it has to be."""
        deadline, now = time.monotonic() + RECOVER_SECONDS, time.time()
        while True:
            self.look()
            failed = [e["time"] for e in self.record.events() if e["event"] in ("failure", "stop") and e["time"] > at]
            back = [e["time"] for e in self.record.events("resume") if e["time"] > at]
            times = sorted(when for when in self.record.first.values() if when > at)
            over = max([*failed, at]) < max(back) if back else not (resumes or failed)
            if over and times and times[-1] > max([now, *back]):
                return max(after - before for before, after in pairwise([at, *times]))
            if time.monotonic() > deadline:
                raise TimeoutError(f"no new step after {self.record.step} in {RECOVER_SECONDS:.0f} s")
            time.sleep(0.1)

    def look(self) -> None:
        """Read what is new."""
        self.record.update()
        if self.job is not None and (code := self.job.poll()) is not None:
            raise RuntimeError(f"the command ended with {code}: {self.job.last_words()}")

    def rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            time.sleep(0.1)

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not in {seconds:.0f} s")
            self.look()
            time.sleep(0.1)

    def steps_on(self, seconds: float) -> None:
        step = self.record.step
        self.until(lambda: self.record.step > step, seconds, "the next step")

    def wait_saved(self) -> None:
        """Until a checkpoint is there that was not there before: restarts in a row are limited."""
        saved = len(self.record.events("checkpoint"))
        self.until(lambda: len(self.record.events("checkpoint")) > saved, RECOVER_SECONDS, "the next checkpoint")

    def signal_a_rank(self, number: signal.Signals) -> None:
        place = self.chance.choice(self.record.events("ranks")[-1]["places"])
        subprocess.run(["kill", f"-{number.value}", str(place["pid"])], check=True)
        if number == signal.SIGSTOP:
            started = len(self.record.events("ranks"))
            self.until(lambda: len(self.record.events("ranks")) > started, RECOVER_SECONDS, "a restart")

    def ended(self, number: signal.Signals, code: int) -> None:
        """Send the command a signal, and wait for its end."""
        job, self.job = self.job, None
        assert job is not None
        job.tell(number)
        deadline = time.monotonic() + RECOVER_SECONDS
        while (found := job.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if found != code:
            words = job.last_words() if found is not None else "it does not end"
            job.end()
            raise RuntimeError(f"exit code {found}, not {code}: {words}")
        self.record.update()

    def stop(self) -> None:
        self.ended(signal.SIGTERM, STOPPED)

    def kill_driver(self) -> None:
        self.ended(signal.SIGKILL, -signal.SIGKILL)
        self.job = self.start()

    def terminate(self) -> None:
        self.stop()
        self.job = self.start()

    def truncate(self) -> None:
        """A file of the newest checkpoint loses its second half while nobody looks."""
        self.ended(signal.SIGKILL, -signal.SIGKILL)
        storage = LocalStorage(self.checkpoints)
        sizes = storage.files(storage.names()[-1])
        part = self.checkpoints / storage.names()[-1] / max(sizes, key=lambda name: sizes[name])
        with open(part, "r+b") as file:
            file.truncate(sizes[part.name] // 2)
        self.job = self.start()
        passed_over = len(self.record.events("fallback"))
        self.until(lambda: len(self.record.events("fallback")) > passed_over, START_SECONDS, "the fallback")

    def fill(self) -> None:
        """No byte is left for some seconds; training goes on, and the next save succeeds."""
        unsaved, filler = len(self.record.events("unsaved")), self.out / "disk" / "filler"
        try:
            with open(filler, "wb", buffering=0) as file:
                while file.write(bytes(1 << 12)) == 1 << 12:
                    pass
        except OSError:
            pass
        self.until(lambda: len(self.record.events("unsaved")) > unsaved, RECOVER_SECONDS, "a save that fails")
        self.rest(FULL_SECONDS)
        filler.unlink()
        self.wait_saved()

    def corrupt(self) -> None:
        """From the next step on a sample cannot be read: it counts nothing, and the user is told."""
        self.stop()
        self.corrupted_at = self.record.step
        flip_in_shard(self.out / "data")
        self.job = self.start()
        self.until(lambda: bool(self.record.events("unreadable")), START_SECONDS, "a sample that cannot be read")

    def kill_node(self) -> None:
        assert self.cluster is not None
        name, started = self.a_host(), len(self.record.events("ranks"))
        self.cluster.hosts[name].kill()
        self.until(lambda: len(self.record.events("ranks")) > started, RECOVER_SECONDS, "a restart on other nodes")
        self.cluster.up(name)

    def cut_link(self) -> None:
        assert self.cluster is not None
        host = self.cluster.hosts[self.a_host()]
        host.cut()
        try:
            self.rest(CUT_SECONDS)
        finally:
            host.heal()

    def slow_link(self) -> None:
        assert self.cluster is not None
        host = self.cluster.hosts[self.a_host()]
        host.slow(SLOW_MEGABITS)
        try:
            self.rest(SLOW_SECONDS)
        finally:
            host.slow(0)

    def a_host(self) -> str:
        """One that a rank is on, once all are there."""
        assert self.cluster is not None
        self.cluster.wait("head", *self.cluster.workers)
        name: str = self.chance.choice(self.record.events("ranks")[-1]["places"])["host"]
        return name

    def here(self) -> dict[str, Callable[[], None]]:
        kinds: dict[str, Callable[[], None]] = {
            "kill of a rank": lambda: self.signal_a_rank(signal.SIGKILL),
            "pause of a rank": lambda: self.signal_a_rank(signal.SIGSTOP),
            "kill of the driver": self.kill_driver,
            "SIGTERM": self.terminate,
            "truncated checkpoint": self.truncate,
            "full disk": self.fill,
            "corrupt shard": self.corrupt,
        }
        if not self.tmpfs:
            del kinds["full disk"]
            self.rows["full disk"].reason = "a tmpfs cannot be mounted here"
        return kinds

    def there(self, cluster: Cluster) -> dict[str, Callable[[], None]]:
        """What strikes on hosts; from now on the command runs there."""
        self.cluster, self.bag = cluster, []
        self.start = lambda: OnHost(cluster, self.file)
        kinds = {"kill of a node": self.kill_node, "link cut": self.cut_link, "slow link": self.slow_link}
        if shutil.which("tc") is None:
            del kinds["slow link"]
            self.rows["slow link"].reason = "tc is not installed"
        return kinds

    def run(self, stack: ExitStack, where: str, seconds: float) -> None:
        """Both parts, or the one that is asked for."""
        reason = f"--where {where}" if where == "here" else why_not()
        hosts = not reason
        for kind in HERE if where == "hosts" else ():
            self.rows[kind].reason = f"--where {where}"
        for kind in THERE:
            self.rows[kind].reason = reason
        if where != "hosts":
            self.train(self.here(), seconds * 2 / 3 if hosts else seconds)
        if hosts:
            try:
                cluster = stack.enter_context(Cluster(self.out / "hosts", ("first", "second", "third")))
            except TimeoutError as error:
                for kind in THERE:
                    self.rows[kind].reason = f"the hosts' cluster did not start: {str(error).splitlines()[0]}"
                return
            self.train(self.there(cluster), seconds if where == "hosts" else seconds / 3)

    def undisturbed(self) -> Record:
        """The same run with nothing in its way, but for the sample that becomes corrupt at the same step."""
        if self.corrupted_at is not None:
            self.whole(self.corrupted_at)
            flip_in_shard(self.out / "reference-data")
        self.whole(self.record.step)
        found = Record(RunFolder(self.out / "reference"))
        found.update()
        return found

    def whole(self, steps: int) -> None:
        file = self.settings("reference", "reference-data", steps)
        with Command(file, ["--no-ray"], self.out / "reference.log") as command:
            while (code := command.poll()) is None:
                time.sleep(0.2)
            if code != DONE:
                raise RuntimeError(f"the undisturbed run ended with {code}: {command.last_words()}")

    @staticmethod
    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def flip_in_shard(dataset: Path) -> None:
    """Flip a bit near the beginning of the first video of the first shard, which every reader of it reads."""
    shard = min(dataset.rglob("*.tar"))
    with tarfile.open(shard) as tar:
        member = next(m for m in tar if m.name.endswith(".mp4"))
    data = bytearray(shard.read_bytes())
    data[member.offset_data + 16] ^= 1
    shard.write_bytes(data)


def mount(folder: Path, stack: ExitStack) -> bool:
    """A small disk, until the end; whether that is allowed."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], capture_output=True)
    if made.returncode == 0:
        stack.callback(subprocess.run, ["umount", "--lazy", folder], capture_output=True)
    return made.returncode == 0


def differences(one: Record, other: Record) -> list[int]:
    """Steps whose loss, gradient norm or samples are not the same, or that one of them lacks."""
    keys = ("loss", "grad_norm", "samples")
    steps = sorted(one.lines.keys() | other.lines.keys())
    missing = {s for s in steps if s not in one.lines or s not in other.lines}
    return [s for s in steps if s in missing or any(one.lines[s][k] != other.lines[s][k] for k in keys)]


def report(soak: Soak, equal: str) -> None:
    print(f"\n{'fault':<22}{'injected':>9}{'survived':>9}{'mean s':>8}{'most s':>8}")
    for kind, row in soak.rows.items():
        if not row.injected:
            print(f"{kind:<22}{'not run':>9}  {row.reason or 'its turn did not come'}")
            continue
        took = row.seconds or [float("nan")]
        print(f"{kind:<22}{row.injected:>9}{row.survived:>9}{sum(took) / len(took):>8.1f}{max(took):>8.1f}")
    injected, survived = (sum(getattr(r, name) for r in soak.rows.values()) for name in ("injected", "survived"))
    print(f"{'all':<22}{injected:>9}{survived:>9}   of {soak.record.step:,} steps, losses equal: {equal}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="of training under faults; as much again follows")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--out", type=Path, help="folder; a temporary one if not given, removed if all went well")
    parser.add_argument(
        "--where", choices=["both", "here", "hosts"], default="both", help="this machine, or hosts on it"
    )
    asked = parser.parse_args()
    out = asked.out.absolute() if asked.out else Path(tempfile.mkdtemp(prefix="longreel-soak-"))
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        synth(out / "clips", 24, seed=0)
        prepare(out / "clips", out / "data", PrepareOptions(workers=0))
        shutil.copytree(out / "data", out / "reference-data")
        soak = Soak(out, asked.seed, mount(out / "disk", stack))
        stack.callback(lambda: soak.job.end() if soak.job is not None else None)
        soak.say(f"{asked.minutes:g} minutes of faults in {out}, seed {asked.seed}")
        broken = ""
        try:
            soak.run(stack, asked.where, asked.minutes * 60)
        except (TimeoutError, RuntimeError) as error:  # what was done until then is still compared
            broken = f"ended early: {error}"
            if not soak.record.step:
                raise
        soak.say(f"{soak.record.step:,} steps are done; now undisturbed")
        different = differences(soak.record, soak.undisturbed())
        clean = audit(out / "run").clean
    equal = "all" if not different else f"{len(different)} are not, the first of step {different[0]}"
    report(soak, equal)
    print("audit: no sample lost or repeated" if clean else "audit: samples lost or repeated")
    if broken:
        print(broken)
    fine = clean and not broken and not different and all(row.survived == row.injected for row in soak.rows.values())
    if fine and not asked.out:
        shutil.rmtree(out)
    elif not fine:
        print(f"longreel why {out / 'run'}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
