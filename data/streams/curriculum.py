"""`Curriculum`: streams one after the other, each for some steps, and `Position`: where a run stands in them.

    step        0            1000                    3000
    streams     | 8 frames   | 16 frames             | 64 frames, other datasets ...

A stream begins with an epoch of its own: what was left of the epoch before it is not seen in it.

A position is all the data state that there is, under 1 KB and the same on every rank, whatever the mesh and however
many workers. Its chain is a hash over the ids of all samples so far, pack after pack: two runs that agree on the chain
saw the same samples in the same order. It is checked on resume, from the chain at the beginning of the window.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from data.containers.byte_ranges import digest_bytes
from data.planning.data_plan import Cursor
from data.streams.pack_stream import Pack, PackStream, SampleSource
from parallel.errors import InputError
from parallel.parsing import parse_json

START = Cursor()
AnyStream = PackStream[SampleSource]


@dataclass(frozen=True)
class Position:
    """The data of `step` steps has been seen.

    Attributes:
        step: steps done.
        cursor: in the stream of the last of them.
        chain: hash of the ids of all samples so far, in the order of the packs.
        mark: the chain at the beginning of the cursor's window.
    """

    step: int = 0
    cursor: Cursor = START
    chain: str = ""
    mark: str = ""

    def to_json(self) -> str:
        """One line, for a checkpoint."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Position:
        """The inverse of `to_json`.

        Raises:
            InputError: it is something else.
        """
        try:
            raw = parse_json(text)
            cursor = Cursor.from_json(json.dumps(raw["cursor"]))
            return cls(int(raw["step"]), cursor, str(raw["chain"]), str(raw["mark"]))
        except (ValueError, TypeError, KeyError) as error:
            found = text[:100]
            raise InputError(
                "a position is a step, a cursor and two hashes", found, "use another checkpoint"
            ) from error


@dataclass(frozen=True, eq=False)
class Curriculum:
    """What is trained on, step by step.

    Attributes:
        starts: the first step of each stream: ascending from 0.
        streams: as many.
        packs_per_step: over all replicas.
    """

    starts: tuple[int, ...]
    streams: tuple[AnyStream, ...]
    packs_per_step: int

    def segment(self, step: int) -> int:
        """Which stream the step after `step` steps is of."""
        return bisect_right(self.starts, step) - 1

    def next_step(self, position: Position) -> tuple[AnyStream, list[Pack], Position]:
        """The packs of the step after `position`, the stream to read them from, and the position after it."""
        at = self.segment(position.step)
        stream, cursor, chain, mark = self.streams[at], position.cursor, position.chain, position.mark
        if position.step == self.starts[at]:
            cursor, mark = Cursor(), chain
        packs: list[Pack] = []
        for _ in range(self.packs_per_step):
            (pack,), after = stream.packs(cursor, 1)
            packs.append(pack)
            chain = link(chain, (document.uid for document in pack.documents))
            if after.pack == 0:
                mark = chain
            cursor = after
        return stream, packs, Position(position.step + 1, cursor, chain, mark)

    def verify(self, position: Position) -> None:
        """The chain of the position's window is that of the samples that this curriculum would have shown in it.

        Raises:
            InputError: other samples would have come.
        """
        at = self.segment(position.step - 1) if position.step else 0
        stream, end = self.streams[at], position.cursor
        chain, cursor = position.mark, Cursor(end.epoch, end.window, 0, end.head)
        bins, after = stream.plan.packs(cursor, end.pack) if end.pack else ([], cursor)
        for found in bins:
            chain = link(chain, (stream.uid(sample) for sample in found.samples))
        if after != end or chain != position.chain:
            raise InputError(
                "a run goes on with the samples that it began with",
                f"step {position.step}, {end}: their chain is {chain[:12]}, the checkpoint says {position.chain[:12]}",
                "resume with the dataset and the data settings of the checkpoint, or start another run with out=FOLDER",
            )

    def close(self) -> None:
        """Closes the shards of all streams."""
        for stream in self.streams:
            stream.close()


def link(chain: str, uids: Iterable[str]) -> str:
    """The chain with one more pack."""
    return digest_bytes("\n".join([chain, *uids]).encode())
