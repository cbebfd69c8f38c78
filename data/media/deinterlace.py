"""Deinterlacing: each frame that holds two moments, line by line, becomes one whole frame of the first of them.

FFmpeg's bwdif looks at one frame before and one after; frames that are not marked as interlaced pass unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from av.error import BlockingIOError as NotYet
from av.error import EOFError as Ended
from av.filter import Graph

INTERLACED = {2, 3, 4, 5}  # AVFieldOrder: top or bottom field first, as coded and as shown


def deinterlaced(frames: Iterable[Any]) -> Iterator[Any]:
    """Decoded frames, one for one; their time stamps are lost."""
    graph: Any = None
    for frame in frames:
        if graph is None:
            graph = _graph(frame)
        graph.push(frame)
        yield from _pulled(graph)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph)


def _graph(frame: Any) -> Any:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    return graph


def _pulled(graph: Any) -> Iterator[Any]:
    while True:
        try:
            yield graph.vpull()
        except (NotYet, Ended):
            return
