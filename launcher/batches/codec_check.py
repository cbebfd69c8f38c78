"""Who made the latents of a run: they are trained on with that codec alone.

The commits of a dataset say by which codec it was made. Another would take its numbers for other pictures, and nothing
in them would show it.
"""

from __future__ import annotations

from data.dataset.latents_file import makers
from data.streams.clip_source import ClipSource
from data.streams.curriculum import Curriculum
from models.codecs.codec import Codec
from parallel.errors import InputError


def refuse_other_codec(curriculum: Curriculum, codec: Codec) -> None:
    """Latents are trained on with the codec that made them.

    Args:
        curriculum: of the run.
        codec: of the run.

    Raises:
        InputError: a dataset was made by another, or clips would be shortened that have other latents then.
    """
    for stream in curriculum.streams:
        assert isinstance(stream.source, ClipSource), "conversations have no latents"
        index, latents = stream.source.index, stream.source.reader.latents
        for folder, made in makers(index, latents):
            if made != codec.identity:
                found = f"{folder}: made by {made or 'nobody knows'}, the run has {codec.identity or 'the pixel codec'}"
                remedy = "codec.kind=diffusers codec.path=FOLDER with that folder, or encode the clips with this codec"
                raise InputError("latents are trained on with the codec that made them", found, remedy)
        longest = int(index.frames[latents].max(initial=0))
        most = stream.source.sampling.frames
        if most is not None and longest > most and not codec.prefixes:
            rule = "this codec norms over time: clips cannot be shortened once they are latents"
            remedy = f"leave data.frames out, or longreel data encode --frames {most} and train on that"
            raise InputError(rule, f"data.frames={most}, the longest has {longest}", remedy)
