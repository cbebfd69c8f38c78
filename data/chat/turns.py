"""`Conversation`: turns of text and visuals in the order in which a model sees them, whatever form a record had.

The assistant's turns are what a model learns to say. A visual is a name until it is looked for among the clips of a
dataset (`data.chat.clip_names`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
Kind = Literal["video", "image"]


@dataclass(frozen=True)
class Visual:
    """A video or an image in a conversation.

    Attributes:
        kind: which.
        name: of its file, as the record has it.
        begin, end: seconds of it that are seen here; None for its own.
        watched: after each view the model says that it has nothing to say, or begins to speak.
    """

    kind: Kind
    name: str
    begin: float | None = None
    end: float | None = None
    watched: bool = False


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: who.
        parts: words and visuals, in order.
    """

    role: Role
    parts: tuple[str | Visual, ...]


@dataclass(frozen=True)
class Conversation:
    """Turns about visuals; the assistant's are what a model learns to say.

    Attributes:
        uid: of the record.
        turns: in order.
    """

    uid: str
    turns: tuple[Turn, ...]

    @property
    def visuals(self) -> tuple[Visual, ...]:
        """All of them, in order."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Visual))
