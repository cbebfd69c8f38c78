"""Tars of others become shards as they are: what is whole is indexed, what is not is told, and no byte is changed."""

import gzip
import io
import json
import os
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.containers.byte_ranges import digest_bytes
from data.dataset import shards, tar_format
from data.dataset.index import Index
from data.dataset.publish import publish
from data.dataset.shards import digest_of
from data.integrity.check import check
from data.integrity.repair import repair
from data.media import video
from data.prepare import import_webdataset
from data.prepare.import_webdataset import ImportOptions, import_tars
from data.sources.tar_paths import find_tars
from parallel.errors import InputError
from tests.support.datasets import CONFIG, add, clip, make, read_all, tar_of, tree, webdataset_keys

WEBDATASET = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def picture(colour: str, kind: str = "JPEG", size: tuple[int, int] = (20, 10)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def movie(container: str, codec: str = "mpeg4") -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(10))
        stream.height = stream.width = 32
        for number in range(5):
            frame = np.full((32, 32, 3), 40 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def fill(folder: Path, **tars: list[tuple[str, bytes]] | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tars.items():
        (folder / f"{name}.tar").write_bytes(content if isinstance(content, bytes) else tar_of(content))
    return folder


def table(dataset: Path, *columns: str) -> list[tuple]:
    found = Index.open(dataset).table
    return list(zip(*(found[name].to_pylist() for name in columns), strict=True))


MIXED = [
    ("videos/0001.mp4", clip(0)),
    ("videos/0001.json", b'{"caption": "a clip", "long": "a clip, told at length", "width": 16}'),
    ("videos/0001.txt", b" from a txt \n"),
    ("0002.JPEG", picture("red")),
    ("0002.txt", "é 日本".encode()),
    ("0002.npy", b"latents"),
    ("0003.v1.webp", picture("blue", "WEBP")),
    ("0003.v1.cls", b"7"),
    ("0004.txt", b"words alone"),
    ("0005.avi", movie("avi")),
    ("0005.png", picture("white", "PNG")),
    ("0005.json", b'"a text as JSON"'),
    ("0006.left.png", picture("green", "PNG")),
    ("0006.right.png", picture("pink", "PNG")),
    ("0006.txt", b"two views"),
    ("0007.webm", movie("webm", "libvpx")),
    ("0007.txt", b"webm"),
]


def test_words_that_others_go_before_are_told(tmp_path):
    words = [("1.txt", b"A"), ("1.caption.txt", b"B"), ("2.txt", b"A"), ("2.caption.txt", b"A")]
    source = fill(tmp_path / "in", one=[("1.png", picture("red")), *words[:2], ("2.png", picture("blue")), *words[2:]])
    summary = import_tars([str(source)], tmp_path / "out")
    assert table(tmp_path / "out", "file", "caption") == [("one.tar/1", "A"), ("one.tar/2", "A")]
    assert summary.notes == [("one.tar", "1 samples have several captions, of which the first is used: 1")]


@WEBDATASET
def test_samples_of_every_kind(tmp_path):
    source = fill(tmp_path / "in", one=MIXED)
    before = tree(source)
    seen = []
    summary = import_tars([str(source)], tmp_path / "out", on_progress=seen.append)
    assert table(tmp_path / "out", "file", "media", "frames", "height", "width", "caption", "caption_long") == [
        ("one.tar/videos/0001", "mp4", 30, 16, 16, "from a txt", "a clip, told at length"),
        ("one.tar/0002", "jpg", 1, 10, 20, "é 日本", ""),
        ("one.tar/0003.v1", "webp", 1, 10, 20, "7", ""),
        ("one.tar/0004", "", 0, 0, 0, "words alone", ""),
        ("one.tar/0005", "avi", 5, 32, 32, "a text as JSON", ""),
        ("one.tar/0006.left", "png", 1, 10, 20, "two views", ""),
        ("one.tar/0006.right", "png", 1, 10, 20, "two views", ""),
        ("one.tar/0007", "webm", 5, 32, 32, "webm", ""),
    ]
    assert (summary.tars, summary.shards, summary.copied) == (1, 1, 0)
    assert (summary.videos, summary.images, summary.texts, summary.frames, summary.rejected) == (3, 4, 1, 44, [])
    assert summary.ignored == {"npy": 1, "png": 1}
    assert (seen[-1].done, seen[-1].total, seen[-1].kept) == (summary.bytes, summary.bytes, 8)
    (tar,) = (tmp_path / "out" / "shards").iterdir()
    assert tar.samefile(source / "one.tar")
    assert tree(source) == before
    assert webdataset_keys(tar) == ["videos/0001", "0002", "0003", "0004", "0005", "0006", "0007"]
    found = Index.open(tmp_path / "out")
    data = tar.read_bytes()
    for row, bytes_ in ((0, clip(0)), (4, movie("avi")), (6, picture("pink", "PNG"))):
        part = found.part(row)
        assert data[part.offset : part.offset + part.size] == bytes_
        assert part.hash == digest_bytes(bytes_)
    words = found.part(1, "json")
    assert data[words.offset : words.offset + words.size].decode() == "é 日本"
    slices = found.slices(0)
    assert slices is not None
    assert slices.rows == (0, 12, 24)
    assert [found.slices(row) for row in range(1, 8)] == [None] * 7
    header, second = clip(0)[: slices.offsets[0]], clip(0)[slices.offsets[1] : slices.offsets[2]]
    assert np.array_equal(video.decode_slices(header + second, 12, 12, 24), video.decode(clip(0))[12:24])
    assert check(tmp_path / "out", decode=True) == []


def test_again_and_more(tmp_path):
    source, out = fill(tmp_path / "in", a=MIXED[:3], b=MIXED[3:6]), tmp_path / "out"
    import_tars([str(source)], out)
    before = tree(out)
    again = import_tars([str(source)], out)
    assert (again.skipped, again.shards, again.kept) == (2, 0, 0)
    assert tree(out) == before
    fill(source, c=MIXED[8:9], copy=MIXED[:3], same=[*MIXED[:3], *MIXED[9:12]])
    more = import_tars([str(source)], out)
    assert (more.skipped, more.shards, more.kept) == (2, 2, 2)
    assert more.rejected == [
        ("copy.tar", "same bytes as a.tar"),
        ("same.tar/videos/0001", "the same as another sample, captions included"),
    ]
    assert [file for (file,) in table(out, "file")] == [
        "a.tar/videos/0001",
        "b.tar/0002",
        "c.tar/0004",
        "same.tar/0005",
    ]
    assert {name: data for name, data in tree(out).items() if name in before} == before
    assert check(out) == []


def test_into_a_dataset_of_ours_and_the_other_way(tmp_path):
    out = make(tmp_path / "out")
    uids = read_all(out)
    import_tars([str(fill(tmp_path / "in", a=MIXED))], out)
    assert read_all(out)[:4] == uids
    assert len(read_all(out)) == 12
    assert check(out) == []
    add(out, (4, 5))
    publish(out, digest_of(CONFIG))
    assert len(read_all(out)) == 14
    assert read_all(out)[:4] == uids
    assert check(out) == []


def test_workers_find_the_same(tmp_path):
    source = fill(tmp_path / "in", a=MIXED, b=[("x.mp4", b"no video"), ("x.txt", b"x"), *MIXED[3:5]])
    one = import_tars([str(source)], tmp_path / "one", ImportOptions(workers=0))
    two = import_tars([str(source)], tmp_path / "two", ImportOptions(workers=2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert one.rejected == two.rejected != []


BAD = {
    "video.mp4": (b"no video", "no video but text"),
    "short.mp4": (clip(1)[:-200], ""),
    "empty.mp4": (b"", "0 bytes"),
    "picture.jpg": (picture("red")[:300], ""),
    "animal.gif": (b"GIF89a", ""),
}


def test_bad_samples_are_told_and_stop_nothing(tmp_path):
    members = [("good.mp4", clip(0)), ("good.txt", b"good")]
    for name, (data, _) in BAD.items():
        members += [(name, data), (f"{name.partition('.')[0]}.txt", b"words")]
    members += [("silent.mp4", clip(2)), ("latin.mp4", clip(3)), ("latin.txt", "é".encode("latin-1"))]
    members += [("broken.mp4", clip(3)), ("broken.json", b"{"), ("sound.flac", b"x"), ("sound.txt", b"x")]
    members += [("list.mp4", clip(3)), ("list.json", b'{"caption": [1]}'), ("numbers.cls", b"7"), ("folder/", b"")]
    members += [
        ("no_suffix", b"?"),
        ("__meta__/x.txt", b"?"),
        (".hidden.mp4", b"?"),
        ("twin.txt", b"1"),
        ("twin.txt", b"2"),
    ]
    summary = import_tars([str(fill(tmp_path / "in", a=members))], tmp_path / "out")
    rejected = dict(summary.rejected)
    assert table(tmp_path / "out", "file") == [("a.tar/good",)]
    for name, (_, reason) in BAD.items():
        assert reason in rejected.pop(f"a.tar/{name.partition('.')[0]}")
    assert "is list, not text" in rejected.pop("a.tar/list")
    assert "its json cannot be read" in rejected.pop("a.tar/broken")
    assert rejected == {
        "a.tar/silent": "no caption",
        "a.tar/latin": "its txt is not UTF-8; if it is Latin-1: iconv -f LATIN1 -t UTF-8 FILE > NEW",
        "a.tar/sound": "no video and no image, only flac, txt",
        "a.tar/twin": "two parts are named txt",
        "a.tar/numbers": "no video and no image, only cls",
    }
    assert summary.ignored == {"(no key)": 4}
    (listed,) = (tmp_path / "out" / "quarantine").iterdir()
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [(line["file"], line["reason"]) for line in lines] == summary.rejected
    assert check(tmp_path / "out") == []
    more = import_tars([str(tmp_path / "in")], tmp_path / "more", ImportOptions(allow_missing_captions=True))
    assert more.videos == 2


def test_hostile_members_do_no_harm(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def put(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(data)
            tar.addfile(info, io.BytesIO(data))

        for name in ("/etc/passwd", "../../up", "x" * 300 + "/é日\udcff", "new\nline"):
            put(f"{name}.mp4", clip(len(name) % 4))
            put(f"{name}.txt", name.encode("utf-8", "replace"))
        put("linked.mp4", kind=tarfile.SYMTYPE, link="/etc/passwd")
        put("linked.txt", b"a link")
        put("hard.mp4", kind=tarfile.LNKTYPE, link="/etc/passwd.mp4")
        put("hard.txt", b"a link")
        put("device.mp4", kind=tarfile.CHRTYPE)
        put("device.txt", b"a device")
    summary = import_tars([str(fill(tmp_path / "in", a=out.getvalue()))], tmp_path / "out")
    assert dict(summary.rejected) == {
        "a.tar/linked": "linked.mp4 has no bytes of its own: link",
        "a.tar/hard": "hard.mp4 has no bytes of its own: link",
        "a.tar/device": "device.mp4 has no bytes of its own: other",
    }
    assert [name for (name,) in table(tmp_path / "out", "file")] == [
        "a.tar//etc/passwd",
        "a.tar/../../up",
        f"a.tar/{'x' * 300}/é日\\xff",
        "a.tar/new\nline",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    assert check(tmp_path / "out") == []


def test_keys_again_and_parts_apart(tmp_path):
    members = [
        ("a.mp4", clip(0)),
        ("b.mp4", clip(1)),
        ("a.txt", b"one"),
        ("b.txt", b"two"),
        ("a.mp4", clip(2)),
        ("a.txt", b"3"),
    ]
    summary = import_tars([str(fill(tmp_path / "in", a=members))], tmp_path / "out")
    assert table(tmp_path / "out", "file", "caption") == [("a.tar/a", "one"), ("a.tar/b", "two"), ("a.tar/a", "3")]
    assert [note for _, note in summary.notes] == [
        "2 samples have parts that lie apart: other readers see halves of them",
        "1 keys come again for other samples",
    ]
    assert check(tmp_path / "out") == []


def test_a_cut_tar_gives_what_is_whole(tmp_path):
    members = [(f"{n}.{suffix}", data) for n in range(4) for suffix, data in (("mp4", clip(n)), ("txt", b"%d" % n))]
    data = tar_of(members)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        ends = [m.offset_data + m.size for m in tar][1::2]
    for number, cut in enumerate([*range(512, len(data), 2560), *ends, *(end - 1 for end in ends)]):
        source, out = fill(tmp_path / f"in{number}", a=data[:cut]), tmp_path / f"out{number}"
        whole = sum(end <= cut for end in ends)
        if not whole or cut == ends[0]:  # of the first sample alone, nobody knows whether a part is missing
            with pytest.raises(InputError, match="can be used"):
                import_tars([str(source)], out)
            continue
        summary = import_tars([str(source)], out)
        assert summary.kept == whole, cut
        assert bool(summary.notes) == (cut < tar_format.padded(ends[-1]) + 1024)
        assert check(out) == []


def test_a_damaged_header_does_not_halve_samples(tmp_path):
    """What stands beside the damage is refused, unless it has all parts that the others have."""
    members = [(f"{n}.{suffix}", data) for n in range(4) for suffix, data in (("mp4", clip(n)), ("txt", b"%d" % n))]
    data = bytearray(tar_of(members))
    at = data.index(b"2.mp4")
    data[at + 148] ^= 1
    summary = import_tars([str(fill(tmp_path / "in", a=bytes(data)))], tmp_path / "out")
    assert [file for (file,) in table(tmp_path / "out", "file")] == ["a.tar/0", "a.tar/1", "a.tar/3"]
    assert summary.rejected == [("a.tar/2", f"it may have lost a part: damaged header: bad checksum at byte {at}")]
    assert "bad checksum" in summary.notes[0][1]


def test_sources(tmp_path):
    source = fill(tmp_path / "in", **{f"{n:03}": [(f"{n}.txt", b"%d" % n)] for n in range(4)})
    (source / "deep").mkdir()
    (source / "deep" / ".hidden.tar").write_bytes(b"")
    fill(source / "deep", x=[("x.txt", b"x")])
    out = tmp_path / "out"

    def names(*sources: str) -> list[str]:
        return [tar.name for tar in find_tars(sources, out)]

    assert names(str(source)) == ["000.tar", "001.tar", "002.tar", "003.tar", "deep/x.tar"]
    assert names(f"{source}/00[12].tar", f"{source}/000.tar") == ["001.tar", "002.tar", "000.tar"]
    assert names(f"{source}/{{000..002}}.tar", str(source / "deep")) == ["000.tar", "001.tar", "002.tar", "x.tar"]
    for wrong in (f"{source}/absent.tar", f"{source}/*.gz", str(tmp_path / "absent"), f"{source}/{{000..009}}.tar"):
        with pytest.raises(InputError, match="no such file"):
            names(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none ends in \.tar"):
        names(str(tmp_path / "empty"))
    import_tars([str(source)], source / "out")
    assert names(str(source / "out")) != []
    with pytest.raises(InputError, match="a source is not the dataset itself"):
        import_tars([str(source / "out")], source / "out")
    assert import_tars([str(source)], source / "out").skipped == 5


def test_tars_that_cannot_be_used(tmp_path):
    zipped = gzip.compress(tar_of(MIXED))
    with pytest.raises(InputError, match="compressed with gzip") as error:
        import_tars([str(fill(tmp_path / "zip", a=zipped))], tmp_path / "out")
    assert error.value.remedy == "unpack it first: gunzip a.tar"
    empty = fill(tmp_path / "empty", **{f"{n}": b"" for n in range(9)})
    with pytest.raises(InputError, match=r"9 tars, the first is 0\.tar: empty file"):
        import_tars([str(empty)], tmp_path / "out")
    with pytest.raises(InputError, match=r"the first is a\.tar: damaged header"):
        import_tars([str(fill(tmp_path / "words", a=b"words " * 999))], tmp_path / "out")
    with pytest.raises(InputError, match="no caption") as error:
        import_tars([str(fill(tmp_path / "silent", a=MIXED[:1]))], tmp_path / "out")
    assert error.value.remedy == "allow missing captions"
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="workers is at least 0"):
        import_tars([str(empty)], tmp_path / "out", ImportOptions(workers=-1))
    with pytest.raises(InputError, match="a dataset, or an empty or new folder"):
        import_tars([str(empty)], empty)
    both = fill(tmp_path / "both", a=MIXED, b=zipped, c=b"", d=bytes(10240))
    summary = import_tars([str(both)], tmp_path / "out")
    assert [file for file, _ in summary.rejected] == ["b.tar", "c.tar", "d.tar"]
    assert summary.rejected[2][1] == "no samples"


def test_where_links_cannot_be_tars_are_copied(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(import_webdataset.os, "link", fails)
    source = fill(tmp_path / "in", a=MIXED)
    assert import_tars([str(source)], tmp_path / "out").copied == 1
    (tar,) = (tmp_path / "out" / "shards").iterdir()
    assert not tar.samefile(source / "a.tar")
    assert tar.read_bytes() == (source / "a.tar").read_bytes()


def damage(dataset: Path, at: int | None = None, cut: int | None = None) -> Path:
    """Changes the tar of an imported dataset, and not the source that it is a link to."""
    (tar,) = (dataset / "shards").glob("*.tar")
    data = bytearray(tar.read_bytes())
    if at is not None:
        data[at] ^= 1
    tar.unlink()
    tar.write_bytes(data[:cut])
    return tar


def test_damage_to_imported_shards(tmp_path):
    source = fill(tmp_path / "in", a=MIXED)
    out = tmp_path / "out"
    import_tars([str(source)], out)
    rows, whole, uids = Index.open(out).table.to_pylist(), tree(out), read_all(out)

    def afresh() -> None:
        for name, data in whole.items():
            (out / name).unlink(missing_ok=True)
            shards.write_bytes(out / name, data)
        for name in tree(out).keys() - whole.keys():
            (out / name).unlink()

    for kind, at, cut, lost in (
        ("changed data", rows[0]["media_offset"] + 99, None, uids[:1]),
        ("changed data", rows[1]["json_offset"], None, uids[1:2]),
        ("changed header", rows[1]["media_offset"] - 400, None, []),
        ("changed shard", rows[0]["media_offset"] + rows[0]["media_size"], None, []),
        ("cut sample", None, rows[3]["json_offset"] + 5, uids[3:]),
        ("short shard", None, len(whole[rows[0]["shard"]]) - 512, []),
    ):
        damage(out, at, cut)
        found = check(out)
        assert {f.kind for f in found} <= {kind, "short shard"}, kind
        assert [f.sample for f in found if f.kind in ("changed data", "cut sample")] == lost
        assert [entry["sample"] for entry in repair(out).lost] == lost
        assert check(out) == []
        assert read_all(out) == [uid for uid in uids if uid not in lost]
        again = import_tars([str(source)], out)  # the source still has what was lost
        assert again.kept == len(lost)
        assert sorted(read_all(out)) == sorted(uids)
        assert check(out) == []
        assert import_tars([str(source)], out).kept == 0
        afresh()
    for part in (out / "index").iterdir():
        part.unlink()
    assert [f.kind for f in check(out)] == ["missing index"]
    assert repair(out).lost == []
    assert tree(out) == whole
    for file in (out / "commits").iterdir():
        file.unlink()
    assert [f.kind for f in check(out)] == ["missing commit"]
    assert repair(out).lost == []
    assert check(out) == []
    assert read_all(out) == uids
    assert os.listdir(out / "shards") == [Path(rows[0]["shard"]).name]
