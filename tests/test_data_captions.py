"""Captions are found where people keep them, short and long, and a video without one is told, not guessed."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.captions import NO_CAPTION, Caption, caption_of, find_captions, of_parts, sidecars_of
from data.tables import read_table
from parallel.errors import InputError


def refused(call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    return error.value.value


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (" plain ", ("plain", "")),
        ({"short": "s", "long": "l"}, ("s", "l")),
        ({"caption": "s", "caption_long": "l"}, ("s", "l")),
        ({"long": "only long"}, ("only long", "")),
        ({"text": "t", "short": ""}, ("t", "")),
        ("half \ud83d", ("half ?", "")),
    ],
)
def test_a_caption_is_a_text_or_an_object_with_texts(entry, expected):
    assert caption_of(entry, "a.mp4") == Caption(*expected)


def test_what_is_no_caption():
    assert refused(caption_of, 7, "a.mp4") == "the caption of a.mp4 is int, not text"
    assert refused(caption_of, {"short": ["a"]}, "a.mp4") == "the caption of a.mp4 is list, not text"
    for nothing in ("", " \n", {}, {"short": " "}, None):
        assert refused(caption_of, nothing, "a.mp4") == NO_CAPTION


def test_captions_json_by_path_and_by_name(tmp_path):
    raw = {"a.mp4": " plain ", "deep/b.mp4": {"short": "s", "long": "l"}, str(tmp_path / "c.mp4"): "absolute"}
    (tmp_path / "captions.json").write_text(json.dumps(raw))
    captions = find_captions(tmp_path)
    assert captions.of("a.mp4") == captions.of("elsewhere/a.mp4") == ("plain", "")
    assert captions.of("deep/b.mp4") == ("s", "l")
    assert captions.of("c.mp4") == ("absolute", "")
    assert captions.of("d.mp4", lambda: Caption("beside")) == ("beside", "")
    assert refused(captions.of, "d.mp4") == NO_CAPTION


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"txt": b"words\n"}, ("words", "")),
        ({"txt": b"\xef\xbb\xbfwith a mark"}, ("with a mark", "")),
        ({"json": b'{"short": "s", "long": "l"}'}, ("s", "l")),
        ({"json": b'"just a text"'}, ("just a text", "")),
        ({"txt": b"t", "json": b'{"caption": "c", "long": "l"}'}, ("t", "l")),
        ({"txt": b"t", "json": b'{"short": "s"}'}, ("s", "")),
        ({"txt": b"t", "json": b'{"width": 3}'}, ("t", "")),
        ({"txt": b"t", "json": b"[1, 2]"}, ("t", "")),
        ({"cls": b"7"}, ("7", "")),
        ({"cls": b"7", "json": b'{"text": "t"}'}, ("t", "")),
    ],
)
def test_what_stands_beside_a_video(parts, expected):
    assert of_parts(parts) == Caption(*expected)


def test_unusable_words_beside_a_video(tmp_path):
    assert refused(of_parts, {}) == refused(of_parts, {"json": b'{"width": 3}'}) == NO_CAPTION
    assert "json cannot be read" in refused(of_parts, {"json": b"{broken"})
    assert "list, not text" in refused(of_parts, {"json": b"[1]"})
    assert "txt is not UTF-8" in refused(of_parts, {"txt": b"\xff\xfe\x00"})
    (tmp_path / "a.txt").mkdir()
    assert "a.txt cannot be read: Is a directory" in refused(sidecars_of, tmp_path / "a.mp4")
    (tmp_path / "b.json").write_text("{}")
    assert sidecars_of(tmp_path / "b.mp4") == {"json": b"{}"}


@pytest.mark.parametrize("path_column", ["path", "file", "video", "url"])
@pytest.mark.parametrize(("short", "long"), [("caption", "caption_long"), ("text", "long")])
def test_tables(tmp_path, path_column, short, long):
    columns = {path_column: ["x/2.mp4", "001"], short: [None, "a, b"], long: [None, "2020-01-01"]}
    (tmp_path / "t.csv").write_text(f'id,{path_column},{short},{long}\n1,x/2.mp4,,\n2,001,"a, b",2020-01-01\n')
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    lines = [{path_column: "x/2.mp4", "n": 1}, {path_column: "001", short: "a, b", long: "2020-01-01"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("t.csv", "t.parquet", "t.jsonl"):
        first, second = read_table(tmp_path / name, captions=True)
        assert (first.path, first.captions) == ("001", {"short": "a, b", "long": "2020-01-01"})
        assert second.path == "x/2.mp4"
        assert not any(second.captions.values())
        captions = find_captions(tmp_path, tmp_path / name)
        assert captions.of("001") == ("a, b", "2020-01-01")
        assert refused(captions.of, "x/2.mp4") == NO_CAPTION


def test_a_missing_column_is_named_with_a_guess(tmp_path):
    (tmp_path / "t.csv").write_text("path,Captions,score\na.mp4,words,1\n")
    with pytest.raises(InputError) as error:
        find_captions(tmp_path, tmp_path / "t.csv")
    assert "'caption' or 'text'" in error.value.rule
    assert "'path', 'Captions', 'score'" in error.value.value
    assert error.value.remedy == "rename 'Captions' to 'caption'"
    (tmp_path / "u.jsonl").write_text('{"score": 1, "caption": "words"}\n')
    with pytest.raises(InputError, match="add a column 'path'"):
        find_captions(tmp_path, tmp_path / "u.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", "[1]"),
        ("c.json", "{"),
        ("c.csv", ""),
        ("c.parquet", "no parquet"),
        ("c.jsonl", ""),
        ("c.jsonl", "[1]\n"),
        ("c.csv", "path,caption\n,words\n"),
        ("c.csv", "path,caption\na,1\na,2\n"),
        ("c.xlsx", "words"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        find_captions(tmp_path, tmp_path / name)


def test_a_file_that_is_absent_is_refused(tmp_path):
    for name in ("c.json", "c.csv", "c.parquet", "c.jsonl"):
        with pytest.raises(InputError, match="c\\."):
            find_captions(tmp_path, tmp_path / name)
