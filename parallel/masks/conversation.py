"""Masks of one document of a video-language model, made from its runs: words, frame, frame, words ...

    runs: 2 words, a frame of 2 rows, a frame of 2 rows, 2 words             queries down, keys across

    causal             frames_whole       unaware            own_frame=True     chunks(8, 4, overlap=2, sinks=1)
    w #                w #                w #                w #                #
    w # #              w # #              w # #              w # #              # #
    f # # #            f # # # #          f     #            f     # #          # # #
    f # # # #          f # # # #          f       #          f     # #          # # # #          chunk 0: rows 0 to 3
    f # # # # #        f # # # # # #      f         #        f         # #      #   # # #
    f # # # # # #      f # # # # # #      f           #      f         # #      #   # # # #      chunk 1: rows 2 to 5
    w # # # # # # #    w # # # # # # #    w # # # # # # #    w # # # # # # #    #       # # #
    w # # # # # # # #  w # # # # # # # #  w # # # # # # # #  w # # # # # # # #  #       # # # #  chunk 2: rows 4 to 7

Rectangles are one for each run at most, or one for each chunk and one for the sinks: an hour at two frames a second
takes 2 ms. Documents of a pack: `mask.stack`. The rolling window with sinks of a model that streams: `mask.window`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from parallel.errors import InputError
from parallel.masks import rectangles
from parallel.masks.mask import Mask, causal
from parallel.masks.rectangles import FREE, Ints

Run = Literal["words", "frame"]  # words that follow one another, or the visual rows of one frame
Bools = npt.NDArray[np.bool_]
Runs = Sequence[tuple[Run, int]]  # of one document, in order: what it is, and how many rows


def unaware(runs: Runs, own_frame: bool = False) -> Mask:
    """No attention among visual rows: words see all before them, visual rows themselves alone.

    The composite attention of EE-MLLM (Ma et al., arXiv:2408.11795), where visual rows are keys and values and never
    ask: they see no words before them either, unlike those of `patterns.text_video(..., "itself")`. So what a layer
    says of a visual row depends on nothing else, and a frame that was seen once serves any question about it. A row
    that sees one key is cheap: for a long video and few words work grows with words x rows instead of rows^2.

    Args:
        runs: of the document.
        own_frame: a visual row sees the whole of its frame, not itself alone; frames still do not see each other.

    Raises:
        InputError: there are no runs, one is empty, or of no known kind.
    """
    is_frame, starts, stops = _borders(runs)
    if not own_frame:  # neighbouring frames are one diagonal
        is_frame, starts, stops = _joined(is_frame, starts, stops)
    low, high = (0, 0) if not own_frame else (-FREE, FREE)
    return _one_each(
        starts,
        stops,
        np.where(is_frame, starts, 0),
        np.where(is_frame, low, 0),
        np.where(is_frame, high, FREE),
    )


def frames_whole(runs: Runs) -> Mask:
    """Everyone sees the past, and the rows of one frame each other both ways.

    Raises:
        InputError: there are no runs, one is empty, or of no known kind.
    """
    is_frame, starts, stops = _borders(runs)
    return _one_each(starts, stops, np.zeros_like(starts), np.where(is_frame, -FREE, 0), np.full_like(starts, FREE))


def chunks(length: int, size: int, overlap: int, sinks: int = 0) -> Mask:
    """Causal attention inside short chunks that overlap, and to the first rows: a rolling window, for training.

        step = size - overlap; chunk c holds rows c step to c step + size - 1; query i belongs to the first chunk
        that holds it, and sees its rows up to i, and rows 0 to sinks - 1 up to i

    So a query sees `overlap` to `size` - 1 rows before it (at the beginning all of them), in rectangles that are few
    and full, where a window of its own for every row is a band. StreamingVLM (Xu et al., arXiv:2510.09608) trains on
    such chunks to run with a rolling window and sinks. There each chunk is a sample of its own, and the rows of an
    overlap are computed once in each of its chunks; here the chunks lie in one sequence and every row is computed once:
    what the rows of an overlap say comes from the chunk before, as that of kept keys does when the model streams.

    Args:
        length: rows of the document.
        size: rows of a chunk.
        overlap: rows that a chunk shares with the one before it.
        sinks: first rows that all see that come after them.

    Raises:
        InputError: the length or the size is not positive, the overlap is not smaller than the size, or sinks are.
    """
    whole = causal(length)
    if size < 1 or not 0 <= overlap < size or sinks < 0:
        rule = "chunks hold rows, share fewer than all of them with the chunk before, and sinks are counted from 0"
        raise InputError(rule, f"size {size}, overlap {overlap}, sinks {sinks}", "0 <= overlap < size, sinks=0 or more")
    if size >= length:
        return whole
    step = size - overlap
    first = np.arange(-(-(length - overlap) // step)) * step  # key of each chunk; the last chunk brings a row at least
    starts, stops = np.where(first == 0, 0, first + overlap), np.minimum(first + size, length)
    near = np.where(first <= sinks, 0, first)  # sinks that touch the chunk are part of it
    far = np.flatnonzero((near > 0) & (sinks > 0))
    free = np.full_like(far, FREE)
    kept = np.stack((starts[far], stops[far], 0 * far, 0 * far + sinks, -free, free), axis=1)
    inside = _one_each(starts, stops, near, np.zeros_like(first), np.full_like(first, FREE))
    return Mask(np.concatenate((inside.table, rectangles.merge_rows(kept))), length, length)


def _borders(runs: Runs) -> tuple[Bools, Ints, Ints]:
    """Of each run: whether it is a frame, its first row, and the row after its last."""
    kinds = get_args(Run)
    wrong = next(((n, run) for n, run in enumerate(runs) if run[0] not in kinds or run[1] < 1), None)
    if wrong is not None or not len(runs):
        raise InputError(
            f"a document is runs of {' or '.join(kinds)}, each with at least one row",
            "no runs" if wrong is None else f"run {wrong[0]} is {wrong[1]!r}",
            "leave empty runs out",
        )
    stops = np.cumsum([rows for _, rows in runs], dtype=np.int64)
    causal(int(stops[-1]))  # refuses what is too long
    starts = np.concatenate(([0], stops[:-1]))
    return np.array([kind == "frame" for kind, _ in runs]), starts, stops


def _joined(is_frame: Bools, starts: Ints, stops: Ints) -> tuple[Bools, Ints, Ints]:
    """Neighbours of one kind as one."""
    first = np.concatenate(([True], is_frame[1:] != is_frame[:-1]))
    last = np.concatenate((first[1:], [True]))
    return is_frame[first], starts[first], stops[last]


def _one_each(starts: Ints, stops: Ints, keys: Ints, low: Ints, high: Ints) -> Mask:
    """One rectangle for the queries of each run, of the keys from `keys` to the run's end."""
    rows = rectangles.normal(np.stack((starts, stops, keys, stops, low, high), axis=1))
    return Mask(rows, int(stops[-1]), int(stops[-1]))
