"""`ahead`: a function over many things, in threads, a bounded number ahead of the reader and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(function: Callable[[T], U], things: Iterable[T], threads: int = 8, most: int = 64) -> Iterator[U]:
    """function(thing) of each, `threads` at a time; for what waits (disks, networks) or leaves the interpreter alone.

    Args:
        function: what it raises is raised when its turn comes.
        things: taken one by one, by the thread of the reader.
        threads: at work.
        most: results begun before the reader takes them.
    """
    rest = iter(things)
    running: deque[Future[U]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        while True:
            running.extend(pool.submit(function, thing) for thing in islice(rest, most - len(running)))
            if not running:
                return
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
