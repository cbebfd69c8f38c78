"""Files are found where people keep them, here and behind URLs; what cannot be used is told."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pytest

from data.captions.captions import Caption
from data.containers.byte_ranges import digest_bytes
from data.sources.files import ChangedError, SourceFile, Unusable, brought, digest, local_place
from data.sources.find_files import find
from parallel.errors import InputError
from tests.support.stores import served


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return folder


def names(found):
    return [one.name for one in found if isinstance(one, SourceFile)]


def problems(found):
    return {one.name: one.reason for one in found if isinstance(one, Unusable)}


def content(file: SourceFile) -> bytes:
    with brought(file.place) as path:
        assert path.suffix == file.place.suffix
        return path.read_bytes()


def tar_of(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_files_are_found_at_any_depth_and_sorted(tmp_path):
    fill(tmp_path, "b.MP4", "a/z.webm", "a/.hidden.mp4", ".git/c.mp4", "notes.txt", "out/shards/d.mp4", "e.png")
    found = find(str(tmp_path), leave_out=tmp_path / "out", need_captions=False)
    assert found.total == 3
    assert names(found) == ["a/z.webm", "b.MP4", "e.png"]
    assert names(find(str(tmp_path / "b.MP4"), need_captions=False)) == ["b.MP4"]


def test_an_image_beside_a_video_of_its_name_is_its_picture(tmp_path):
    fill(tmp_path, "a.mp4", "a.jpg", "b.jpg", "deep/a.jpg", "raw.yuv", "deep/many.tiff", "README", "a.txt")
    found = find(str(tmp_path), need_captions=False)
    assert names(found) == ["a.mp4", "b.jpg", "deep/a.jpg"]
    assert found.ignored == {"jpg": 1, "yuv": 1, "tiff": 1, "(no suffix)": 1}


def test_strange_names_links_pipes_and_loops(tmp_path):
    odd = ["with space.mp4", "new\nline.mp4", "grün 日本.mp4", os.fsdecode(b"\xff\xfe.mp4"), "quote'\".mp4", "-x.mp4"]
    fill(tmp_path / "in", *odd, "real/a.mp4")
    (tmp_path / "in" / "real" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "real")
    (tmp_path / "in" / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "in" / "self.mp4").symlink_to("self.mp4")
    fill(tmp_path / "outside", "b.mp4")
    (tmp_path / "in" / "far").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    found = list(find(str(tmp_path / "in"), need_captions=False))
    expected = [*odd[:3], r"\xff\xfe.mp4", *odd[4:], "real/a.mp4", "far/b.mp4"]
    assert set(names(found)) == set(expected)
    assert len(names(found)) == len(expected)
    assert set(problems(found)) == {"gone.mp4", "self.mp4", "pipe.mp4"}
    assert "pipe" in problems(found)["pipe.mp4"]
    for one in found:
        if isinstance(one, SourceFile):
            assert Path(os.fsdecode(content(one))).name == Path(one.place.where).name


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    fill(tmp_path, "a.mp4", "closed/b.mp4")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(find(str(tmp_path), need_captions=False))
    assert names(found) == ["a.mp4"]
    assert problems(found) == {"closed": "Permission denied"}


def test_captions_of_a_folder(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "b.txt").write_text("beside")
    (tmp_path / "captions.json").write_text(json.dumps({"a.mp4": {"short": "s", "long": "l"}}))
    found = list(find(str(tmp_path)))
    assert [one.caption for one in found if isinstance(one, SourceFile)] == [("s", "l"), ("beside", "")]
    assert problems(found) == {"c.mp4": "no caption"}
    (tmp_path / "captions.json").unlink()
    found = list(find(str(tmp_path), need_captions=False))
    assert [one.caption for one in found] == [Caption(""), Caption("beside"), Caption("")]


def test_a_table_is_a_source(tmp_path):
    fill(tmp_path, "a.mp4", "z.mp4")
    table = tmp_path / "list.csv"
    table.write_text(f"video,text,long\nz.mp4,last,\n{tmp_path}/a.mp4,,only long\nnone.mp4,x,\nhttp://h/u.mp4?x=1,u,\n")
    found = list(find(str(table)))
    assert {one.name: one.caption for one in found if isinstance(one, SourceFile)} == {
        f"{tmp_path}/a.mp4": ("only long", ""),
        "z.mp4": ("last", ""),
        "http://h/u.mp4?x=1": ("u", ""),
    }
    assert found[1].place.suffix == ".mp4"
    assert problems(found) == {"none.mp4": "No such file or directory (list.csv, line 4)"}
    (tmp_path / "s3.csv").write_text("path,text\ns3://bucket/a.mp4,x\n")
    said = "s3:// needs its driver: pip install s3fs (s3.csv, line 2)"
    assert problems(find(str(tmp_path / "s3.csv"))) == {"s3://bucket/a.mp4": said}


def test_a_long_table_is_listed_without_asking_for_its_files(tmp_path):
    rows = "".join(f"http://127.0.0.1:9/{n}.mp4,a caption of some length {n}\n" for n in range(10_000))
    (tmp_path / "list.csv").write_text("path,caption\n" + rows)
    found = find(str(tmp_path / "list.csv"))
    assert found.total == 10_000
    found = list(found)
    assert (len(names(found)), problems(found)) == (10_000, {}), "nobody answers there"


def test_a_source_without_videos_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find(str(tmp_path / "absent"))
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(InputError, match=r"readme\.md"):
        find(str(tmp_path))
    (tmp_path / "empty.csv").write_text("path,caption\n")
    with pytest.raises(InputError, match="no rows"):
        find(str(tmp_path / "empty.csv"))
    for url, remedy in (
        ("s3://bucket/x", "pip install s3fs"),
        ("gs://b/x", "pip install gcsfs"),
        ("foo://b", "give a"),
    ):
        with pytest.raises(InputError) as error:
            find(url)
        assert error.value.remedy.startswith(remedy)


MEMBERS = {
    "000__mp4": b"zero",
    "000__txt": b"words",
    "001__json": b'{"caption": "one", "long": "one and more"}',
    "001__png": b"one",
    "002__mp4": b"two",
    "003__txt": b"text alone",
    "notes": b"no key",
}


def test_a_tar_is_a_source(tmp_path):
    (tmp_path / "in").mkdir()
    tar_of(tmp_path / "in" / "a.tar", **MEMBERS)
    (tmp_path / "in" / "b.tar").write_bytes(b"\x1f\x8b no plain tar")
    whole = (tmp_path / "in" / "a.tar").read_bytes()
    (tmp_path / "in" / "c.tar").write_bytes(whole[:2000])
    fill(tmp_path / "in", "d.mp4")
    (tmp_path / "in" / "d.txt").write_text("dee")
    listing = find(str(tmp_path / "in"))
    assert listing.total is None
    found = list(listing)
    assert listing.total == len(found)
    good = {one.name: (one.caption, content(one)) for one in found if isinstance(one, SourceFile)}
    assert good == {
        "a.tar/000.mp4": (("words", ""), b"zero"),
        "a.tar/001.png": (("one", "one and more"), b"one"),
        "d.mp4": (("dee", ""), b"d.mp4"),
    }
    assert problems(found)["a.tar/002.mp4"] == "no caption"
    assert "text alone" in problems(found)["a.tar/003"]
    assert "gzip" in problems(found)["b.tar"]
    assert "lost a part" in problems(found)["c.tar/000"]
    assert "the file ends" in problems(found)["c.tar"]
    assert listing.ignored["(no key)"] == 1
    for one in found:
        if isinstance(one, SourceFile):
            assert digest(one.place) == digest_bytes(content(one))


def test_a_file_that_changes_is_noticed(tmp_path):
    fill(tmp_path, "a.mp4")
    place = local_place(tmp_path / "a.mp4")
    assert place == local_place(tmp_path / "a.mp4")
    with pytest.raises(ChangedError, match="was changed"), brought(place):
        (tmp_path / "a.mp4").write_bytes(b"other")
    with pytest.raises(ChangedError, match="was changed"), brought(place):
        raise AssertionError("not reached")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(ChangedError, match="No such file"), brought(place):
        raise AssertionError("not reached")


def test_a_page_of_files_behind_http(tmp_path):
    fill(tmp_path, "b c.mp4", "deep/ü.png", "deep/notes.md", "deep/ü.txt", ".hidden.mp4")
    (tmp_path / "captions.json").write_text(json.dumps({"b c.mp4": "bee"}))
    with served(tmp_path) as server:
        found = list(find(server.url))
        assert {one.name: one.caption for one in found} == {
            "b c.mp4": ("bee", ""),
            "deep/ü.png": ("deep/ü.txt", ""),
        }
        assert [content(one) for one in found] == [b"b c.mp4", "deep/ü.png".encode()]
        assert find(server.url + "/deep/", need_captions=False).total == 1
        with pytest.raises(InputError, match="no such file"):
            find(server.url + "/absent/")


def test_tables_captions_and_single_files_behind_http(tmp_path):
    fill(tmp_path, "in/a ü.mp4", "in/b.mp4")
    (tmp_path / "in" / "list.jsonl").write_text('{"path": "a ü.mp4", "caption": "ay"}\n')
    (tmp_path / "words.json").write_text('{"b.mp4": "bee"}')
    with served(tmp_path) as server:
        (one,) = find(server.url + "/in/list.jsonl")
        assert (one.name, one.caption, content(one)) == ("a ü.mp4", ("ay", ""), "in/a ü.mp4".encode())
        (one,) = find(server.url + "/in/b.mp4", captions=server.url + "/words.json")
        assert (one.name, one.caption, content(one)) == ("b.mp4", ("bee", ""), b"in/b.mp4")
        with pytest.raises(InputError, match="can be fetched"):
            find(server.url + "/in/absent.csv")


@pytest.mark.parametrize("parts", [True, False])
def test_a_tar_behind_http(tmp_path, parts):
    """Headers, words and the media themselves are fetched by their byte ranges."""
    tar_of(tmp_path / "a.tar", **{**MEMBERS, "004__mp4": os.urandom(200_000), "004__txt": b"four"})
    tar_of(tmp_path / "b.tar", **MEMBERS)
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:1536])
    with served(tmp_path, parts) as server:
        found = list(find(server.url + "/a.tar"))
        if not parts:
            assert "range requests" in problems(found)["a.tar"]
            return
        assert names(found) == ["a.tar/000.mp4", "a.tar/001.png", "a.tar/004.mp4"]
        assert [content(one)[:4] for one in found if isinstance(one, SourceFile)][:2] == [b"zero", b"one"]
        assert len(content(found[-1])) == 200_000
        assert list(problems(find(server.url + "/b.tar"))) == ["b.tar/000", "b.tar"], "as of a local one"


def test_any_store_of_fsspec(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe({"/videos/a.mp4": b"ay", "/videos/deep/b.mp4": b"bee", "/videos/deep/b.json": b'{"long": "words"}'})
    try:
        found = list(find("memory://videos"))
        assert problems(found) == {"a.mp4": "no caption"}
        (one,) = (f for f in found if isinstance(f, SourceFile))
        assert (one.name, one.caption, one.place.size, content(one)) == ("deep/b.mp4", ("words", ""), 3, b"bee")
        store.pipe("/videos/deep/b.mp4", b"b 2")
        later = next(f for f in find("memory://videos") if isinstance(f, SourceFile))
        assert later.place.version != one.place.version
    finally:
        store.rm("/videos", recursive=True)
    fill(tmp_path, "a.mp4")
    (one,) = find(f"file://{tmp_path}", need_captions=False)
    assert one.place.where == str(tmp_path / "a.mp4")
