"""`Fields`: the keys of a record, each of which is used, or known to be harmless, or refused.

    {"id": 7, "video": "a.mp4", "conversations": [...], "source": "web", "start": 2, "fps": 1}
      read     read            read                      harmless         read       refused

What a record has and nobody reads is lost in silence: a video in a key of another name, a moment, a prompt. So every
key counts as used only once it was read, and what is left must be in the list of keys that say nothing about what is
seen, heard or learned, or be one that the person named (`--ignore`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from parallel.errors import InputError
from parallel.parsing import shorter


def _words(text: str) -> list[str]:
    return text.split()


HARMLESS = frozenset(
    _words("""
    id uid uuid _id key idx index number sample_id video_id image_id question_id conversation_id conv_id qid vid
    source data_source datasource dataset dataset_name dataset_source data_name origin split subset
    license licence author annotator version created created_at created_time date model generator
    language lang category categories topic domain tags task task_type question_type data_type type about difficulty
    score quality rating hash md5 sha1 sha256 metadata meta info
    duration width height resolution aspect_ratio num_frames frame_count num_turns length num_tokens depth
    """)
)
NAMES = frozenset(["id", "idx", "index", "turn", "turn_id", "timestamp", "model", "lang", "language"])  # of a turn
NEUTRAL: Mapping[str, Any] = {"weight": 1, "loss": True, "loss_scale": 1, "train": True, "detail": "auto"}  # of a turn
REMEDIES = {
    **dict.fromkeys(
        _words("""
        fps nframes num_frames min_frames max_frames sample_fps raw_fps video_fps frame_rate
        min_pixels max_pixels total_pixels resized_height resized_width detail
        """),
        "how finely videos are looked at is for a run to say: data.stride, data.frames",
    ),
    **dict.fromkeys(["audio", "audios", "input_audio"], "sound is not learned"),
    **dict.fromkeys(
        _words("rejected rejected_response rejected_messages rejected_images chosen kto_tag label"),
        "preferences are not learned, only the answers in the conversation",
    ),
    **dict.fromkeys(["tools", "functions", "tool_calls"], "calls of tools are not learned"),
    **dict.fromkeys(["objects", "bbox"], "boxes are not put into the text: write them there"),
    **dict.fromkeys(["weight", "loss", "loss_scale", "train"], "weights are those of objective in a run"),
    **dict.fromkeys(["caption", "captions"], "for captions as answers: longreel data chat --captions"),
}
DOCS = "docs/video-language.md"
MEDIA = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".jpg", ".jpeg", ".png", ".webp", ".wav", ".mp3", ".flac")


RECORD = "the record"


class Fields:
    """The keys of one object of a record.

    Attributes:
        value: the object, without the keys that are ignored.
        ignored: keys that are passed over, whatever they say.
        where: the record stands, for messages.
        what: the object is, such as "turn 3".
    """

    def __init__(self, value: Any, where: str, what: str = RECORD, ignored: Collection[str] = ()) -> None:
        """Raise InputError if `value` is no object."""
        if not isinstance(value, Mapping):
            raise wrong("records, turns and parts are objects", where, shorter(value))
        self.value = {key: one for key, one in value.items() if key not in ignored} if ignored else value
        self.ignored, self.where, self.what = ignored, where, what
        self._read: set[str] = set()

    def has(self, *keys: str) -> bool:
        """Whether each of these keys says something; reads none."""
        return all(not says_nothing(self.value.get(key)) for key in keys)

    def get(self, *keys: str) -> Any:
        """The value of a key, None if it is absent; of several names for one thing the one that says something.

        Raises:
            InputError: two of the names do.
        """
        self._read.update(keys)
        said = [key for key in keys if self.has(key)]
        if len(said) > 1:
            raise wrong("a record says one thing once", self.where, f"{' and '.join(said)} in {self.what}")
        return self.value.get(next((key for key in (*said, *keys) if key in self.value), keys[0]))

    def inside(self, value: Any, what: str) -> Fields:
        """The keys of an object within this one."""
        return Fields(value, self.where, what, self.ignored)

    def left(self, harmless: Collection[str] = HARMLESS) -> list[str]:
        """Keys that nobody has read and that may say something; see `refuse_rest`."""
        return [
            key
            for key, value in self.value.items()
            if not (key in self._read or key in harmless or says_nothing(value))
            and not (self.what != RECORD and key in NEUTRAL and NEUTRAL[key] == value)
        ]

    def refuse_rest(self, harmless: Collection[str] = HARMLESS) -> None:
        """What nobody read must be known to say nothing.

        Args:
            harmless: keys that may be left.

        Raises:
            InputError: names the first other key, with its value and what can be done.
        """
        for key in self.left(harmless):
            value = self.value[key]
            why = f"{REMEDIES[key]}; " if key in REMEDIES else ""
            raise InputError(
                "every key of a record is used, or known to change nothing",
                f"{self.where}: {shorter(key)} in {self.what}: {shorter(value)}",
                f"{why}take it out, or --ignore {key} to say that nothing is lost without it; forms: {DOCS}",
            )

    def refuse_hidden_media(self, besides: Collection[str] = ()) -> None:
        """A record that shows nothing names no video or image anywhere, besides some keys.

        Raises:
            InputError: one of the keys that nobody read does.
        """
        for key, value in self.value.items():
            if key in self._read or key in besides:
                continue
            found = _media_in(value)
            if found is not None:
                raise InputError(
                    "a video or an image of a record is in a key that is read",
                    f"{self.where}: {shorter(found)} in {shorter(key)} of {self.what}",
                    f"name it in video or image, with a place in the text, or --ignore {key}; forms: {DOCS}",
                )


def says_nothing(value: Any) -> bool:
    """Whether a value is as good as none: null, NaN, an empty text, list or object."""
    return value is None or value in ("", "[]", "{}") or value == [] or value == {} or value != value


def seconds(value: Any, where: str, key: str) -> float:
    """A time of a record.

    Raises:
        InputError: it is no number of seconds, 0 or more.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise wrong("a moment is in seconds, 0 or more", where, f"{key}: {shorter(value)}")
    return float(value)


def wrong(rule: str, where: str, found: str) -> InputError:
    """The error of a record."""
    return InputError(rule, f"{where or 'a record'}: {found}", f"see {DOCS} for the forms that are known")


def _media_in(value: Any) -> str | None:
    """The first name of a media file in a value."""
    if isinstance(value, str):
        return value if value.lower().split("?")[0].endswith(MEDIA) else None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for one in inner if (found := _media_in(one)) is not None), None)
