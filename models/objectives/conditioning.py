"""Conditioning tasks: what of a clip a diffusion model is given clean, beside its words.

    words alone                                      text to video: what is not given to any task
    first_frame    the first frame of tokens         image to video

    objective: {conditioning: {first_frame: 0.3}}    3 of 10 clips are trained so, the others by words alone
    longreel sample RUN --given first_frame=cat.png

A given token is at noise level 0 in training and in sampling, so that the model sees which ones are given (the noise
level of each token is its condition), and does not count in the loss. Which clip has which task is drawn from the key
of the clip (seed, epoch, sample), so every rank that holds a part of it knows, whatever the mesh.

A task of your own is a file with one call: CONDITIONING.register("last_frame", Conditioning(...)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parallel.errors import InputError
from parallel.random import key_of, uniform
from parallel.registries import Registry
from parallel.sequence.geometry import Grid

TRIED = (4, 2, 2)  # tokens (t, y, x) of a clip that each task is asked about before a run
Tokens = npt.NDArray[np.bool_]  # [t, y, x] of a clip


@dataclass(frozen=True)
class Conditioning:
    """An entry of `CONDITIONING`.

    Attributes:
        summary: what is given, for people: "the first frame".
        given: (grid, key) to which tokens are given clean: bool that broadcasts to [t, y, x]. The key has 64 bits for a
            task that draws which; in training it comes from that of the clip, in sampling from that of the noise.
        learned: of what is given (bool [t, y, x]) to what counts in the loss, of the same shape; all that is not given.
    """

    summary: str
    given: Callable[[Grid, int], Tokens]
    learned: Callable[[Tokens], Tokens] = np.logical_not

    def tokens(self, grid: Grid, key: int) -> Tokens | None:
        """Tokens [t, y, x] that are given of a clip of this grid; None if nothing would be left to generate."""
        found = np.broadcast_to(_mask(self.given(grid, key), grid, self.summary), grid)
        return None if found.all() else found

    def counted(self, given: Tokens) -> Tokens:
        """Tokens [t, y, x] that count in the loss of a clip of which these are given."""
        return np.broadcast_to(_mask(self.learned(given), given.shape, self.summary), given.shape)


def _mask(found: object, grid: tuple[int, ...], summary: str) -> Tokens:
    """What a task says of tokens, if it is a mask.

    Raises:
        InputError: it is none of bool, or does not fit the clip. Numbers would choose tokens by their places.
    """
    mask = np.asarray(found)
    fits = mask.ndim <= len(grid) and all(a in (1, b) for a, b in zip(mask.shape[::-1], grid[::-1], strict=False))
    if mask.dtype != np.bool_ or not fits:
        rule = "a conditioning task must give a mask of bool that broadcasts to the tokens (t, y, x) of a clip"
        told = f"{mask.dtype} of {list(mask.shape)} for {list(grid)} tokens, of a task that gives {summary}"
        raise InputError(rule, told, "compare numbers: np.arange(grid[0]) == 0, with [:, None, None] for frames")
    return mask


CONDITIONING: Registry[Conditioning] = Registry("conditioning task")


def _first_frame(grid: Grid, key: int) -> Tokens:
    first: Tokens = (np.arange(grid[0]) == 0)[:, None, None]
    return first


CONDITIONING.register("first_frame", Conditioning("the first frame", _first_frame))


def task_of(shares: Mapping[str, float], key: int) -> str | None:
    """The task of one clip of training, or None for words alone.

    Tasks are asked in the order in which they were registered, each with what the ones before it leave: a task is drawn
    for its share of all clips.

    Args:
        shares: of clips, of each task; together at most 1.
        key: of the clip.

    Raises:
        InputError: this process does not know one of the tasks.
    """
    check_shares(shares)
    left = 1.0
    for name in CONDITIONING if shares else ():
        share = shares.get(name, 0.0)
        if share and uniform(key_of(key, name)) * left < share:
            return name
        left -= share
    return None


def given_in_training(shares: Mapping[str, float], grid: Grid, key: int) -> tuple[Tokens, Tokens] | None:
    """What is given of one clip of training and what of it counts in the loss, each [t, y, x]; None for words alone."""
    name = task_of(shares, key)
    if name is None:
        return None
    task = CONDITIONING[name]
    given = task.tokens(grid, key_of(key, name, "given"))
    return None if given is None else (given, task.counted(given))


def check_shares(shares: Mapping[str, float]) -> None:
    """Shares of tasks that there are, each of which answers for a small clip.

    Raises:
        InputError: no such task, one that fails or gives no mask, a share that is none, or more than all clips.
    """
    for name in shares:
        task = CONDITIONING[name]  # refuses one that is not there
        try:
            given = task.tokens(TRIED, 0)
            task.counted(np.zeros(TRIED, np.bool_) if given is None else given)
        except InputError:
            raise
        except Exception as error:  # whatever a task of one's own does
            rule = "a conditioning task must answer for any clip: given(grid, key), learned(given)"
            told = f"{name} of {list(TRIED)} tokens: {type(error).__name__}: {error}"
            raise InputError(rule, told, "mend its functions: docs/extending/conditioning.md") from error
    if not all(0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1:
        shown = ", ".join(f"{name}: {share:g}" for name, share in shares.items())
        rule = "conditioning tasks have shares of all clips: each 0 or more, 1 at most together"
        raise InputError(rule, f"objective.conditioning: {{{shown}}}", "objective.conditioning={first_frame: 0.3}")
