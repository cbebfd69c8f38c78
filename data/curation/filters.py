"""`Filters`: which clips are worth keeping, by size, length, look and caption. Pure: facts in, reasons out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from data.curation.near_duplicates import BITS
from data.curation.scores import Scores
from parallel.errors import InputError

WORDS = {  # of a measured fact, with its unit
    "seconds": "lasts {} s",
    "side": "shorter side of {} pixels",
    "aspect": "{} times as wide as high",
    "motion": "motion {}",
    "sharpness": "sharpness {}",
    "brightness": "brightness {}",
    "black": "{} of its frames are black",
    "text": "{} of its picture is text",
    "caption_chars": "caption of {} characters",
}
HIGHEST = {"brightness": 255.0, "motion": 255.0, "black": 1.0, "text": 1.0}
NEAR_DUPLICATES = "near_duplicates"


@dataclass(frozen=True)
class Filters:
    """Limits that a clip must keep, itself allowed; None sets no limit.

    Attributes:
        min_seconds, max_seconds: length.
        min_side: shorter side of the source, in pixels.
        min_aspect, max_aspect: width over height.
        min_motion, max_motion, min_sharpness, min_brightness, max_black, max_text: see `Scores`.
        min_caption_chars, max_caption_chars: length of the caption.
        near_duplicates: clips whose hash differs from that of an earlier one in at most so many bits are copies.
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    min_side: int | None = None
    min_aspect: float | None = None
    max_aspect: float | None = None
    min_motion: float | None = None
    max_motion: float | None = None
    min_sharpness: float | None = None
    min_brightness: float | None = None
    max_black: float | None = None
    max_text: float | None = None
    min_caption_chars: int | None = None
    max_caption_chars: int | None = None
    near_duplicates: int | None = None

    def check(self) -> None:
        """Refuses what no clip can meet, or what means nothing.

        Raises:
            InputError: names the limit.
        """
        limits = {(end, fact): limit for end, fact, limit in self._limits()}
        for (end, fact), limit in limits.items():
            highest = HIGHEST.get(fact, float("inf"))
            if not 0 <= limit <= highest:  # not a number is not either
                span = "0 or more" if highest == float("inf") else f"0 to {highest:g}"
                raise InputError(f"{end}_{fact} is {span}", str(limit), "give such a number, or leave it out")
            most = limits.get(("max", fact))
            if end == "min" and most is not None and limit > most:
                raise InputError(
                    f"min_{fact} is at most max_{fact}", f"{limit} and {most}", "lower the one or raise the other"
                )
        if self.near_duplicates is not None and not 0 <= self.near_duplicates < BITS // 2:
            rule = f"near_duplicates is a number of bits, 0 to {BITS // 2 - 1}"
            raise InputError(rule, str(self.near_duplicates), "give 4 to 8, or leave it out")

    def reasons(
        self,
        *,
        seconds: float | None,
        height: int | None,
        width: int | None,
        scores: Scores | None,
        caption: str,
        near: str | None = None,
    ) -> list[tuple[str, str]]:
        """Why a clip is not kept: (rule, sentence with value and limit) of each limit that it breaks; [] keeps it.

        A limit on something that a sample does not have does not concern it: length and motion of an image, every
        fact but the caption of text alone.

        Args:
            seconds: None for an image or text.
            height, width: in pixels; None for text.
            scores: None for text.
            caption: as it will be stored.
            near: who has nearly the same picture, if that was asked for and found.
        """
        facts: dict[str, float | None] = dict.fromkeys(WORDS)
        facts |= {"seconds": seconds, "caption_chars": len(caption)}
        if height is not None and width is not None:
            facts |= {"side": min(height, width), "aspect": width / height}
        if scores is not None:
            facts |= {name: getattr(scores, name) for name in ("sharpness", "brightness", "black", "text")}
            facts["motion"] = None if seconds is None else scores.motion
        else:
            unmeasured = {fact for _, fact, _ in self._limits()} & {field.name for field in fields(Scores)}
            assert height is None or not unmeasured, f"a picture without scores has limits on {sorted(unmeasured)}"
        broken = []
        for end, fact, limit in self._limits():
            value = facts[fact]
            if value is not None and (value < limit if end == "min" else value > limit):
                shown, allowed = _apart(value, limit)
                than = "less" if end == "min" else "more"
                broken.append((f"{end}_{fact}", f"{WORDS[fact].format(shown)}, {than} than {allowed}"))
        if near is not None and self.near_duplicates is not None:
            broken.append((NEAR_DUPLICATES, f"nearly the same picture as {near}"))
        return broken

    def _limits(self) -> Iterator[tuple[str, str, float]]:
        """("min" or "max", fact, limit) of each limit that is set."""
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and field.name != NEAR_DUPLICATES:
                end, _, fact = field.name.partition("_")
                yield end, fact, limit


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Both in as few digits as tell them apart: 0.9997 and 1, not 1 and 1."""
    for digits in range(3, 17):
        shown, allowed = _short(value, digits), _short(limit, digits)
        if shown != allowed:
            return shown, allowed
    return repr(value), repr(limit)


def _short(value: float, digits: int) -> str:
    return f"{value:.0f}" if value >= 10**digits else f"{value:.{digits}g}"
