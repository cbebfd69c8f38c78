"""What it does to a begun run to change a setting: declared beside each key, once, in its type.

    depth: State[int] = Field(default=12, gt=0)
    learning_rate: Rate[float] = Field(default=1e-4, gt=0)

What a resume refuses, what it tells, how exactly it compares the steps that it does again, and the table in
docs/settings.md all follow from this word. It stands here, below models and launcher, because both have settings.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, TypeVar


class Effect(Enum):
    """What changes with a setting, from what no run survives to what no run notices; the value is for a person."""

    STATE = "what weights and moments mean"
    CONTENT = "what lies there: known by its hash, wherever it lies"
    DATA = "what a segment of the data shows"
    NUMBERS = "losses and gradients"
    UPDATE = "what is made of a gradient"
    RATE = "the learning rate of steps"
    ROUNDING = "last digits"
    MEMORY = "memory and speed alone"
    NOTHING = "nothing that is learned"


_T = TypeVar("_T")
State = Annotated[_T, Effect.STATE]
Content = Annotated[_T, Effect.CONTENT]
Data = Annotated[_T, Effect.DATA]
Numbers = Annotated[_T, Effect.NUMBERS]
Update = Annotated[_T, Effect.UPDATE]
Rate = Annotated[_T, Effect.RATE]
Rounding = Annotated[_T, Effect.ROUNDING]
Memory = Annotated[_T, Effect.MEMORY]
Nothing = Annotated[_T, Effect.NOTHING]
