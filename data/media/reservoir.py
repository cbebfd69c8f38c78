"""`Reservoir`: a few evenly spaced items of a stream whose length nobody knows yet.

Every `step`-th row is kept; when there are too many, every second one is thrown away and the step doubles:

    most = 4    0 1 2 3 | 4 arrives: 0 2 4, step 2 | 6 | 8 arrives: 0 4 8, step 4 | 12 ...

So there are always more than `most` / 2 of a long stream, they depend on the stream alone, and what is costly about an
item is done for few rows: `most` + `most` / 2 * log2(rows / `most`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """At most `most` items, of rows 0, step, 2 step and so on; `step` is a power of two times the first."""

    def __init__(self, most: int, step: int = 1) -> None:
        assert most >= 2, f"nothing is left of {most} items when they are halved"
        self.items: list[T] = []
        self.most, self.step = most, step
        self.rows = 0  # that came

    def add(self, make: Callable[[], T]) -> None:
        """One row has come; `make` is called if its item is wanted."""
        if self.rows % self.step == 0:
            if len(self.items) == self.most:
                self.items = self.items[::2]
                self.step *= 2
            if self.rows % self.step == 0:
                self.items.append(make())
        self.rows += 1

    def middle(self) -> T:
        """The item nearest to the middle row."""
        assert self.items, "a stream without rows has no middle"
        return self.items[min(len(self.items) - 1, round((self.rows - 1) / 2 / self.step))]
