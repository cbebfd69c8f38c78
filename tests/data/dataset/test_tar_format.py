"""Any tar is read as tarfile reads it, and where tarfile stops in silence, the damage is told."""

import io
import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.dataset import tar_format
from data.dataset.tar_format import Damage, Member
from tests.support.datasets import tar_of

MEMBERS = [("a.txt", b"a" * 700), ("b.mp4", b"b" * 5), ("c.json", b"")]


def walked(path, data: bytes | None = None) -> list[Member | Damage]:
    if data is not None:
        path.write_bytes(data)
    with path.open("rb") as file:
        return list(tar_format.walk(file.fileno()))


PIECES = st.sampled_from(["a", "é", "日", "/", "..", "x" * 60, ".mp4", "\udcff"])
NAMES = st.lists(PIECES, min_size=1, max_size=5).map("".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, b"Z"])


@given(st.lists(st.tuples(NAMES, KINDS, st.sampled_from([0, 1, 511, 512, 513]))), st.sampled_from([0, 1, 2]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_tarfile_reads_it(tmp_path, entries, fmt):
    """pax, GNU and ustar headers, long and strange names, links, folders, unknown kinds."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=(tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)[fmt]) as tar:
        for number, (name, kind, size) in enumerate(entries):
            info = tarfile.TarInfo(f"{name}{number}" if fmt < 2 else f"{number}.mp4")
            info.type, info.size = kind, size if kind in (tarfile.REGTYPE, b"Z") else 0
            info.linkname = "y" * 200 if kind == tarfile.SYMTYPE and fmt < 2 else "y"
            tar.addfile(info, io.BytesIO(b"d" * size))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size, m.isreg()) for m in tar]
    found = [(m.name.rstrip("/"), m.header, m.offset, m.size, m.kind == "file") for m in walked(path)]
    assert [(name, offset, size) for name, _, offset, size, _ in found] == [(n, o, s) for n, _, o, s, _ in expected]
    # tarfile takes an unknown kind for a file, and a long name for the beginning of a member
    assert [kind for *_, kind in found] == [f and e[1] != b"Z" for (*_, f), e in zip(expected, entries, strict=True)]


def test_headers_are_those_that_tarfile_writes():
    for name, size in (("a.mp4", 0), (f"{'0' * 32}.json", 1234), ("é" * 80, 8 << 30)):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.uname, info.gname = size, 0o444, "longreel", "longreel"
        assert tar_format.header(name, size) == info.tobuf(tarfile.PAX_FORMAT)
    assert [len(tar_format.ending(n)) + n for n in (0, 512, 10240 - 1024, 10240 - 512)] == [10240, 10240, 10240, 20480]


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_beyond_8_gb(tmp_path, fmt):
    """A sparse file, so that only what is read costs time."""
    size, path = (8 << 30) + 7, tmp_path / "large.tar"
    big, small = tarfile.TarInfo("big.bin"), tarfile.TarInfo("small.txt")
    big.size, small.size = size, 3
    with path.open("wb") as file:
        head = big.tobuf(fmt)
        file.write(head)
        at = len(head) + tar_format.padded(size)
        file.seek(at)
        file.write(small.tobuf(fmt) + b"abc" + bytes(509 + 1024))
    assert walked(path) == [
        Member("big.bin", "file", 0, len(head), size),
        Member("small.txt", "file", at, at + 512, 3),
    ]


def test_sparse_members_are_told(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    for fmt in ("gnu", "posix"):
        command = f"tar --format={fmt} -S -C {tmp_path} -cf {tmp_path}/{fmt}.tar sparse"
        if os.system(command + " 2>/dev/null"):
            pytest.skip("no GNU tar")
        (found,) = walked(tmp_path / f"{fmt}.tar")
        assert isinstance(found, Member)
        assert (found.name, found.kind) == ("sparse", "sparse")
        assert found.size < 1 << 19


def test_a_cut_anywhere_is_told(tmp_path):
    data = tar_of(MEMBERS)
    for cut in range(0, len(data), 100):
        found = walked(tmp_path / "a.tar", data[:cut])
        members = [entry.name for entry in found if isinstance(entry, Member)]
        # what is there to its last byte, though its padding may be cut
        assert members == [name for name, stop in (("a.txt", 1212), ("b.mp4", 2053), ("c.json", 3072)) if stop <= cut]
        assert [entry.kind for entry in found[len(members) :]] == (
            ["cut"] if cut < 3584 else ["end"] if cut < 4096 else []
        )


def test_a_damaged_header_costs_its_member_alone(tmp_path):
    data = bytearray(tar_of(MEMBERS))
    data[1536 + 124] ^= 1
    a, damage, c = walked(tmp_path / "a.tar", data)
    assert (a.name, c.name) == ("a.txt", "c.json")
    assert damage == Damage(1536, 2560, "damaged header: bad checksum")


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 99, bytes(range(256)) * 40])
def test_what_is_no_tar_is_damage_from_its_first_byte(tmp_path, data):
    (found,) = walked(tmp_path / "a.tar", data)
    assert isinstance(found, Damage)
    assert (found.start, found.stop) == (0, len(data))


def test_what_follows_the_end_is_told(tmp_path):
    data = tar_of(MEMBERS)
    *members, last = walked(tmp_path / "a.tar", data + data)
    assert [m.name for m in members] == ["a.txt", "b.mp4", "c.json"]
    assert last == Damage(len(data), 2 * len(data), "bytes behind the end of the archive", "end")


@pytest.mark.parametrize("record", [b"0 path=a\n", b"9999999999 path=a\n", b"path", b"12 path=ab", b"-5 a=b\n"])
def test_hostile_pax_headers_end(tmp_path, record):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    member = tarfile.TarInfo("a.txt")
    data = info.tobuf() + record + bytes(-len(record) % 512) + member.tobuf() + bytes(1024)
    damage, found = walked(tmp_path / "a.tar", data)
    assert damage == Damage(0, 1024, "damaged pax header")
    assert isinstance(found, Member)
    assert found.name == "a.txt"


def pax(key: str, value: str) -> bytes:
    """A pax header with one record, and its padding."""
    size = len(f" {key}={value}\n".encode()) + 1
    while len(str(size)) + len(f" {key}={value}\n".encode()) != size:
        size += 1
    record = f"{size} {key}={value}\n".encode()
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    return info.tobuf() + record + bytes(-len(record) % 512)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (pax("size", "9" * 5000), "a number of 5,000 digits"),
        (pax("size", "9" * 19), "a number of 19 digits"),
        (pax("size", "²"), "is no whole number"),
        (pax("size", "-1"), "is no whole number"),
        (pax("path", "a/" * 50_000 + "b.mp4"), "a name of 100,005 bytes"),
        (b"".join(pax("mtime", str(n)) for n in range(40)), "more than 16 headers"),
    ],
)
def test_a_hostile_header_costs_its_member(tmp_path, before, reason):
    """Whoever reads the tar: a local one, or a remote one by its parts."""
    first, last = tarfile.TarInfo("first.txt").tobuf(), tarfile.TarInfo("last.txt").tobuf()
    data = first + before + tarfile.TarInfo("a.txt").tobuf() + last + bytes(1024)
    found = walked(tmp_path / "a.tar", data)
    assert [one.name for one in found if isinstance(one, Member)][:: len(found)] == ["first.txt"]
    assert found[-1] == Member("last.txt", "file", len(data) - 1536, len(data) - 1024, 0)
    assert reason in next(one.reason for one in found if isinstance(one, Damage))
    far = list(tar_format.entries(lambda size, at: data[at : at + size], len(data), resync=False))
    assert far[0] == found[0]
    assert reason in far[1].reason
    assert len(far) == 2, "a remote tar is not searched behind its damage"
