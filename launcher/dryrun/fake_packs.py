"""What a dry run feeds its step: the first packs of the run's own data, or packs drawn to their size.

the dataset fills `data.pack_tokens`    the packs of the run's first step, by the index alone
it does not, or is not there            one clip of the dataset's picture size, so long that it fills the pack;
                                        for a language model one conversation, about one long video if it sees
--documents N                           N equal ones of that kind
"""

from __future__ import annotations

from dataclasses import replace

from data.streams.curriculum import AnyStream, Curriculum, Position
from data.streams.pack_stream import Pack
from launcher.batches.datasets import geometry_of, open_curriculum
from launcher.batches.drawn_packs import DrawnPack
from launcher.batches.family import FamilySpec, family_of
from launcher.batches.loader import assign
from launcher.config.run_config import RunConfig
from launcher.preflight.preflight import LEAST_FILL
from parallel.errors import InputError
from parallel.mesh import Mesh, Place


def packs_for(config: RunConfig, place: Place, segment: int, documents: int | None = None) -> list[DrawnPack]:
    """The packs of one replica in one step of a segment: at most three, as those between first and last are alike.

    Args:
        config: of the run.
        place: of the rank.
        segment: of the curriculum.
        documents: draw packs of so many equal ones; the run's own data if not given.

    Raises:
        InputError: the data settings cannot work.
    """
    data, mesh = config.data.merged()[segment], mesh_of(config, segment)
    family, curriculum, words = family_of(config.model), None, ""
    try:
        curriculum = open_curriculum(config)
    except InputError as error:
        if any(folder.exists() for folder in data.folders):
            raise
        words = f"{error.value}: "
    if curriculum is not None and documents is None:
        mine = assign(_first_packs(curriculum, segment), mesh.replica, place.replica)
        least = min(sum(d.tokens for d in pack.documents) for pack in mine)
        if least >= LEAST_FILL * data.pack_tokens:
            return [_own(family, curriculum.streams[segment], pack) for pack in [*mine[:2], *mine[2:][-1:]]]
        words = f"the dataset fills {least:,} of {data.pack_tokens:,} tokens: "
    stream = curriculum.streams[segment] if curriculum is not None else None
    drawn = family.drawn_pack(config.model, data, geometry_of(config), stream, documents)
    return [replace(drawn, words=words + drawn.words)] * min(3, micro_steps_of(config, segment))


def mesh_of(config: RunConfig, segment: int) -> Mesh:
    """Of a segment of the curriculum."""
    own = config.data.segments[segment].mesh if config.data.segments else None
    return (own or config.mesh).mesh()


def micro_steps_of(config: RunConfig, segment: int) -> int:
    """Of a step: as many as the replica with most packs needs."""
    return -(-config.data.packs_per_step // mesh_of(config, segment).replica)


def longest_segment(config: RunConfig) -> int:
    """The one with the longest packs, the first of them."""
    sizes = [data.pack_tokens for data in config.data.merged()]
    return sizes.index(max(sizes))


def _first_packs(curriculum: Curriculum, segment: int) -> list[Pack]:
    _, packs, _ = curriculum.next_step(Position(step=curriculum.starts[segment]))
    return packs


def _own(family: FamilySpec, stream: AnyStream, pack: Pack) -> DrawnPack:
    tokens = sum(d.tokens for d in pack.documents)
    words = f"the run's first pack, {len(pack.documents)} samples, {tokens:,} tokens"
    return DrawnPack(pack.documents, family.layouts(stream.source, pack), words)
