"""Resuming beside peers: seconds to the first batch after 10, 50 and 90 % of an epoch, and what is lost or comes twice.

Ours runs in a process of its own too (this module as a script), and does all that a rank does when a run goes on: opens
the index and checks its digests, plans, checks the chain of samples that the position tells, and reads, verifies and
decodes its part of the step: clips of 4 frames of 32 x 32. Peers read texts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.data_measure import Row
from benchmarks.data_ranks import AGAIN, RANKS, SHARES, STEP_SAMPLES, Loading, serve
from benchmarks.data_tars import write_dataset
from data.containers import fragmented_mp4
from data.dataset.index import Index
from data.media.h264 import encode
from data.planning.clip_sampling import Sampling
from data.planning.packing import assign
from data.streams.clip_reader import ClipReader
from data.streams.clip_source import ClipSource
from data.streams.curriculum import Curriculum, Position
from data.streams.pack_stream import PackOptions, PackStream
from parallel.sequence.geometry import Geometry

HOME = Path(__file__).resolve().parent.parent
PACKS = 4  # of a step
FRAMES, SIDE, PATCH = 4, 32, (4, 8, 8)
TOKENS = (SIDE // PATCH[1]) * (SIDE // PATCH[2])  # of a clip
PROBE = "import importlib.util as u, sys; sys.exit(not u.find_spec({!r}))"
PEERS = {"streaming": "streaming", "megatron.energon": "energon"}  # module: which peer


class Longreel:
    """Ours, as a `Loader`."""

    name, version = "longreel", ""

    def write(self, folder: str, samples: int) -> None:
        """Clips with the same frames, each with an id of its own."""
        pictures = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)
        clip = encode(pictures, Fraction(8))
        slices = fragmented_mp4.slices(clip)
        table = {"slice_rows": slices.rows, "slice_offsets": slices.offsets, "slice_hashes": slices.hashes}
        write_dataset(Path(folder), [partial(bytes, clip)] * samples, 4, frames=FRAMES, stop=FRAMES, **table)

    def join(self, rank: int, ranks: int) -> None:
        """Nothing: ranks agree without talking."""

    def load(self, folder: str, rank: int, ranks: int, state: Any) -> Loading:
        """A loader of one epoch; each rank is a replica."""
        sampling = Sampling(Geometry(patch=PATCH))
        pack_tokens = STEP_SAMPLES // PACKS * TOKENS
        source = ClipSource(ClipReader(Index.open(Path(folder)), sampling, seed=1))
        stream = PackStream(source, PackOptions(pack_tokens, PACKS))
        curriculum = Curriculum((0,), (stream,), PACKS)
        at = [Position() if state is None else Position.from_json(state)]
        curriculum.verify(at[0])
        return Loading(self._batches(curriculum, at, rank, ranks), lambda: at[0].to_json())

    def _batches(self, curriculum: Curriculum, at: list[Position], rank: int, ranks: int) -> Iterator[list[int]]:
        """Ids of what this rank received, of the first epoch; `at` follows."""
        while at[0].cursor.epoch == 0:
            stream, packs, at[0] = curriculum.next_step(at[0])
            ids = []
            for number in assign([pack.cost for pack in packs], ranks)[rank]:
                pack = packs[number]
                pieces = stream.source.read(pack, ((0, pack.tokens),))
                assert all(len(piece.frames) == FRAMES for piece in pieces)
                got = [piece.document for piece in pieces if pack.epochs[piece.document] == 0]
                ids += [int(stream.index.file(pack.rows[document]).removesuffix(".mp4")) for document in got]
            yield ids

    def convert(self, states: list[Any], ranks: int) -> list[Any]:
        """The same state for any."""
        return states[:1] * ranks


def measure(place: Path, rounds: int, samples: int, pythons: list[str]) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and what each loader said; libraries take turns, round by round."""
    commands = {"ours": [sys.executable, "-m", "benchmarks.data_resume"]}
    for python in pythons:
        for module, name in PEERS.items():
            if not subprocess.run([python, "-c", PROBE.format(module.partition(".")[0])], check=False).returncode:
                which = [name] if name == "streaming" else [name, f"{name} with a worker"]
                commands |= {n: [python, "-W", "ignore", "-m", "benchmarks.data_peers", n] for n in which}
    servers = {name: _Server(command, place / name.replace(" ", "-"), samples) for name, command in commands.items()}
    try:
        for server in servers.values():
            server.begin()
        for _ in range(rounds):
            for server in servers.values():
                server.ask()
    finally:
        for server in servers.values():
            server.close()
    said = {name: {"about": server.about, "rounds": server.rounds} for name, server in servers.items()}
    return _rows({name: server.rounds for name, server in servers.items()}, samples), said


def _rows(rounds: dict[str, list[dict[str, Any]]], samples: int) -> list[Row]:
    part = f"resume, epoch of {samples:,} on {RANKS} ranks"
    rows = []
    for share in SHARES:
        for ranks in AGAIN:
            key = f"{share:g} {ranks}"
            able = {name: found for name, found in rounds.items() if key in found[0]["seconds"]}
            for number, unit in enumerate(("seconds", "CPU-seconds of a rank")):
                taken = {name: [r["seconds"][key][number] for r in found] for name, found in able.items()}
                rows.append(_row(part, f"at {100 * share:g} %, on {ranks} ranks", unit, taken))
    for name, found in rounds.items():
        for ranks, exact in sorted(found[0]["exact"].items()):
            told = exact if isinstance(exact, str) else f"{exact['lost']} lost, {exact['twice']} twice"
            wrong = None if isinstance(exact, str) else float(exact["lost"] + exact["twice"])
            goal = 0.0 if name == "ours" else None
            what = f"{name}: {RANKS} ranks, at 50 % on to {ranks}"
            rows.append(Row(part, what, "samples lost or twice", cast(float, wrong), None, wrong, goal, "below", told))
    return rows


def _row(part: str, what: str, unit: str, taken: dict[str, list[float]]) -> Row:
    """Ours beside MosaicML's; the others in words."""
    medians = {name: statistics.median(found) for name, found in taken.items()}
    ours, peer = medians.pop("ours"), medians.get("streaming")
    told = ", ".join(f"{name} {median:.2f}" for name, median in medians.items())
    return Row(part, what, unit, ours, peer, ours / peer if peer else None, None, "below", told, taken)


class _Server:
    """A process that writes its dataset, then measures a round whenever it is asked."""

    def __init__(self, command: list[str], folder: Path, samples: int) -> None:
        self.log = folder.with_suffix(".log")
        pipe = subprocess.PIPE
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(folder), str(samples)], stdin=pipe, stdout=pipe, stderr=log, text=True, cwd=HOME
            )
        self.about: dict[str, Any] = {}
        self.rounds: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Waits until it is ready."""
        self.about = self._answer()

    def ask(self) -> None:
        """One round."""
        assert self.process.stdin
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.log.stem} failed:\n{self.log.read_text()[-2000:]}")
        return dict(json.loads(line))


if __name__ == "__main__":
    serve(Longreel(), sys.argv[1], int(sys.argv[2]))
