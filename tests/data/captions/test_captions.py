"""Captions are found where people keep them, short and long, and a video without one is told, not guessed."""

import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.captions.captions import NO_CAPTION, Caption, Captions, caption_of, of_parts, of_sides
from data.captions.name_matching import Files
from data.captions.sidecars import Folder, Sides
from data.captions.tables import read_table
from data.sources.caption_files import find_captions, given_captions
from data.sources.files import SourceFile
from data.sources.find_files import find
from parallel.errors import InputError
from tests.support.stores import served


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
    ],
)
def test_a_caption_is_a_text_or_an_object_with_texts(entry, expected):
    assert caption_of(entry, "a.mp4") == Caption(*expected)


def test_what_is_no_caption():
    assert refused(caption_of, 7, "a.mp4") == "the caption of a.mp4 is int, not text"
    assert refused(caption_of, {"short": [1]}, "a.mp4") == "the caption of a.mp4 is list, not text"
    half = "the caption of a.mp4 holds half a character, '\\ud83d': write whole characters"
    for entry in ("half \ud83d", ["\ud83d"], {"long": "\ud83d", "short": "whole"}):
        assert refused(caption_of, entry, "a.mp4") == half
    of_sample = half.replace("a.mp4", "the sample")  # a sidecar, or a member of a tar
    assert refused(of_parts, {"json": rb'{"caption": "\ud83d"}'}) == of_sample
    for nothing in ("", " \n", {}, {"short": " "}, None):
        assert refused(caption_of, nothing, "a.mp4") == NO_CAPTION


def test_several_captions_of_one_video_are_told():
    told = []
    assert caption_of({"cap": ["first", "second"], "long": ["l"]}, "a.mp4", told.append) == ("first", "l")
    assert caption_of(["", "second"], "b.mp4", told.append) == ("second", "")
    assert told == ["a.mp4"]


def test_captions_json_by_path_and_by_name(tmp_path):
    raw = {"a.mp4": " plain ", "deep/b.mp4": {"short": "s", "long": "l"}, str(tmp_path / "c.mp4"): "absolute"}
    (tmp_path / "captions.json").write_text(json.dumps(raw))
    files = ["elsewhere/a.mp4", "deep/b.mp4", "c.mp4", "d.mp4"]
    captions, notes = find_captions(str(tmp_path), ["captions.json", *files], absolute=tmp_path)
    captions = replace(captions, files=lambda: files)
    assert notes == []
    assert captions.of("elsewhere/a.mp4") == ("plain", "")
    assert captions.of("deep/b.mp4") == ("s", "l")
    assert captions.of("c.mp4") == ("absolute", "")
    assert captions.of("d.mp4", lambda: Caption("beside")) == ("beside", "")
    assert refused(captions.of, "d.mp4") == NO_CAPTION


@pytest.mark.parametrize(
    ("raw", "files", "file", "expected"),
    [
        ({"clip.mp4": "A"}, ["clip.mp4", "sub/clip.mp4"], "sub/clip.mp4", None),  # an exact name is of its file alone
        ({"clip.mp4": "A"}, ["sub/clip.mp4"], "sub/clip.mp4", "A"),
        ({"clip.mp4": "A"}, ["a/clip.mp4", "b/clip.mp4"], "a/clip.mp4", "may mean a/clip.mp4 or b/clip.mp4"),
        ({"/old/a/clip.mp4": "A"}, ["a/clip.mp4", "b/clip.mp4"], "a/clip.mp4", "A"),
        ({"/old/a/clip.mp4": "A"}, ["a/clip.mp4", "clip.mp4"], "clip.mp4", None),
        ({"x/clip.mp4": "A"}, ["y/clip.mp4"], "y/clip.mp4", None),  # its folder says otherwise
        ({"/1/clip.mp4": "A", "/2/clip.mp4": "B"}, ["clip.mp4"], "clip.mp4", "that of /1/clip.mp4 or /2/clip.mp4"),
        ({"/1/clip.mp4": "A", "/2/clip.mp4": "A"}, ["clip.mp4"], "clip.mp4", "A"),
        ({"clip": "A"}, ["clip.mp4"], "clip.mp4", "A"),
        ({"clip": "A"}, ["clip.mp4", "clip.mov"], "clip.mp4", "clip in captions.json may mean clip.mov or clip.mp4"),
        ({"clip.mov": "A"}, ["clip.mp4"], "clip.mp4", None),
        ({"a\\Clip.MP4 ": "A"}, ["a/clip.mp4"], "a/clip.mp4", "A"),
        ({"Clip.mp4": "A"}, ["Clip.mp4", "clip.mp4"], "clip.mp4", None),
        ({"u\u0308.mp4": "A"}, ["\u00fc.mp4"], "\u00fc.mp4", "A"),
        ({"1.mp4": "A"}, ["s.tar/1.mp4"], "s.tar/1.mp4", "A"),
        ({"1.mp4": "A"}, ["s.tar/1.mp4", "t.tar/1.mp4"], "t.tar/1.mp4", "s.tar/1.mp4 or t.tar/1.mp4"),
        ({"a.mp4": "A"}, ["https://h/x/a.mp4?sig=b/a.mp4"], "https://h/x/a.mp4?sig=b/a.mp4", "A"),
        ({"b/clip.mp4": "B", "clip.mp4": "A"}, ["a/b/clip.mp4"], "a/b/clip.mp4", "B"),
        ({"clip.mp4": ""}, ["clip.mp4"], "clip.mp4", None),
        ({"x/clip.mp4": "A"}, ["clip.mp4"], "clip.mp4", "A"),
        ({"x/clip.mp4": "A", "b.mp4": "B"}, ["clip.mp4", "b.mp4"], "clip.mp4", None),
        ({"/o/x/clip.mp4": "A", "/o/b.mp4": "B"}, ["clip.mp4", "b.mp4"], "clip.mp4", None),
        ({"/o/x/clip.mp4": "A", "b.mp4": "B"}, ["clip.mp4", "b.mp4"], "clip.mp4", "A"),
        ({"here/clip.mp4": "A", "b.mp4": "B"}, ["clip.mp4", "b.mp4"], "clip.mp4", "A"),
        ({"is/here/clip.mp4": "A", "here/b.mp4": "B"}, ["clip.mp4", "b.mp4"], "clip.mp4", "A"),
    ],
)
def test_a_name_means_one_file(raw, files, file, expected):
    captions = Captions("captions.json", raw, files=lambda: files, root="/what/is/here")
    if expected in raw.values():
        assert captions.of(file) == (expected, "")
    else:
        assert (expected or NO_CAPTION) in refused(captions.of, file)
    assert captions.of(file, lambda: Caption("beside")) == (raw.get(file) or "beside", "")


@pytest.mark.parametrize(
    ("files", "name", "meant"),
    [
        (["a/x.mp4", "b/x.mp4"], "b/x.mp4", ["b/x.mp4"]),
        (["a/x.mp4", "b/x.mp4"], "/old/b/x.mp4", ["b/x.mp4"]),
        (["a/x.mp4", "b/x.mp4"], "x.mp4", ["a/x.mp4", "b/x.mp4"]),
        (["a/x.mp4"], "c/x.mp4", []),  # its folder says otherwise
        (["s.tar/x.mp4"], "videos/x.mp4", ["s.tar/x.mp4"]),  # nobody writes the name of a tar
        (["s.tar/x.mp4", "t.tar/x.mp4"], "videos/x.mp4", ["s.tar/x.mp4", "t.tar/x.mp4"]),
        (["s.tar/x.mp4", "a/x.mp4"], "x.mp4", ["a/x.mp4", "s.tar/x.mp4"]),
        (["s.tar/0004"], "0004.mp4", ["s.tar/0004"]),  # of an imported tar
        (["0004.mp4"], "0004", ["0004.mp4"]),
        (["0004.mp4"], "0004.mov", []),
        (["clip.mp4"], "CLIP.MP4", ["clip.mp4"]),
        (["a b.mp4"], "x/a%20b.mp4", ["a b.mp4"]),
        (["100%25.mp4", "100%.mp4"], "100%.mp4", ["100%.mp4"]),
        ([], "x", []),
        (["x"], "", []),
    ],
)
def test_which_files_a_name_means(files, name, meant):
    assert Files(files).meant(name) == meant


def test_names_that_mean_nothing_are_told_with_the_nearest():
    captions = Captions("captions.json", {"clp.mp4": "A", "b.mp4": "B", "z/9": "C", "none.mp4": ""})
    assert captions.unmatched(["clip.mp4", "b.mp4"]) == [
        "captions.json: 2 of 4 names match no file: clp.mp4 (nearest: clip.mp4), z/9"
    ]
    assert captions.unmatched(["clp.mp4", "b.mp4", "z/9.mp4"]) == []


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
    assert "say different things" in refused(of_sides, Sides(twice={"txt": ("a.TXT", "a.txt")}), str.encode)
    assert of_sides(Sides(twice={"txt": ("a.TXT", "a.txt")}), lambda _: b"same") == ("same", "")


@pytest.mark.parametrize(
    ("media", "words", "name", "expected"),
    [
        (["a.mp4"], ["a.txt", "b.txt"], "a.mp4", {"txt": "a.txt"}),
        (["a.mp4"], ["a.TXT", "a.Json"], "a.mp4", {"txt": "a.TXT", "json": "a.Json"}),
        (["a.mp4", "a.mov"], ["a.mp4.txt", "a.txt"], "a.mp4", {"txt": "a.mp4.txt"}),
        (["a.mp4", "a.mov"], ["a.mp4.txt", "a.txt"], "a.mov", {"txt": "a.txt"}),
        (["a.mp4"], ["a.asr.txt", "a.caption.txt"], "a.mp4", {"txt": "a.caption.txt"}),
        (["a.mp4"], ["a.caption"], "a.mp4", {"txt": "a.caption"}),
        (["a.mp4"], ["a.long.txt", "a.short.txt"], "a.mp4", {"txt": "a.short.txt", "long": "a.long.txt"}),
        (["m.mp4", "m.part1.mp4"], ["m.part1.txt"], "m.mp4", {}),
        (["m.mp4", "m.part1.mp4"], ["m.part1.txt"], "m.part1.mp4", {"txt": "m.part1.txt"}),
        (["m.mp4"], ["m.part1.txt", "mm.txt"], "m.mp4", {}),
        (["CLIP.mp4"], ["clip.txt"], "CLIP.mp4", {"txt": "clip.txt"}),
        (["CLIP.mp4", "clip.mp4"], ["clip.txt"], "CLIP.mp4", {}),
        (["CLIP.mp4", "clip.mp4"], ["clip.txt"], "clip.mp4", {"txt": "clip.txt"}),
    ],
)
def test_words_beside_a_video(media, words, name, expected):
    sides = Folder(media, words).sides(name)
    assert (sides.kinds, sides.others) == (expected, ())


def test_languages_are_taken_where_there_is_one():
    one, two = ["m.en.txt"], ["m.de.txt", "m.en.txt"]
    assert of_sides(Folder(["m.mp4"], one).sides("m.mp4"), str.encode) == ("m.en.txt", "")
    assert "may be m.de.txt or m.en.txt" in refused(of_sides, Folder(["m.mp4"], two).sides("m.mp4"), str.encode)
    assert of_sides(Folder(["m.mp4"], two).sides("m.mp4"), lambda _: b"same") == ("same", "")


def fill(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


def captions_of(source, **options):
    found = find(str(source), **options)
    said = {one.name: one.caption.short if isinstance(one, SourceFile) else one.reason for one in found}
    return said, found.notes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (  # two folders, one name
            {"clip.mp4": "", "sub/clip.mp4": "", "sub/clip.txt": "S", "captions.json": {"clip.mp4": "C"}},
            {"clip.mp4": "C", "sub/clip.mp4": "S"},
        ),
        (
            {"a/1.mp4": "", "b/1.mp4": "", "a/captions.json": {"1.mp4": "A"}, "b/captions.json": {"1": "B"}},
            {"a/1.mp4": "A", "b/1.mp4": "B"},
        ),
        (
            {"t/1.mp4": "", "t/metadata.jsonl": '{"file_name": "1.mp4", "text": "T"}\n', "metadata.csv": "a,b\n1,2\n"},
            {"t/1.mp4": "T"},
        ),
        (
            {"v/1.mp4": "", "v/2.mp4": "", "videos.txt": "v/1.mp4\nv/2.mp4\n", "prompt.txt": "one\ntwo\n\n"},
            {"v/1.mp4": "one", "v/2.mp4": "two"},
        ),
        (
            {"1.mp4": "", "captions.json": {"1.mp4": "A"}, "metadata.csv": "file_name,text\n1.mp4,B\n"},
            {"1.mp4": "1.mp4 has different captions: captions.json and metadata.csv"},
        ),
        ({"1.mp4": "", "x/2.mp4": "", "x/captions.json": "{"}, {"1.mp4": "no caption", "x/2.mp4": "x/captions.json: "}),
        ({"1.mp4": "", "captions.json": '{"1.mp4": "A", "1.mp4": "B"}'}, {"1.mp4": "1.mp4 stands there twice"}),
        ({"v/1.mp4": "", "meta/captions.json": {"v/1.mp4": "A"}}, {"v/1.mp4": "A"}),
        ({"x/v/1.mp4": "", "x/v/captions.json": {"v/1.mp4": "A"}}, {"x/v/1.mp4": "A"}),
        ({"1.mp4": "", "captions.json": {"x/1.mp4": "A"}}, {"1.mp4": "no caption"}),
    ],
)
def test_captions_of_a_folder_and_below(tmp_path, files, expected):
    said, _ = captions_of(fill(tmp_path, files))
    assert said.keys() == expected.keys()
    assert all(text in said[name] for name, text in expected.items())


def test_what_is_not_used_is_told(tmp_path):
    fill(tmp_path, {"a.mp4": "", "captions.json": {"a.mp4": ["x", "y"], "b.mp4": "B"}, "metadata.csv": "q\n1\n"})
    said, notes = captions_of(tmp_path)
    assert said == {"a.mp4": "x"}
    assert len(notes) == 3
    assert "metadata.csv is not read as captions: a table has a column" in notes[0]
    assert notes[1] == "captions.json: a name matches no file: b.mp4"
    assert notes[2] == "1 file has several captions, of which the first is used: a.mp4"


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a.mp4": "A", "c.mp4": "C",}', "7", "a.mp4: A"], ids=[*"abcd"])
@pytest.mark.parametrize("below", ["", "x/"])
def test_a_broken_file_of_captions_costs_itself_alone(tmp_path, text, below):
    fill(tmp_path, {f"{below}a.mp4": "", f"{below}b.mp4": "", f"{below}b.txt": "B", f"{below}captions.json": text})
    said, notes = captions_of(tmp_path)
    assert said[f"{below}b.mp4"] == "B"
    assert said[f"{below}a.mp4"].startswith(f"{below}captions.json: ")
    fill(tmp_path, {f"{below}a.txt": "A"})  # told though every video has words
    said, notes = captions_of(tmp_path)
    assert said == {f"{below}a.mp4": "A", f"{below}b.mp4": "B"}
    assert [note.startswith(f"{below}captions.json is not read: ") for note in notes] == [True]


def test_a_captions_json_may_hold_json_lines(tmp_path):
    lines = '{"path": "a.mp4", "caption": "A"}\n{"path": "b.mp4", "caption": "B"}\n'
    assert captions_of(fill(tmp_path, {"a.mp4": "", "b.mp4": "", "captions.json": lines})) == (
        {"a.mp4": "A", "b.mp4": "B"}, []
    )  # fmt: skip


def test_one_file_of_a_folder_has_its_own_words(tmp_path):
    fill(tmp_path, {"clip.mp4": "", "sub/clip.mp4": "", "captions.json": {"sub/clip.mp4": "S"}})
    assert captions_of(tmp_path / "clip.mp4")[0] == {"clip.mp4": "no caption"}
    assert captions_of(tmp_path / "sub" / "clip.mp4", captions=str(tmp_path / "captions.json"))[0] == {"clip.mp4": "S"}


def test_given_captions_may_lie_elsewhere(tmp_path):
    fill(tmp_path, {"v/a.mp4": "", "m/c.csv": "path,caption\n../v/a.mp4,A\n"})
    assert given_captions(tmp_path / "m" / "c.csv", tmp_path / "v")[0].raw.keys() == {"a.mp4"}
    fill(tmp_path, {"m/c.json": {"v/a.mp4": "A"}})
    assert captions_of(tmp_path / "v", captions=str(tmp_path / "m" / "c.json"))[0] == {"v/a.mp4"[2:]: "A"}


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
        captions, _ = given_captions(tmp_path / name, tmp_path)
        assert captions.of("001") == ("a, b", "2020-01-01")
        assert refused(captions.of, "x/2.mp4") == NO_CAPTION


def test_a_missing_column_is_named_with_a_guess(tmp_path):
    (tmp_path / "t.csv").write_text("path,Captoin,score\na.mp4,words,1\n")
    with pytest.raises(InputError) as error:
        given_captions(tmp_path / "t.csv", tmp_path)
    assert "'caption' or 'text'" in error.value.rule
    assert "'path', 'Captoin', 'score'" in error.value.value
    assert error.value.remedy == "rename 'Captoin' to 'caption'"
    (tmp_path / "u.jsonl").write_text('{"score": 1, "caption": "words"}\n')
    with pytest.raises(InputError, match="add a column 'path'"):
        given_captions(tmp_path / "u.jsonl", tmp_path)


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
        ("c.csv", "path,caption\r\na.mp4,\xff\n".encode("latin-1")),
        ("c.xlsx", "words"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        given_captions(tmp_path / name, tmp_path)


def test_a_file_that_is_absent_is_refused(tmp_path):
    for name in ("c.json", "c.csv", "c.parquet", "c.jsonl"):
        with pytest.raises(InputError, match="c\\."):
            given_captions(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", "File_Name, Prompt \na.mp4,A\n"),
        ("t.csv", "VIDEO PATH,TEXT\na.mp4,A\n"),
        ("t.csv", "media-path;caption\na.mp4;A\n"),
        ("t.csv", "\ufeffpath;caption\r\na.mp4;A\r\n"),
        ("t.csv", "path\tcaption\na.mp4\tA\n".encode("utf-16")),
        ("t.tsv", "video\tcap\na.mp4\tA\n"),
        ("t.jsonl", '{"Video_Path": "a.mp4", "Cap": "A"}\n'),
        ("t.json", '[{"path": "a.mp4", "cap": ["A", "B"]}]'),
        ("t.json", '{"a.mp4": "A"}'),
        ("t.json", '{"a.mp4": {"prompt": "A"}}'),
        ("t.csv", "path,caption\na,A\n"),
        ("t.csv", "path,caption\na.mp4,['A']\n"),
        ("t.csv", """path,caption\na.mp4,"['A', 'it\\'s B']"\n"""),
        ("t.csv", 'path,caption\na.mp4,"[""A"", ""B""]"\n'),
        ("t.csv", "path,caption\nA.MP4,A\n"),
        ("t.csv", "path,caption\na.mp4,A\na.mp4,B\n"),
        ("t.csv", "path,caption,text\na.mp4,A,T\n"),
        ("t.csv", "sep=;\npath;caption\na.mp4;A\n"),
        ("t.csv", '"path", "caption"\n"a.mp4", "A"\n'),
        ("t.csv", "path,caption\na.mp4,A\n".encode("utf-32")),
        ("t.csv", "path,caption\na.mp4 ,A\n"),
        ("t.ndjson", '{"path": "a.mp4", "caption": "A"}\n'),
        ("t.json", '{"path": "a.mp4", "caption": "A"}'),
        ("t.json", '{"path": ["a.mp4"], "caption": ["A"]}'),
        ("t.json", '{"path": {"0": "a.mp4"}, "caption": {"0": "A"}}'),
        ("t.json", "{\"a.mp4\": \"['A', 'B']\"}"),
        ("t.csv", "videoID,url,timestamp,caption\na,https://youtu.be/a,\"[['0:01']]\",\"['A']\"\n"),
        ("t.json", '{"videos": [{"video_id": "a", "id": 0}], "sentences": [{"video_id": "a", "caption": "A"}]}'),
        ("t.json", '[{"videoID": "a", "enCap": ["A", "B"]}]'),
        (
            "t.json",
            '[{"video_path": "a.mp4", "captions": [{"idx": "1", "content": "B"}, {"idx": -1, "content": "A"}]}]',
        ),
    ],
)
def test_tables_as_people_write_them(tmp_path, name, data):
    (tmp_path / "a.mp4").touch()
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    assert captions_of(tmp_path / name)[0] == {"a.mp4": "A"}


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("t.csv", "videoid,contentUrl,page_dir,name\n21,https://h/videos/21/preview/stock.mp4,1_50,A\n"),
        ("t.csv", "videoID,url,caption\n21,https://www.youtube.com/watch?v=21,['A']\n"),
        ("t.csv", "id,url,caption\n7,https://h/21.mp4,A\n"),
        ("captions.json", [{"videoID": "21", "url": "https://youtu.be/21", "caption": ["A"]}]),
        ("captions.json", [{"videoID": "21", "url": "https://h/x/0.mp4", "caption": ["A"]}]),
    ],
)
def test_rows_of_urls_speak_of_the_files_of_their_ids(tmp_path, name, table):
    fill(tmp_path, {"v/1_50/21.mp4": "", f"v/{name}": table})
    given = None if name == "captions.json" else str(tmp_path / "v" / name)
    said, notes = captions_of(tmp_path / "v", captions=given)
    assert said == {"1_50/21.mp4": "A"}
    assert not [note for note in notes if "match" in note]


@pytest.mark.parametrize(
    ("files", "words", "passed"),
    [
        ({"captions.json": {"x.mp4": "1"}, "x.txt": "2"}, "1", "words beside it"),
        ({"captions.json": {"x": "2"}, "x.txt": "1"}, "1", "captions.json"),
        ({"captions.json": {"x.mp4": {"caption": "1", "text": "2", "prompt": "1"}}}, "1", "key text"),
        (
            {"x.mp4.txt": "1", "x.txt": "2", "x.caption.txt": "3", "labels/x.txt": "4", "x.asr.txt": "5"},
            "1",
            "labels/x.txt, x.caption.txt, x.txt",
        ),
        ({"x.txt": "1", "x.json": {"caption": "2"}}, "1", "key caption"),
        ({"x.txt": "1", "x.en.txt": "2"}, "1", "x.en.txt"),
        ({"x.txt": "1", "x.caption.txt": "1", "captions.json": {"x.mp4": "1"}}, "1", ""),
        ({"x.txt": "1", "x.caption.txt": b"\xe9"}, "1", "x.caption.txt"),
    ],
)
def test_words_that_others_go_before_are_told(tmp_path, files, words, passed):
    for name, data in files.items():
        fill(tmp_path, {name: "" if isinstance(data, bytes) else data})
        if isinstance(data, bytes):
            (tmp_path / name).write_bytes(data)
    said, notes = captions_of(fill(tmp_path, {"x.mp4": ""}))
    assert said == {"x.mp4": words}
    assert notes == ([f"1 file has other words, which are not used: x.mp4 ({passed})"] if passed else [])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"x.txt": "\u200f \u200b\n"}, "no caption"),  # nothing that is seen
        ({"x.json": '{"caption": NaN}'}, "no caption"),
        ({"x.json": {"data": {"caption": "A"}}}, "no caption; its json has no caption of it, but data"),
        (
            {"captions.json": {"x": {"timestamps": [[0, 1]], "sentences": ["A"]}}},
            "no caption; captions.json has no caption of it, but timestamps, sentences; "
            "moments with words: longreel data chat",
        ),
    ],
)
def test_what_is_there_and_says_nothing_is_named(tmp_path, files, reason):
    source = fill(tmp_path, {"x.mp4": "", **files})
    assert captions_of(source)[0] == {"x.mp4": reason}
    assert captions_of(source, need_captions=False)[0] == {"x.mp4": ""}


def test_spaces_around_names_are_part_of_them_where_both_are_there(tmp_path):
    fill(tmp_path, {" a.mp4": "", "a.mp4": "", "captions.csv": 'path,caption\n" a.mp4",S\na.mp4,N\n'})
    assert captions_of(tmp_path)[0] == {" a.mp4": "S", "a.mp4": "N"}


def test_an_empty_last_line_is_that_of_the_last_video(tmp_path):
    fill(tmp_path, {"a.mp4": "", "b.mp4": "", "videos.txt": "a.mp4\nb.mp4\n", "prompt.txt": "A\n\n"})
    assert captions_of(tmp_path)[0] == {"a.mp4": "A", "b.mp4": "no caption"}


@pytest.mark.parametrize(
    ("header", "remedy"),
    [
        ("path^caption", "separate columns by a comma, a tab, ; or |"),
        ("# of today\npath,caption", "take out the lines above the names of the columns"),
    ],
)
def test_tables_that_begin_otherwise(tmp_path, header, remedy):
    fill(tmp_path, {"a.mp4": "", "t.csv": f"{header}\na.mp4,A\n"})
    with pytest.raises(InputError) as error:
        find(str(tmp_path / "t.csv"))
    assert remedy in error.value.remedy


def test_columns_of_different_lengths_are_told(tmp_path):
    fill(tmp_path, {"a.mp4": "", "captions.json": {"path": ["a.mp4", "b.mp4"], "caption": ["A"]}})
    assert "found: path 2, caption 1" in captions_of(tmp_path)[0]["a.mp4"]
    with pytest.raises(InputError, match="found: path 2, caption 1"):
        captions_of(tmp_path / "captions.json")


def test_a_page_of_videos_is_no_file(tmp_path):
    fill(tmp_path, {"t.csv": "url,caption\nhttps://www.youtube.com/watch?v=a,A\n"})
    reason = captions_of(tmp_path / "t.csv")[0]["https://www.youtube.com/watch?v=a"]
    assert reason.startswith("a page of a site, not a file: download its video")


def test_a_file_of_captions_in_a_tar_is_told(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("captions.json", "x.mp4"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    said, _ = captions_of(tmp_path / "s.tar")
    assert said["s.tar/captions.json"].endswith("tar -xf TAR captions.json, then --captions captions.json")


@pytest.mark.parametrize("words", ["[music] a dog", "['a' and b]", "['a'] or ['b']", "[1]"])
def test_brackets_in_words_stay(tmp_path, words):
    fill(tmp_path, {"a.mp4": "", "t.tsv": f"path\tcaption\na.mp4\t{words}\n"})
    assert captions_of(tmp_path / "t.tsv")[0] == {"a.mp4": words}


def test_what_a_table_has_and_is_not_used_is_told(tmp_path):
    fill(tmp_path, {"a.mp4": "", "t.csv": "path,text,caption\na.mp4,T,A\nb.mp4,,B\na.mp4,,C\n"})
    said, notes = captions_of(tmp_path / "t.csv")
    assert said == {"a.mp4": "A", "b.mp4": "No such file or directory (t.csv, line 3)"}
    assert notes == [
        "t.csv: column 'caption' has the captions; not used: 'text'",
        "t.csv: 1 videos stand in several rows, of which the first is used: a.mp4 (line 2, line 4)",
    ]


@pytest.mark.parametrize(
    ("header", "remedy"),
    [
        ("PATH,Path,caption", "rename one of them to 'path'"),
        ("a.mp4,words of it", "put a line with the names of the columns above"),
    ],
)
def test_headers_that_mean_nothing_or_too_much(tmp_path, header, remedy):
    fill(tmp_path, {"t.csv": f"{header}\n{header}\n"})
    with pytest.raises(InputError) as error:
        find(str(tmp_path / "t.csv"))
    assert remedy in error.value.remedy


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"v.0.mp4": "", "v.1.mp4": "", "v.0.caption.txt": "A"}, {"v.0.mp4": "A", "v.1.mp4": "no caption"}),
        ({"v.0.mp4": "", "v.0.asr.txt": "heard", "v.0.caption.txt": "A"}, {"v.0.mp4": "A"}),
        (
            {"m.part1.mp4": "", "m.part2.mp4": "", "m.part2.en.txt": "B"},
            {"m.part1.mp4": "no caption", "m.part2.mp4": "B"},
        ),
        ({"v.1.mp4": "", "v.10.mp4": "", "v.10.txt": "B", "v.1.txt": "A"}, {"v.1.mp4": "A", "v.10.mp4": "B"}),
        ({"v.1.mp4": "", "v.2.txt": "B"}, {"v.1.mp4": "no caption"}),
        (
            {"0.left.mp4": "", "0.right.mp4": "", "0.txt": "A", "0.left.txt": "L"},
            {"0.left.mp4": "L", "0.right.mp4": "A"},
        ),
        ({"0.mp4": "", "0.1.txt": "A", "0.2.txt": "B"}, {"0.mp4": "its caption may be 1.txt or 2.txt"}),
        ({"0.mp4": "", "0.mp4.txt": "A", "0.asr.txt": "heard", "0.en.txt": "B"}, {"0.mp4": "A"}),
        ({"0.mp4": "", "0.json": '{"captions": ["A", "B"]}'}, {"0.mp4": "A"}),
    ],
)
def test_parts_of_a_sample_speak_of_their_own_media(tmp_path, members, expected):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    said, notes = captions_of(tmp_path / "s.tar")
    assert {name.removeprefix("s.tar/"): text[: len(expected[name[6:]])] for name, text in said.items()} == expected
    told = {
        "0.json": ["1 file has several captions, of which the first is used: s.tar/0.mp4"],
        "0.en.txt": ["1 file has other words, which are not used: s.tar/0.mp4 (en.txt)"],
    }
    assert notes == next((note for name, note in told.items() if name in members), [])


def test_a_list_of_videos_is_a_source(tmp_path):
    fill(tmp_path, {"v/a.mp4": "", "v/b.mp4": "", "videos.txt": "v/a.mp4\nv/b.mp4\n", "prompts.txt": "A\nB\n"})
    assert captions_of(tmp_path / "videos.txt")[0] == {"v/a.mp4": "A", "v/b.mp4": "B"}
    assert captions_of(tmp_path, captions=str(tmp_path / "prompts.txt"))[0] == {"v/a.mp4": "A", "v/b.mp4": "B"}
    fill(tmp_path, {"prompts.txt": "A\n"})
    with pytest.raises(InputError, match="as many lines"):
        find(str(tmp_path / "videos.txt"))
    with pytest.raises(InputError, match="a video a line"):
        find(str(fill(tmp_path, {"x.txt": "words\n"}) / "x.txt"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("s.tar.gz", "gunzip -k {0}/s.tar.gz, and give {0}/s.tar"),
        ("s.tgz", "gunzip -k {0}/s.tgz, and give {0}/s.tar"),
        ("s.zip", "unzip {0}/s.zip -d {0}/s, and give {0}/s"),
    ],
)
def test_what_is_compressed_is_to_be_unpacked(tmp_path, name, remedy):
    fill(tmp_path, {name: ""})
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError) as error:
            find(str(source))
        assert error.value.remedy.startswith(remedy.format(tmp_path))


def test_a_row_may_leave_the_suffix_out(tmp_path):
    fill(tmp_path, {"a.mp4": "", "b.mp4": "", "b.mov": "", "clip.mp4": "", "t.csv": "path,text\na,A\nb,B\nclp.mp4,C\n"})
    assert captions_of(tmp_path / "t.csv")[0] == {
        "a.mp4": "A",
        "b": "No such file or directory (meant may be b.mov or b.mp4) (t.csv, line 3)",
        "clp.mp4": "No such file or directory (meant may be clip.mp4) (t.csv, line 4)",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"videos/1.mp4": "", "labels/1.txt": "A"}, {"videos/1.mp4": "A"}),
        ({"1.mp4": "", "captions/1.txt": "A"}, {"1.mp4": "A"}),
        (
            {"a/videos/1.mp4": "", "b/videos/1.mp4": "", "a/text/1.txt": "A"},
            {"a/videos/1.mp4": "A", "b/videos/1.mp4": ""},
        ),
        ({"v/1.mp4": "", "v/1.txt": "A", "labels/1.txt": "B"}, {"v/1.mp4": "A"}),
        (
            {"v/1.mp4": "", "labels/1.txt": "B", "captions/1.txt": "C"},
            {"v/1.mp4": "../captions/1.txt and ../labels/1.txt say"},
        ),
        ({"v/1.mp4": "", "other/1.txt": "A"}, {"v/1.mp4": ""}),
        ({"a/1.mp4": "", "b/1.mp4": "", "labels/1.txt": "A"}, {"a/1.mp4": "", "b/1.mp4": ""}),  # whose?
        ({"1.mp4": "", "a/1.mp4": "", "labels/1.txt": "A"}, {"1.mp4": "", "a/1.mp4": ""}),
        ({"1.mp4": "", "a/2.mp4": "", "labels/1.txt": "A", "labels/2.txt": "B"}, {"1.mp4": "A", "a/2.mp4": "B"}),
    ],
)
def test_words_in_folders_of_their_own(tmp_path, files, expected):
    said, notes = captions_of(fill(tmp_path, files))
    assert said.keys() == expected.keys()
    assert all((text or "no caption") in said[name] for name, text in expected.items())
    if "other/1.txt" in files:
        assert notes == ["text files that belong to no video, while 1 have none: other/1.txt (nearest: v/1.mp4)"]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ({"labels/1.txt": "A"}, "A"),
        ({"c.json": {"videos": [{"path": "1.mp4", "cap": "A"}], "info": {}}}, "A"),
        ({"c.json": [{"file_name": "1.mp4", "prompt": "A"}]}, "A"),
        ({"c.xlsx": ""}, "save it from the spreadsheet as c.csv"),
        ({"c.json": [{"video": "1.mp4", "conversations": []}]}, "longreel data chat"),
    ],
)
def test_files_of_captions_as_people_have_them(tmp_path, captions, expected):
    fill(tmp_path, {"v/1.mp4": "", **captions})
    given = tmp_path / next(iter(captions)).partition("/")[0]
    if expected == "A":
        assert captions_of(tmp_path / "v", captions=str(given))[0] == {"1.mp4": expected}
    else:
        with pytest.raises(InputError, match=expected):
            find(str(tmp_path / "v"), captions=str(given))


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ({"1.mp4": "", "train.csv": "path,caption\n1.mp4,A\n"}, "train.csv; if it has captions: --captions "),
        (
            {"1.mp4": "", "2.mp4": "", "prompt.txt": "A\nB\n"},
            "prompt.txt is not read: captions a line need a videos.txt",
        ),
        ({"1.mp4": "", "x.tar.gz": ""}, "x.tar.gz not read: gunzip -k "),
    ],
)
def test_what_lies_there_and_is_not_read_is_told(tmp_path, files, note):
    _, notes = captions_of(fill(tmp_path, files))
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    ("name", "data", "remedy"),
    [
        ("t.csv", "path,caption\n1.mp4,A\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 "),
        ("t.json", '{"1.mp4": "\u00e9"}'.encode("latin-1"), "iconv -f LATIN1 -t UTF-8 "),
        ("t.csv", "path,caption\n1.mp4,\u00e9\n".encode("latin-1"), "iconv -f LATIN1 -t UTF-8 "),
    ],
)
def test_other_encodings_are_told_with_what_converts_them(tmp_path, name, data, remedy):
    fill(tmp_path, {"v/1.mp4": ""})
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        find(str(tmp_path / "v"), captions=str(tmp_path / name))
    assert remedy in error.value.remedy


def test_ids_are_names_where_a_table_has_nothing_better(tmp_path):
    fill(tmp_path, {"v/c7.mp4": "", "t.csv": "id,caption\nc7,A\n", "u.csv": "id,path,caption\n1,c7.mp4,A\n"})
    for table in ("t.csv", "u.csv"):
        assert captions_of(tmp_path / "v", captions=str(tmp_path / table)) == ({"c7.mp4": "A"}, [])


def test_a_remote_folder_has_its_captions_in_the_same_places(tmp_path):
    fill(
        tmp_path,
        {
            "a.mp4": "",
            "captions.csv": "path,caption\na.mp4,A\n",
            "t/b.mp4": "",
            "t/metadata.jsonl": '{"file_name": "b.mp4", "text": "B"}\n',
            "v/c.mp4": "",
            "v/labels/c.txt": "C",
            "x/d.mp4": "",
            "x/videos.txt": "d.mp4\n",
            "x/prompt.txt": "D\n",
            "y/e.mp4": "",
            "y/e.mp4.txt": "E",
        },
    )
    with served(tmp_path) as server:
        said, notes = captions_of(server.url)
    assert said == {"a.mp4": "A", "t/b.mp4": "B", "v/c.mp4": "C", "x/d.mp4": "D", "y/e.mp4": "E"}
    assert notes == []


def test_a_table_whose_paths_begin_elsewhere_is_told(tmp_path):
    fill(tmp_path, {"v/1.mp4": "", "meta/t.csv": "path,caption\nv/1.mp4,A\n"})
    said, _ = captions_of(tmp_path / "meta" / "t.csv")
    told = f"in {tmp_path}/meta, but in {tmp_path}: paths are relative to the folder of their table"
    assert told in said["v/1.mp4"]


def test_a_list_that_names_a_video_again_is_told(tmp_path):
    fill(tmp_path, {"1.mp4": "", "videos.txt": "1.mp4\n1.mp4\n", "prompt.txt": "A\nB\n"})
    said, notes = captions_of(tmp_path / "videos.txt")
    assert said == {"1.mp4": "A"}
    assert notes == ["videos.txt: 1 lines name a video again, with other words; the first are used"]


def test_a_list_with_words_is_a_table(tmp_path):
    fill(tmp_path, {"1.mp4": "", "videos.txt": "1.mp4\tA red square\n"})
    with pytest.raises(InputError, match=r"put a line path\tcaption above it, and name it videos\.tsv"):
        find(str(tmp_path / "videos.txt"))
