"""What is said when: temporal annotations as a stream of video and words (VideoLLM-online, arXiv:2406.11816).

    {"id": "a", "video": "a.mp4", "duration": 9.0, "stream": [{"time": 2.0, "text": "He runs."}, ...]}     narration
    {"video": "a.mp4", "timestamps": [[0.0, 4.2], [4.2, 9.0]], "sentences": ["He runs.", "He falls."]}     captions
    {"video": "a.mp4", "query": "When does he fall?", "start": 4.2, "end": 9.0}                            grounding

    seconds   0       2       4       6       8          frames of one a second, "He runs." at 2, "He falls." at 5.5
    frames    f   f   f   f   f   f   f   f   f
    speaks    .   .   #   .   .   #   .   .   .          the last frame that is not later than the words

Words are said when what they tell of is over: a narration at its time, a caption at the end of its stretch, the answer
to a query at the end of the moment that it asks for. So captions may overlap, as those of ActivityNet do (Krishna et
al., arXiv:1705.00754): each is said at its own end. After all other frames the model is silent, and learns to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data.chat.record_fields import Fields
from parallel.errors import InputError
from parallel.parsing import shorter

FORMS = {"stream": ("stream",), "captions": ("timestamps", "sentences"), "grounding": ("query", "start", "end")}
ROUNDING = 0.05  # seconds that a time may lie beyond the duration: both were rounded by whoever noted them
LONGEST = 1e9  # seconds; no video lasts 30 years
REMEDY = "mend the record or leave it out; see docs/video-language.md for the forms that are known"

Times = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stretch:
    """Some seconds of a video.

    Attributes:
        name: of its file, as the record has it.
        begin, end: seconds; its frames are those after `begin`, up to `end` itself. None for those of the video.
    """

    name: str
    begin: float | None
    end: float | None

    def holds(self, times: Times) -> npt.NDArray[np.bool_]:
        """[frames]: which frames at these times are part of it."""
        at = np.asarray(times, dtype=np.float64)
        begin, end = -np.inf if self.begin is None else self.begin, np.inf if self.end is None else self.end
        return (at > begin) & (at <= end)


class _Words(NamedTuple):
    """Said at `time`; `begin` of what they tell of puts those of one time in order."""

    time: float
    begin: float
    text: str


def stream_of(record: Mapping[str, Any], uid: str = "") -> tuple[Stretch | str, ...]:
    """Stretches of the video, and what the assistant says at the end of each; the last stretch runs to the video's end.

    Annotations may come in any order; those of one time are said together, with a space between them. The first stretch
    begins with the video, the last one ends with it; after words at the very end there is none, if the record tells its
    duration. A stretch may be shorter than the time between two frames, and then shows none: see `said`.

    Args:
        record: as read from JSON, of one of the forms.
        uid: where it has no id, and the video's name where it has none: the key of a record in ActivityNet's files.

    Raises:
        InputError: of none of the forms or of several; a time is no number, negative or beyond the duration; a stretch
            ends before it begins; there is nothing to say. Names the record.
    """
    uid = _uid_of(record, uid)
    name, utterances = record.get("video", uid), _utterances(record, uid)
    if not isinstance(name, str) or not name:
        raise _wrong("annotations are of a video", uid, f"video: {shorter(name)}")
    found: list[Stretch | str] = []
    at = None
    for time, text in utterances:
        found += [Stretch(name, at, time), text]
        at = time
    if utterances[-1][0] < _duration(record, uid):
        found.append(Stretch(name, at, None))
    return tuple(found)


def said(times: Times, record: Mapping[str, Any], uid: str = "") -> tuple[str, ...]:
    """Of each frame what is said after it, "" for silence: words follow the last frame that is not later than they.

    Words that fall on one frame are said together, in their order.

    Args:
        times: [frames] seconds of the frames that the model sees, in rising order.
        record: see `stream_of`.
        uid: see `stream_of`.

    Raises:
        InputError: see `stream_of`; times are not such, or the first frame is later than the first words.
    """
    uid = _uid_of(record, uid)
    at = np.asarray(times, dtype=np.float64)
    if at.ndim != 1 or not np.isfinite(at).all() or (np.diff(at) < 0).any():
        raise _wrong("frames have times in seconds, in rising order", uid, f"{at.reshape(-1)[:8].tolist()} ...")
    words: list[list[str]] = [[] for _ in at]
    for time, text in _utterances(record, uid):
        frame = int(np.searchsorted(at, time, side="right")) - 1
        if frame < 0:
            first = f"first frame at {at[0]} s" if len(at) else "no frames"
            raise _wrong("words follow a frame", uid, f"{text[:40]!r} at {time} s, {first}")
        words[frame].append(text)
    return tuple(" ".join(texts) for texts in words)


def speaks(times: Times, record: Mapping[str, Any], uid: str = "") -> npt.NDArray[np.bool_]:
    """[frames]: which frames are followed by words; after the others the model is silent. See `said`."""
    return np.array([bool(text) for text in said(times, record, uid)], dtype=bool)


def query_of(record: Mapping[str, Any], uid: str = "") -> str:
    """What the user asks before the video begins; "" for records that ask nothing.

    Raises:
        InputError: the query is no text, or the record of none of the forms.
    """
    uid = _uid_of(record, uid)
    return _text(record["query"], uid) if _form(record, uid) == "grounding" else ""


def _utterances(record: Mapping[str, Any], uid: str) -> list[tuple[float, str]]:
    """(seconds, words) in rising order, each time once."""
    form, last = _form(record, uid), _duration(record, uid)
    read = {"stream": _narration, "captions": _captions, "grounding": _grounding}[form]
    found: dict[float, str] = {}
    for time, begin, text in sorted(read(record, uid), key=lambda words: words[:2]):
        if max(time, begin) > last + ROUNDING:
            raise _wrong("annotations lie within the video", uid, f"{max(time, begin)} s, duration {last} s")
        time = min(time, last)
        found[time] = f"{found[time]} {text}" if time in found else text
    if not found:
        raise _wrong("annotations say something", uid, f"{form} without any words")
    return list(found.items())


def _narration(record: Mapping[str, Any], uid: str) -> list[_Words]:
    found = []
    for said_then in _list(record, "stream", uid):
        if not isinstance(said_then, Mapping):
            raise _wrong("a stream is of objects with time and text", uid, shorter(said_then, 80))
        words = Fields(said_then, uid, "its stream")
        time = _seconds(words.get("time"), uid)
        found.append(_Words(time, time, _text(words.get("text"), uid)))
        words.refuse_rest(("id", "index"))
    return found


def _captions(record: Mapping[str, Any], uid: str) -> list[_Words]:
    times, sentences = _list(record, "timestamps", uid), _list(record, "sentences", uid)
    if len(times) != len(sentences):
        found = f"{len(times)} timestamps, {len(sentences)} sentences"
        raise _wrong("captions have a stretch for each sentence", uid, found)
    return [_Words(*_stretch(pair, uid), _text(text, uid)) for pair, text in zip(times, sentences, strict=True)]


def _grounding(record: Mapping[str, Any], uid: str) -> list[_Words]:
    _text(record["query"], uid)
    end, start = _stretch([record["start"], record["end"]], uid)
    return [_Words(end, start, f"From {start:.1f} to {end:.1f} seconds.")]


def _stretch(pair: Any, uid: str) -> tuple[float, float]:
    """End and begin, as in `_Words`."""
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise _wrong("a stretch is [begin, end]", uid, shorter(pair, 80))
    begin, end = (_seconds(value, uid) for value in pair)
    if end < begin:
        raise _wrong("a stretch does not end before it begins", uid, f"{begin} to {end} s")
    return end, begin


def _form(record: Mapping[str, Any], uid: str) -> str:
    forms = [form for form, keys in FORMS.items() if all(key in record for key in keys)]
    if len(forms) != 1:
        known = "; ".join(f"{form}: {', '.join(keys)}" for form, keys in FORMS.items())
        found = f"{' and '.join(forms) or 'none of them'} among keys: {', '.join(map(str, record))[:200]}"
        raise _wrong(f"annotations are of one form ({known})", uid, found)
    return forms[0]


def _duration(record: Mapping[str, Any], uid: str) -> float:
    """Seconds; infinite if the record does not tell."""
    if record.get("duration") is None:
        return np.inf
    duration = _seconds(record["duration"], uid)
    if duration == 0:
        raise _wrong("a video has a duration", uid, "0 s")
    return duration


def _seconds(value: Any, uid: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < LONGEST:
        raise _wrong("a time is a number of seconds, 0 or more", uid, shorter(value, 80))
    return float(value)


def _text(value: Any, uid: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong("annotations say something", uid, f"text: {shorter(value)}")
    return value.strip()


def _list(record: Mapping[str, Any], key: str, uid: str) -> Sequence[Any]:
    value = record[key]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong(f"{key} are a list", uid, shorter(value, 80))
    return value


def _uid_of(record: Mapping[str, Any], uid: str) -> str:
    if not isinstance(record, Mapping):
        raise _wrong("a record is an object", uid, shorter(record, 80))
    return str(record.get("id", record.get("uid", uid)) or record.get("video", ""))


def _wrong(rule: str, uid: str, found: str) -> InputError:
    return InputError(rule, f"{uid or 'a record'}: {found}", REMEDY)
