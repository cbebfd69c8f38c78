"""Captions are found where people keep them, and a video without one is told, not guessed."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.captions import NO_CAPTION, find_captions, read_table
from data.sources import find_videos
from parallel.errors import InputError


def text_of(captions, folder, name, choice="short"):
    return captions.text(name, folder / name, choice)


def refused(captions, folder, name, choice="short"):
    with pytest.raises(InputError) as error:
        captions.text(name, folder / name, choice)
    return error.value.value


def test_captions_json_by_path_and_by_name(tmp_path):
    raw = {
        "a.mp4": " plain ",
        "deep/b.mp4": {"short": "s", "long": "l"},
        "c.mp4": {"long": "only long"},
        "d.mp4": 7,
        "e.mp4": "",
    }
    (tmp_path / "captions.json").write_text(json.dumps(raw))
    captions = find_captions(tmp_path)
    assert text_of(captions, tmp_path, "a.mp4") == text_of(captions, tmp_path, "a.mp4", "long") == "plain"
    assert text_of(captions, tmp_path, "elsewhere/a.mp4") == "plain"
    assert text_of(captions, tmp_path, "deep/b.mp4") == "s"
    assert text_of(captions, tmp_path, "deep/b.mp4", "long") == "l"
    assert "no short caption of c.mp4" in refused(captions, tmp_path, "c.mp4")
    assert "only: long" in refused(captions, tmp_path, "c.mp4")
    assert "int, not text" in refused(captions, tmp_path, "d.mp4")
    assert refused(captions, tmp_path, "e.mp4") == refused(captions, tmp_path, "absent.mp4") == NO_CAPTION


def test_sidecars(tmp_path):
    (tmp_path / "a.txt").write_text("words of a\n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"short": "b", "long": "bb"}')
    (tmp_path / "c.json").write_text('{"text": "c"}')
    (tmp_path / "d.json").write_text("{broken")
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\x00")
    captions = find_captions(tmp_path)
    assert [text_of(captions, tmp_path, f"{name}.mp4") for name in "abc"] == ["words of a", "b", "c"]
    assert text_of(captions, tmp_path, "b.mp4", "long") == "bb"
    assert "d.json cannot be read" in refused(captions, tmp_path, "d.mp4")
    assert "e.txt cannot be read" in refused(captions, tmp_path, "e.mp4")


@pytest.mark.parametrize("path_column", ["path", "file", "video"])
@pytest.mark.parametrize("caption_column", ["caption", "text"])
def test_tables(tmp_path, path_column, caption_column):
    (tmp_path / "t.csv").write_text(f'id,{path_column},{caption_column}\n1,001,"a, b"\n2,x/2.mp4,\n')
    columns = {path_column: ["001", "x/2.mp4"], caption_column: ["a, b", None]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        paths, texts = read_table(tmp_path / name, captions=True)
        assert paths == ["001", "x/2.mp4"]
        assert [text or None for text in texts] == ["a, b", None]
        captions = find_captions(tmp_path, tmp_path / name)
        assert text_of(captions, tmp_path, "001") == "a, b"
        assert refused(captions, tmp_path, "x/2.mp4") == NO_CAPTION


def test_a_missing_column_is_named_with_a_guess(tmp_path):
    (tmp_path / "t.csv").write_text("path,Captions,score\na.mp4,words,1\n")
    with pytest.raises(InputError) as error:
        find_captions(tmp_path, tmp_path / "t.csv")
    assert "'caption' or 'text'" in error.value.rule
    assert "'path', 'Captions', 'score'" in error.value.value
    assert error.value.remedy == "rename 'Captions' to 'caption'"
    (tmp_path / "u.csv").write_text("score,caption\n1,words\n")
    with pytest.raises(InputError, match="add a column 'path'"):
        find_captions(tmp_path, tmp_path / "u.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", "[1]"),
        ("c.json", "{"),
        ("c.csv", ""),
        ("c.parquet", "no parquet"),
        ("c.csv", "path,caption\n,words\n"),
        ("c.csv", "path,caption\na,1\na,2\n"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        find_captions(tmp_path, tmp_path / name)


def test_a_file_that_is_absent_is_refused(tmp_path):
    for name in ("c.json", "c.csv", "c.parquet"):
        with pytest.raises(InputError, match="c\\."):
            find_captions(tmp_path, tmp_path / name)


def test_videos_are_found_at_any_depth_and_sorted(tmp_path):
    for name in ["b.MP4", "a/z.webm", "a/.hidden.mp4", ".git/c.mp4", "notes.txt", "out/shards/d.mp4"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    videos, _ = find_videos(tmp_path, leave_out=tmp_path / "out")
    assert [video.name for video in videos] == ["a/z.webm", "b.MP4"]
    one, _ = find_videos(tmp_path / "b.MP4")
    assert [video.name for video in one] == ["b.MP4"]


def test_a_table_is_a_source(tmp_path):
    (tmp_path / "list.csv").write_text(f"video,text\nz.mp4,last\n{tmp_path}/a.mp4,first\n")
    videos, captions = find_videos(tmp_path / "list.csv")
    assert [(v.name, v.path) for v in videos] == [
        (f"{tmp_path}/a.mp4", tmp_path / "a.mp4"),
        ("z.mp4", tmp_path / "z.mp4"),
    ]
    assert [captions.text(v.name, v.path) for v in videos] == ["first", "last"]


def test_a_source_without_videos_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_videos(tmp_path / "absent")
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(InputError, match=r"readme\.md"):
        find_videos(tmp_path)
