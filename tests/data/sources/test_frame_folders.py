"""Folders of numbered pictures are films where somebody says their rate; where nobody does, it is said how."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from data.curation.clips import CutOptions, cut_into_clips
from data.dataset.index import Index
from data.media import video
from data.media.image_sequence import numbered
from data.prepare.pipeline import PrepareOptions, prepare
from data.sources.find_files import find
from data.sources.frame_folders import frame_folders, hint
from parallel.errors import InputError
from tests.support.films import stamped, stamps

FRAMES = 12


def fill(folder, names=None, suffix="png", film=None):
    folder.mkdir(parents=True, exist_ok=True)
    film = stamped(FRAMES) if film is None else film
    for frame, name in zip(film, names or [f"{row:06d}" for row in range(len(film))], strict=False):
        data = io.BytesIO()
        Image.fromarray(frame).save(data, "PNG" if suffix == "png" else "JPEG", quality=95)
        (folder / f"{name}.{suffix}").write_bytes(data.getvalue())
    return folder


def options(**more) -> PrepareOptions:
    return PrepareOptions(workers=0, previews=False, cut=CutOptions(frames_per_second=25.0), **more)


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        ([f"{n:06d}" for n in range(FRAMES)], "png"),
        ([f"frame{n}" for n in range(1, FRAMES + 1)], "jpg"),  # 10 comes after 9
        ([f"shot_2-{5 * n}" for n in range(FRAMES)], "jpeg"),  # every fifth
    ],
)
def test_frames_come_in_the_order_of_their_numbers(tmp_path, names, suffix):
    folder = fill(tmp_path / "clip0", names, suffix)
    (folder / "about.json").write_text("{}")
    (clip,) = cut_into_clips(folder, CutOptions(frames_per_second=29.97)).kept
    assert (clip.frames, clip.fps, clip.height, clip.width) == (FRAMES, Fraction(2997, 100), 48, 64)
    assert stamps(video.decode(clip.data)) == list(range(FRAMES))
    assert stamps(video.decode(folder, 3, 11, 4)) == [3, 7]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["1.png", "2.png", "4.png", "5.png", "9.png"], "number 3 is missing and 1 more gaps"),
        (["1.png", "01.png"], "two pictures have the number 1"),
        (["a1.png", "b2.png"], r"2 pictures in 2 numberings \(aN.png, bN.png\)"),
        (["a1.png", "a2.png", "cover.png"], "3 pictures in 1 numberings"),
        (["a1.png", "a2.jpg"], r"2 numberings"),
        (["1.png"], "1 pictures in 1 numberings"),
        ([], "0 pictures in 0 numberings"),
    ],
)
def test_what_is_no_single_numbering_is_told(names, reason):
    with pytest.raises(InputError, match=reason):
        numbered("clip0", names)


def test_frames_of_several_sizes_and_damaged_ones_are_told(tmp_path):
    folder = fill(tmp_path / "clip0")
    fill(folder, ["000007"], film=stamped(1, 32, 32))
    with pytest.raises(InputError, match=r"000007\.png is 32 x 32, the first is 48 x 64"):
        cut_into_clips(folder, CutOptions(frames_per_second=25))
    (folder / "000007.png").write_bytes(b"words")
    with pytest.raises(InputError, match=r"clip0: 000007\.png: not a picture"):
        cut_into_clips(folder, CutOptions(frames_per_second=25))


def test_folders_with_words_of_pictures_or_with_videos_are_none():
    pictures = [f"clip0/{n}.jpg" for n in range(9)]
    assert frame_folders(pictures, pictures, ()) == {"clip0": 9}
    assert frame_folders(pictures, [*pictures, "clip0/3.txt"], ()) == {}
    assert frame_folders(pictures, pictures, {"clip0/3.jpg": "words"}) == {}
    assert frame_folders([*pictures, "clip0/a.mp4"], pictures, ()) == {}
    assert frame_folders([*pictures, "a.mp4", "b/x.jpg"], [*pictures, "clip0/notes.txt"], ()) == {"clip0": 9}
    assert hint({"a": 7, "b": 1}, "") is None


def test_what_is_not_read_as_a_film_is_told(tmp_path):
    fill(tmp_path / "in" / "photos")
    for row in range(FRAMES):
        (tmp_path / "in" / "photos" / f"{row:06d}.txt").write_text(f"picture {row}")
    summary = prepare(tmp_path / "in", tmp_path / "out", options())
    assert summary.kept == FRAMES
    assert summary.notes == [
        "--frames-per-second reads no film: no folder has pictures of one numbering and without words",
        "1 folder is read as images, because pictures have words of their own: photos",
    ]


def test_a_source_of_films_and_folders(tmp_path):
    fill(tmp_path / "in" / "deep" / "clip0")
    fill(tmp_path / "in" / "clip1", film=stamped(20)[8:])
    fill(tmp_path / "in" / "gap", film=stamped(9))
    (tmp_path / "in" / "gap" / "000004.png").unlink()
    (tmp_path / "in" / "deep" / "clip0.txt").write_text("the first")
    (tmp_path / "in" / "captions.json").write_text('{"clip1": "the second", "gap": "the third"}')
    summary = prepare(tmp_path / "in", tmp_path / "out", options())
    rows = {row["file"]: row for row in Index.open(tmp_path / "out").table.to_pylist()}
    told = [(name, row["caption"], row["frames"], row["fps"]) for name, row in sorted(rows.items())]
    assert told == [("clip1", "the second", FRAMES, 25), ("deep/clip0", "the first", FRAMES, 25)]
    assert [(one.file, "number 4 is missing" in one.reason) for one in summary.rejected] == [("gap", True)]
    assert prepare(tmp_path / "in", tmp_path / "out", options()).skipped == 2


def test_a_listing_says_which_folders_are_no_film_and_why(tmp_path):
    for name in ("one/1.png", "one/2.png", "gap/1.png", "gap/2.png", "gap/4.png", "mixed/a1.png", "mixed/b2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"picture")
    (tmp_path / "one.txt").write_text("words of a film")
    (tmp_path / "gap.txt").write_text("words of another")
    listing = find(str(tmp_path), films=True)
    found = {one.name: one for one in listing}
    assert found["one"].caption.short == "words of a film"
    rule = "a folder of numbered frames is one film, each frame of one size"
    assert found["gap"].reason.startswith(f"{rule}; found: between 1 and 4, number 3 is missing; add it, ")
    assert found["mixed/a1.png"].reason == "no caption"
    assert listing.notes[0] == "1 folder is no film, because not all in it is pictures of one numbering: mixed"
    assert [note for note in listing.notes if "one.txt" in note] == []


def test_a_folder_alone_and_one_that_a_table_names(tmp_path):
    fill(tmp_path / "clip0")
    (tmp_path / "clip0.txt").write_text("words")
    (tmp_path / "t.csv").write_text("video,caption\nclip0,other words\n")
    for source, words in ((tmp_path / "clip0", "words"), (tmp_path / "t.csv", "other words")):
        prepare(source, tmp_path / words, options())
        (row,) = Index.open(tmp_path / words).table.to_pylist()
        assert (row["file"], row["caption"], row["frames"]) == ("clip0", words, FRAMES)


def test_without_a_rate_it_is_said_how(tmp_path):
    folder = fill(tmp_path / "in" / "clip0").parent
    plain = PrepareOptions(workers=0, previews=False)
    with pytest.raises(InputError, match=r"12 numbered pictures in .*clip0: .*--frames-per-second"):
        prepare(folder, tmp_path / "out", plain)
    summary = prepare(folder, tmp_path / "out", PrepareOptions(workers=0, previews=False, allow_missing_captions=True))
    assert summary.kept == FRAMES
    assert any("--frames-per-second" in note for note in summary.notes)
    (tmp_path / "t.csv").write_text("video,caption\nin/clip0,words\n")
    with pytest.raises(InputError, match=r"no file but a folder; .*--frames-per-second"):
        prepare(tmp_path / "t.csv", tmp_path / "other", plain)
    with pytest.raises(InputError, match="read from a disk"):
        prepare("https://127.0.0.1/clips/", tmp_path / "other", options())
    for rate in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(InputError, match="frames_per_second"):
            CutOptions(frames_per_second=rate)


def test_one_picture_that_changes_makes_another_film(tmp_path):
    folder = fill(tmp_path / "in" / "clip0").parent
    (folder / "clip0.txt").write_text("words")
    prepare(folder, tmp_path / "out", options())
    other = np.flip(stamped(FRAMES), 0)
    fill(folder / "clip0", film=np.ascontiguousarray(other))
    assert prepare(folder, tmp_path / "out", options()).kept == 1
