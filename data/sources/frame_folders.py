"""Frame folders: folders of numbered pictures, which may be films (`data.media.image_sequence`) that somebody unpacked.

    clip0/000000.jpg, 000001.jpg, ...     one numbering, no words beside a picture, no video among them: a film
    holiday/1.jpg, 1.txt, 2.jpg, 2.txt    pictures with words of their own: images

Numbers alone do not tell a film from a box of photographs, and no file tells the rate: a person does, by giving one.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from data.captions.name_matching import listed
from data.captions.sidecars import kind_of
from data.containers.open_media import IMAGE_SUFFIXES
from data.media.image_sequence import NUMBERED, is_numbered

OPTION = "--frames-per-second"
LEAST = 8  # numbered pictures that are worth a word
SUFFIX = ".frames"  # by which the name of a folder is one of media, for the words beside it


def frame_folders(
    media: Iterable[str], files: Iterable[str], captioned: Collection[str], worded: bool = False
) -> dict[str, int]:
    """{folder: how many pictures it has} of those that may be films.

    Args:
        media: names of videos and images, relative to the source.
        files: names of all files.
        captioned: names that have words in a file of captions.
        worded: those that would be, but for pictures with words of their own.
    """
    inside, words = defaultdict(list), set()
    for name in media:
        inside[os.path.dirname(name)].append(name)
    for name in files:
        if kind_of(name):
            words.add(os.path.splitext(name)[0])

    def has_words(name: str) -> bool:
        return name in captioned or name in words or os.path.splitext(name)[0] in words

    return {
        folder: len(names)
        for folder, names in inside.items()
        if all(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in names)
        and any(map(has_words, names)) == worded
        and is_numbered([os.path.basename(name) for name in names])
    }


def mixed(media: Iterable[str]) -> list[str]:
    """Folders of pictures, some of them numbered, that are no film: not all have one and the same numbering."""
    inside = defaultdict(list)
    for name in media:
        inside[os.path.dirname(name)].append(name)
    found = []
    for folder, names in inside.items():
        pictures = [os.path.basename(name) for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        many = sum(NUMBERED.fullmatch(name) is not None for name in pictures)
        if many > 1 and (len(pictures) < len(names) or not is_numbered(pictures)):
            found.append(folder or ".")
    return sorted(found)


def is_frame_folder(folder: Path) -> bool:
    """Whether a folder itself may be a film."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    pictures = [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
    return bool(frame_folders(pictures, names, ()))


def left_out(films: Mapping[str, int], worded: Mapping[str, int], others: Sequence[str] = ()) -> list[str]:
    """What to tell of a source whose folders of numbered pictures were asked for; `others` are `mixed`."""
    notes = [] if films else [f"{OPTION} reads no film: no folder has pictures of one numbering and without words"]
    if worded:
        many = "1 folder is" if len(worded) == 1 else f"{len(worded):,} folders are"
        notes.append(f"{many} read as images, because pictures have words of their own: {listed(sorted(worded))}")
    if others := [folder for folder in others if folder not in worded]:
        many = "1 folder is" if len(others) == 1 else f"{len(others):,} folders are"
        each = "it" if len(others) == 1 else "each"
        notes.append(f"{many} no film, because not all in {each} is pictures of one numbering: {listed(others)}")
    return notes


def hint(folders: dict[str, int], source: Path) -> str | None:
    """What to type to read folders of numbered pictures as films; None if there is none worth it."""
    many = sorted(folder for folder, pictures in folders.items() if pictures >= LEAST)
    if not many:
        return None
    where = ", ".join(str(source / folder) for folder in many[:3])
    more = f" and {len(many) - 3:,} more" if len(many) > 3 else ""
    pictures = sum(folders[folder] for folder in many)
    return f"{pictures:,} numbered pictures in {where}{more}: to read a folder as a film, give {OPTION} 25, or its rate"
