"""Through `prepare`: what hostile files say costs themselves alone, and what only looks strange is still taken."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.containers.regular_file import NOT_REGULAR
from data.prepare.pipeline import PrepareOptions, Summary, prepare
from parallel.errors import InputError
from tests.support.films import calm, write
from tests.support.stores import served

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
HERE = PrepareOptions(workers=0, previews=False)  # what is tested is no limit
DEEP = 200_000
PIPE = NOT_REGULAR.replace("a folder, ", "(a folder, )?")
Make = Callable[[Path], object]


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("film") / "a.mp4", calm(12, 32, 48)).read_bytes()


def other(film: bytes, number: int = 1) -> bytes:
    """The same film in other bytes."""
    return film + b"\0\0\0\x0cfree" + number.to_bytes(4, "big")


def prepared(folder: Path, source: Path | str | None = None, **more: object) -> Summary:
    return prepare(source or folder / "in", folder / "out", PrepareOptions(**{**vars(HERE), **more}))


def tar(path: Path, parts: dict[str, bytes], pax: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), dict(pax or {})
            file.addfile(info, io.BytesIO(data))


def pax(**headers: str) -> Make:
    return lambda folder: tar(folder / "t.tar", {"s.mp4": b"x" * 600, "s.txt": b"words"}, headers)


def sidecar(suffix: str, text: str) -> Make:
    return lambda folder: (folder / f"b{suffix}").write_text(text)


def pipe(name: str) -> Make:
    return lambda folder: os.mkfifo(folder / name)


def device(name: str) -> Make:
    return lambda folder: (folder / name).symlink_to("/dev/zero")


HOSTILE: dict[str, tuple[Make, str]] = {
    "pipe for words": (pipe("b.txt"), NOT_REGULAR),
    "pipe for json": (pipe("b.json"), NOT_REGULAR),
    "device for words": (device("b.txt"), NOT_REGULAR),
    "pipe for a tar": (pipe("t.tar"), NOT_REGULAR),
    "device for a tar": (device("t.tar"), NOT_REGULAR),
    "pipe for a video": (pipe("c.mp4"), "a pipe or a device"),
    "pipe for a picture": (pipe("c.png"), "a pipe or a device"),
    "nested list": (sidecar(".json", "[" * DEEP + "]" * DEEP), "nested deeper than 64"),
    "nested object": (sidecar(".json", '{"caption":' * DEEP + "1" + "}" * DEEP), "nested deeper than 64"),
    "long number": (sidecar(".json", f'{{"caption": "x", "n": {"9" * 5000}}}'), "a number of 5,000 digits"),
    "pax size": (pax(size="9" * 5000), "a number of 5,000 digits"),
    "pax size below zero": (pax(size="-1"), "is no whole number"),
    "pax header of megabytes": (pax(comment="x" * (4 << 20)), "damaged header"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_costs_itself(tmp_path, film, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(film)
    (folder / "a.txt").write_text("good words")
    (folder / "b.mp4").write_bytes(other(film))
    make, reason = HOSTILE[kind]
    make(folder)
    if not any((folder / name).exists() for name in ("b.txt", "b.json")):
        (folder / "b.txt").write_text("other words")
    summary = prepared(tmp_path)
    assert summary.kept == 1 + ("b.mp4" not in {one.file for one in summary.rejected})
    assert any(reason in one.reason for one in summary.rejected)


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet", "captions.json"])
def test_a_table_that_is_no_file_is_refused(tmp_path, film, make, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(film)
    make(name)(tmp_path / "in")
    with pytest.raises(InputError, match=PIPE):
        prepared(tmp_path, tmp_path / "in" if name == "captions.json" else tmp_path / "in" / name)
    with pytest.raises(InputError, match=PIPE):
        prepared(tmp_path, captions=str(tmp_path / "in" / name))


LISTS = ("ffconcat version 1.0\nfile {0}\n", "#EXTM3U\n#EXTINF:1,\n{0}\n", "v=0\nm=video 5004 RTP/AVP 96\n")


@pytest.mark.parametrize("text", LISTS)
def test_a_list_in_a_tar_reads_nobody_elses_film(tmp_path, film, text):
    (tmp_path / "private.mp4").write_bytes(film)
    (tmp_path / "in").mkdir()
    data = text.format(tmp_path / "private.mp4").encode()
    tar(tmp_path / "in" / "t.tar", {"s.mp4": data, "s.txt": b"words", "u.mp4": other(film), "u.txt": b"good"})
    summary = prepared(tmp_path)
    assert summary.kept == 1
    assert [(one.file, one.reason) for one in summary.rejected] == [("t.tar/s.mp4", "no video but text")]


@pytest.mark.skipif(not (CASES / "S1").is_dir(), reason="../shared/cases is not there")
def test_the_list_of_the_cases(tmp_path):
    (tmp_path / "in").mkdir()
    for file in ("hid.bin", "list.mp4"):
        (tmp_path / "in" / file).write_bytes((CASES / "S1" / file).read_bytes())
    with pytest.raises(InputError, match="no video but text"):
        prepared(tmp_path, allow_missing_captions=True)


NAMES = (
    "100%.mp4",
    "50%d off.mp4",
    "a b.mp4",
    "file:x.mp4",
    "a:b::c.mp4",
    "пляж 海 é.mp4",
    "frame%03d.mp4",
    "[0-9]*?.mp4",
)


def test_what_only_looks_strange_is_taken(tmp_path, film):
    """Names, folders behind links that the user made, addresses of files, and a server of his own."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    for number, name in enumerate(NAMES):
        folder = tmp_path / ("elsewhere" if number % 2 else "in")
        (folder / name).write_bytes(other(film, number))
        (folder / name).with_suffix(".txt").write_text(f"words {number}")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link to all").symlink_to(tmp_path / "in")
    assert prepared(tmp_path, tmp_path / "link to all").kept == len(NAMES)
    again = prepare(f"file://{tmp_path}/in", tmp_path / "two", HERE)
    assert (again.kept, again.rejected) == (len(NAMES), [])
    (tmp_path / "t.csv").write_text("path,caption\n" + "".join(f'"file://{tmp_path}/in/{n}",{n}\n' for n in NAMES[::2]))
    assert prepare(tmp_path / "t.csv", tmp_path / "three", HERE).kept == len(NAMES[::2])


def test_a_server_of_the_users_own_is_taken(tmp_path, film):
    (tmp_path / "web").mkdir()
    for number, name in enumerate(("a b.mp4", "100%.mp4", "пляж.mp4")):
        (tmp_path / "web" / name).write_bytes(other(film, number))
    (tmp_path / "web" / "captions.json").write_text('{"a b.mp4": "a", "100%.mp4": "b", "пляж.mp4": "c"}')
    with served(tmp_path / "web") as server:
        summary = prepare(f"{server.url}/", tmp_path / "out", HERE)
        assert (summary.kept, summary.rejected) == (3, [])
        (tmp_path / "t.csv").write_text(f"path,caption\n{server.url}/a%20b.mp4,x\n")
        assert prepare(tmp_path / "t.csv", tmp_path / "two", HERE).kept == 1
