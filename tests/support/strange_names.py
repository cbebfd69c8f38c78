"""Sources with names that are easily confused, drawn from a seed, and what is right for each of their videos.

Each text is written *for* one video, in one of the ways in which people write names; so whose it is is known before the
product is asked. A video whose text is written clearly must get it; one whose text could be meant for others as well
may be refused instead, with a reason that names them. Nobody may ever get the text of somebody else.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

STEMS = (
    "clip",
    "Clip",
    "clip.1",
    "clip.10",
    "m",
    "m.part1",
    "m.part2",
    "v1.0",
    "a b",
    "-x",
    "caf\u00e9",
    "it's",
    "100%",
    "001",
)
FOLDERS = ("", "", "a/", "b/", "a/b/", "deep/er/")
SUFFIXES = (".mp4", ".mp4", ".mp4", ".mov", ".webm", ".MP4", ".png")
DISTRACTORS = ("srt", "vtt", "md")


@dataclass
class Case:
    """One source.

    Attributes:
        source: what `prepare` is given.
        captions: the file of captions that it is given, if any.
        clear: {name of a video: its text}; "" where it has none.
        doubtful: videos that may be refused instead, and what the reason must name, one of these.
        told: how it was made, for the message of a failure.
    """

    source: Path
    captions: Path | None = None
    clear: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, tuple[str, ...]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def videos_of(draw: random.Random, stems: tuple[str, ...] = STEMS) -> list[str]:
    """Names, no two of which share folder and stem, not even in other capitals where a text file would be shared."""
    found: dict[str, str] = {}
    for _ in range(draw.randint(2, 7)):
        stem = draw.choice(FOLDERS) + draw.choice(stems)
        if unicodedata.normalize("NFC", stem).lower() not in {one.lower() for one in found}:
            found[stem] = stem + draw.choice(SUFFIXES)
    return sorted(found.values())


def beside(draw: random.Random, video: str, text: str) -> tuple[str, str]:
    """(name, content) of a file of words that is clearly of this video."""
    stem = video.rpartition(".")[0]
    as_json = json.dumps({draw.choice(["caption", "Caption", "text", "prompt", "long"]): text, "width": 8})
    ways = {
        f"{stem}.txt": text,
        f"{video}.txt": f"{text}\n",
        f"{stem}.TXT": text,
        f"{stem}.caption": text,
        f"{stem}.caption.txt": text,
        f"{stem}.en.txt": text,
        f"{stem}.json": as_json,
        f"{stem}.long.txt": text,
    }
    return draw.choice(list(ways.items()))


def noise(draw: random.Random, video: str) -> dict[str, str]:
    """Files beside a video that are no captions of it, or that must not go before one."""
    stem = video.rpartition(".")[0]
    every = {f"{stem}.{one}": "noise" for one in DISTRACTORS} | {
        f"{stem}.info.json": '{"fps": 25}',
        f"{stem}.asr.txt": "noise",
    }
    return dict(draw.sample(list(every.items()), draw.randint(0, 2)))


def folder(draw: random.Random, root: Path) -> Case:
    """Videos with words beside them, in files of captions of their folders, or in one for all."""
    case = Case(root)
    names, files, said = videos_of(draw), {}, dict[str, dict[str, str]]()
    for number, video in enumerate(names):
        text, last = f"text {number} of {video}", video.rpartition("/")[2].rpartition(".")[0]
        way = draw.choice(["beside", "beside", "folder of words", "map", "map of the folder", "nothing", "both"])
        if way == "folder of words" and sum(_stem(other) == _stem(video) for other in names) > 1:
            way = "beside"  # whose it is could not be said
        files[video] = ""
        files |= noise(draw, video)
        above = video.rpartition("/")[0]
        if way in ("beside", "both"):
            name, content = beside(draw, video, text if way == "beside" else "another text")
            files[name] = content
        if way == "folder of words":
            files[f"{above}/{draw.choice(['labels', 'captions', 'text'])}/{last}.txt".lstrip("/")] = text
        if way in ("map", "both"):
            said.setdefault("", {})[video] = text
        if way == "map of the folder":
            said.setdefault(above, {})[video.rpartition("/")[2]] = text
        case.clear[video] = "" if way == "nothing" else text
        case.told.append(f"{video}: {way}")
    files |= {f"{above}/captions.json".lstrip("/"): json.dumps(texts) for above, texts in said.items()}
    _write(root, files)
    return case


def mapping(draw: random.Random, root: Path) -> Case:
    """Videos in a folder, and one file of captions whose names are written as people write them.

    Words beside a video go before a name that is not exactly its own.
    """
    case = Case(root / "in", root / "words.json")
    names, texts = videos_of(draw, ("clip", "clip.1", "m", "Clip")), dict[str, str]()
    for number, video in enumerate(names):
        text = f"text {number} of {video}"
        written = _mangled(draw, video)
        same = [other for other in names if other != video and _may_mean(written, other)]
        if written in texts or (written in names and written != video):
            case.clear[video] = ""
            continue
        if any(_bare(other) == _bare(written) for other in names if other != video):
            case.clear[video] = ""  # nobody would write that for this video
            continue
        texts[written] = text
        case.clear[video] = text
        if written != video and same:
            case.doubtful[video] = (*same, "no caption")
        case.told.append(f"{video}: {written}")
    for video in names:  # a text that may mean this video too, if it has none of its own
        rivals = [written for written in texts if written not in names and _may_mean(written, video)]
        if len(rivals) > 1 or (rivals and not case.clear[video]):
            case.doubtful[video] = (*rivals, *(name for name in names if name != video), "no caption")
    files = {f"in/{video}": "" for video in names} | {"words.json": json.dumps(texts)}
    for video in names:
        if draw.random() < 0.25:
            name, content = beside(draw, video, f"beside {video}")
            files[f"in/{name}"] = content
            if not {video, f"./{video}"} & texts.keys():
                case.clear[video] = f"beside {video}"
                case.doubtful.pop(video, None)
    _write(root, files)
    return case


def tar(draw: random.Random, root: Path) -> Case:
    """A tar of samples with words, their members side by side in any order."""
    path = root / "s.tar"
    root.mkdir(parents=True, exist_ok=True)
    case = Case(path)
    stems = tuple(stem for stem in STEMS if stem == stem.lower() and not stem.startswith("clip."))
    names = videos_of(draw, stems)
    groups: dict[str, list[tuple[str, str]]] = {}
    for number, video in enumerate(names):
        text = f"text {number} of {video}"
        members = [(video, "media"), *noise(draw, video).items()]
        if draw.random() < 0.8:
            members.append(beside(draw, video, text))
            case.clear[f"s.tar/{_member(video)}"] = text
        else:
            members = [one for one in members if not one[0].endswith("asr.txt")]
            case.clear[f"s.tar/{_member(video)}"] = ""
        above, _, last = video.rpartition("/")
        groups.setdefault(f"{above}/{last.partition('.')[0]}", []).extend(members)
        case.told.append(f"{[name for name, _ in members]}")
    with tarfile.open(path, "w") as file:
        for members in groups.values():
            for name, content in draw.sample(members, len(members)):
                info = tarfile.TarInfo(name)
                info.size = len(content.encode())
                file.addfile(info, io.BytesIO(content.encode()))
    return case


def table(draw: random.Random, root: Path) -> Case:
    """A table of videos, with headers, separators, encodings and paths as people write them."""
    kind = draw.choice(["csv", "csv", "tsv", "jsonl", "json", "txt"])
    case = Case(root / f"videos.{kind}")
    path = draw.choice(["path", "Path", "video", "File Name", "file_name", "video_path", "MEDIA-PATH", " url "])
    words = draw.choice(["caption", "Caption ", "text", "Prompt", "cap", "description"])
    names = videos_of(draw)
    rows = []
    for number, video in enumerate(names):
        alone = sum(_bare(other) == _bare(video) for other in names) == 1
        written = draw.choice(
            [video, video, f"./{video}", str(root / video), video.rpartition(".")[0] if alone else video]
        )
        text = f'text {number}, "of"; {video}' if kind != "txt" else f"text {number}"
        rows.append((written, text))
        name = video if written in (video, f"./{video}") else written
        case.clear[name if Path(name).suffix else video] = text
        if not (root / written).suffix or written == video.rpartition(".")[0]:
            case.clear.pop(written, None)
            case.clear[video] = text
    draw.shuffle(rows)
    _write(root, dict.fromkeys(names, ""))
    case.source.write_bytes(_table_bytes(draw, kind, path, words, rows))
    if kind == "txt":
        lines = "\n".join(text for _, text in rows)
        (root / draw.choice(["prompt.txt", "prompts.txt", "captions.txt"])).write_text(lines)
    case.told += [f"{kind}: {path!r}, {words!r}", *map(str, rows)]
    return case


KINDS: tuple[Callable[[random.Random, Path], Case], ...] = (folder, mapping, tar, table)


def _table_bytes(draw: random.Random, kind: str, path: str, words: str, rows: list[tuple[str, str]]) -> bytes:
    if kind == "txt":
        return "\n".join(name for name, _ in rows).encode()
    if kind == "json":
        return json.dumps(
            [{path: name, words: [text, "another"] if draw.random() < 0.3 else text} for name, text in rows]
        ).encode()
    if kind == "jsonl":
        return "".join(json.dumps({path: name, words: text}) + "\n" for name, text in rows).encode()
    out = io.StringIO()
    separator = "\t" if kind == "tsv" else draw.choice([",", ",", ";", "\t", "|"])
    csv.writer(out, delimiter=separator, lineterminator=draw.choice(["\n", "\r\n"])).writerows([(path, words), *rows])
    return out.getvalue().encode(draw.choice(["utf-8", "utf-8-sig", "utf-16"]))


def _mangled(draw: random.Random, video: str) -> str:
    stem, last = video.rpartition(".")[0], video.rpartition("/")[2]
    ways = [
        video,
        video,
        last,
        stem,
        f"/mnt/disk7/{video}",
        f"./{video}",
        video.replace("/", "\\"),
        video.upper(),
        f" {video} ",
        unicodedata.normalize("NFD", video),
        f"wrong/{last}",
    ]
    written = draw.choice(ways)
    return written if not written.startswith("wrong/") else draw.choice([video, last])


def _may_mean(written: str, video: str) -> bool:
    """Whether a person could take a name for a video's: one path ends with the other, suffix or not."""
    name, whole = _pieces(written), _pieces(video)
    bare = [*whole[:-1], whole[-1].rpartition(".")[0]]
    return any(name[-n:] == one[-n:] for one in (whole, bare) for n in [min(len(name), len(one))])


def _stem(video: str) -> str:
    return video.rpartition("/")[2].rpartition(".")[0].lower()


def _pieces(name: str) -> list[str]:
    plain = unicodedata.normalize("NFC", name).strip().lower().replace("\\", "/")
    return [piece for piece in plain.split("/") if piece not in ("", ".")]


def _bare(name: str) -> list[str]:
    """A path without its suffix, as it is confused."""
    pieces = _pieces(name)
    stem, dot, suffix = pieces[-1].rpartition(".")
    return [*pieces[:-1], stem] if dot and f".{suffix}" in {one.lower() for one in SUFFIXES} else pieces


def _member(video: str) -> str:
    """How a member of a tar is reported: its suffixes in lower case."""
    above, _, last = video.rpartition("/")
    key, _, rest = last.partition(".")
    return f"{above}/{key}.{rest.lower()}".lstrip("/")


def _write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
