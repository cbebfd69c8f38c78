"""The smallest job has the limits of the largest: a file of a few kilobytes may ask for hours and gigabytes."""

import os
import struct
import threading
import zlib

import numpy as np
import pytest

from data.containers.open_media import MOST_PIXELS
from data.media import image
from data.prepare.pipeline import PrepareOptions, local_pool, prepare
from data.workers.processes import Limits, TooLarge, Workers, available_cores, fair_memory
from parallel.errors import InputError
from tests.support.films import calm, write
from tests.support.jobs import EAT, process_id, work


def gif_bomb(frames: int) -> bytes:
    """A GIF of pictures that are 32 x 32 and take 26 bytes each."""
    header = b"GIF89a" + struct.pack("<HH", 32, 32) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04\x04\x04\0\0\0"
    picture = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0"
    return header + (control + picture) * frames + b";"


def png_bomb(width: int, height: int) -> bytes:
    """A black PNG, whole and honest, of a bit per pixel: about a byte for each 8,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines, squeeze = bytes(1 + (width + 7) // 8), zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(lines) for _ in range(height)) + squeeze.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_small_file_that_takes_too_long_is_stopped(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.gif").write_bytes(gif_bomb(300_000))
    (tmp_path / "in" / "a.txt").write_text("words")
    with pytest.raises(InputError, match="not done within 1 s: raise the timeout"):
        prepare(tmp_path / "in", tmp_path / "out", PrepareOptions(timeout=1))


def test_few_bytes_have_workers_and_limits():
    with local_pool(PrepareOptions(timeout=7, memory=2 << 30)) as pool:
        assert pool.processes == available_cores()
        assert pool.limits == Limits(7, 2 << 30)
    with local_pool(PrepareOptions()) as pool:
        assert pool.limits == Limits(600.0, fair_memory(pool.processes))
    with local_pool(PrepareOptions(workers=0)) as pool:
        assert pool.processes == 0  # who asks for it has none


def test_a_picture_of_a_few_kilobytes_takes_no_gigabytes(tmp_path):
    data = png_bomb(13_000, 13_000)
    assert len(data) < 64 << 10
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(data)
    write(tmp_path / "in" / "b.mp4", calm(12, 32, 48))
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text("words")
    summary = prepare(tmp_path / "in", tmp_path / "out", PrepareOptions())
    assert summary.kept == 1
    (bad,) = summary.rejected
    assert f"13000 x 13000 pixels, more than {MOST_PIXELS:,}" in bad.reason


def test_a_large_picture_is_still_one():
    assert image.decode(png_bomb(4000, 3000)).shape == (1, 3000, 4000, 3)


@pytest.mark.parametrize("beside", [False, True])
def test_workers_beside_another_thread_are_spawned_and_limited_as_well(beside):
    """Memory that was this process's before is not theirs."""
    held = np.ones(300 << 20, np.uint8)
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    if beside:
        other.start()
    try:
        with Workers(1, Limits(300, 700 << 20)) as workers:
            (pid,) = workers.map(process_id, [0])
            assert pid != os.getpid()
            assert list(workers.map(work, [3, EAT, 4])) == [9, TooLarge(EAT, 700 << 20), 16]
    finally:
        ended.set()
    assert held.all()
