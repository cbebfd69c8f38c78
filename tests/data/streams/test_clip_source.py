"""What a rank reads is that part of the whole, bit for bit, however the sequence is cut."""

import shutil
import threading
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.curation.clips import CutOptions
from data.dataset.index import Index
from data.media import video
from data.planning.clip_sampling import Sampling
from data.planning.data_plan import Cursor
from data.prepare.pipeline import PrepareOptions, prepare
from data.streams.clip_reader import ClipReader
from data.streams.clip_source import ClipSource
from data.streams.pack_stream import Pack, PackOptions, PackStream
from data.synthetic.shapes import recognise, synth
from launcher.preflight.preflight import notes_on
from parallel.errors import InputError
from parallel.random import key_of
from parallel.sequence.geometry import Geometry
from parallel.sequence.packed import local_spans
from parallel.sequence.sharding import contiguous, zigzag
from tests.support.counting import calls, peak_bytes

VIDEOS = Path(__file__).parents[4] / "shared" / "videos"
PIXELS = Geometry()
TALL = Geometry(patch=(2, 4, 8))
CAUSAL = Geometry(channels=16, stride=(4, 8, 8), patch=(1, 2, 2), causal=True, sliceable=False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("shapes")
    synth(folder / "in", 24, seed=0, frames=9)
    prepare(folder / "in", folder / "out", PrepareOptions(workers=0))
    return Index.open(folder / "out")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Index:
    if not VIDEOS.is_dir():
        pytest.skip(f"the real clips are not at {VIDEOS}")
    folder = tmp_path_factory.mktemp("real")
    prepare(VIDEOS, folder / "out", PrepareOptions(cut=CutOptions(short_side=90), workers=0))
    return Index.open(folder / "out")


Stream = PackStream[ClipSource]


def stream_of(index: Index, sampling: Sampling, pack_tokens: int, seed: int, window: int | None = None) -> Stream:
    source = ClipSource(ClipReader(index, sampling, seed))
    return PackStream(source, PackOptions(pack_tokens, window=window))


def whole(stream: Stream, pack: Pack):
    """The frames of each document of a pack."""
    return [piece.frames for piece in stream.source.read(pack, ((0, pack.tokens),))]


def assert_parts_are_parts_of_the_whole(stream: Stream, pack: Pack, splits):
    full = whole(stream, pack)
    lengths = [document.tokens for document in pack.documents]
    for split in splits:
        for ranges in split.ranges:
            pieces = stream.source.read(pack, ranges)
            assert [(p.document, p.start, p.stop) for p in pieces] == local_spans(lengths, ranges)
            for piece in pieces:
                grid = pack.documents[piece.document].grid
                first, last = stream.source.sampling.frame_range(grid, piece.start, piece.stop)
                assert (piece.first_frame, len(piece.frames)) == (first, last - first)
                np.testing.assert_array_equal(piece.frames, full[piece.document][first:last])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(PIXELS),
        Sampling(PIXELS, frames=4, stride=2),
        Sampling(TALL, size=(20, 24)),
        Sampling(CAUSAL, frames=5),
        Sampling(PIXELS, frames=3, size=(48, 40)),
    ],
)
def test_parts_of_small_clips(shapes, sampling):
    stream = stream_of(shapes, sampling, pack_tokens=2000, seed=5)
    packs, _ = stream.packs(Cursor(), 2)
    for pack in packs:
        assert_parts_are_parts_of_the_whole(
            stream, pack, [make(pack.tokens, ranks) for ranks in range(1, 9) for make in (contiguous, zigzag)]
        )


@pytest.mark.parametrize(
    "sampling", [Sampling(PIXELS, frames=48), Sampling(PIXELS, frames=20, size=(40, 64), stride=3)]
)
def test_parts_of_real_clips(real, sampling):
    stream = stream_of(real, sampling, pack_tokens=60_000, seed=1)
    pack = stream.packs(Cursor(), 1)[0][0]
    assert_parts_are_parts_of_the_whole(stream, pack, [contiguous(pack.tokens, ranks) for ranks in (1, 2, 3, 5, 8)])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ranges_in_any_order(shapes, data):
    stream = stream_of(shapes, Sampling(PIXELS), pack_tokens=2400, seed=0)
    pack = stream.packs(Cursor(), 1)[0][0]
    cuts = sorted(data.draw(st.sets(st.integers(0, pack.tokens), min_size=1, max_size=6)) | {0, pack.tokens})
    ranges = data.draw(st.permutations(list(pairwise(cuts))))
    full = whole(stream, pack)
    for piece in stream.source.read(pack, tuple(ranges)):
        np.testing.assert_array_equal(
            piece.frames, full[piece.document][piece.first_frame : piece.first_frame + len(piece.frames)]
        )


def test_a_pack_is_what_the_index_says(shapes):
    stream = stream_of(shapes, Sampling(PIXELS), pack_tokens=2000, seed=3)
    assert stream.source.lengths.tolist() == [9 * 8 * 8] * 24
    packs, cursor = stream.packs(Cursor(), 8)
    assert cursor == Cursor(1, 0, 0)
    assert sorted(row for pack in packs for row in pack.rows) == list(range(24))
    for pack in packs:
        for row, document, frames in zip(pack.rows, pack.documents, whole(stream, pack), strict=True):
            assert (document.uid, document.text) == (shapes.uid(row), shapes.caption(row))
            assert document.key == key_of(3, 0, document.uid)
            assert (document.grid, document.weight, document.tokens) == ((9, 8, 8), 1.0, 576)
            part = shapes.part(row)
            stored = shapes.shard(row).read_bytes()[part.offset : part.offset + part.size]
            np.testing.assert_array_equal(frames, video.decode(stored))
            seen = recognise(frames)
            assert document.text.split()[1] == seen.colour
            assert document.text.split()[4] == seen.direction


def test_packs_do_not_depend_on_when_they_are_asked_for(shapes):
    one = stream_of(shapes, Sampling(PIXELS, frames=4), pack_tokens=1000, seed=3, window=7)
    expected, end = one.packs(Cursor(), 40)
    other, cursor, found = (
        stream_of(shapes, Sampling(PIXELS, frames=4), pack_tokens=1000, seed=3, window=7),
        Cursor(),
        [],
    )
    for count in (1, 0, 13, 26):
        more, cursor = other.packs(Cursor.from_json(cursor.to_json()), count)
        found += more
    assert (found, cursor) == (expected, end)
    assert stream_of(shapes, Sampling(PIXELS, frames=4), 1000, seed=4, window=7).packs(Cursor(), 40)[0] != expected


def test_windows_in_time_differ_by_epoch_and_stay_inside(shapes):
    stream = stream_of(shapes, Sampling(PIXELS, frames=3, stride=2), pack_tokens=192, seed=0)
    packs, _ = stream.packs(Cursor(), 24 * 12)
    starts = {row: [stream.source.clips(p)[0].start for p in packs if p.rows == (row,)] for row in range(24)}
    assert all(len(of_row) == 12 for of_row in starts.values())
    assert {start for of_row in starts.values() for start in of_row} == set(range(5)), "9 frames hold 0,2,4 to 4,6,8"
    for pack in packs[:6]:
        row, start = pack.rows[0], stream.source.clips(pack)[0].start
        part = shapes.part(row)
        stored = shapes.shard(row).read_bytes()[part.offset : part.offset + part.size]
        np.testing.assert_array_equal(whole(stream, pack)[0], video.decode(stored)[start : start + 5 : 2])


@pytest.mark.parametrize(
    ("sampling", "stored", "grid", "scaled"),
    [
        (Sampling(PIXELS), (10, 35, 33), (10, 8, 8), (35, 33)),
        (Sampling(PIXELS, size=(32, 32)), (10, 90, 160), (10, 8, 8), (32, 57)),
        (Sampling(PIXELS, size=(64, 32)), (10, 32, 32), (10, 16, 8), (64, 64)),
        (Sampling(PIXELS, frames=4, stride=3), (10, 32, 32), (4, 8, 8), (32, 32)),
        (Sampling(TALL), (9, 32, 32), (4, 8, 4), (32, 32)),
        (Sampling(CAUSAL), (9, 32, 48), (3, 2, 3), (32, 48)),
        (Sampling(CAUSAL), (8, 32, 48), (2, 2, 3), (32, 48)),
        (Sampling(PIXELS), (10, 3, 32), None, (3, 32)),
        (Sampling(TALL), (1, 32, 32), None, (32, 32)),
    ],
)
def test_sampling_arithmetic(sampling, stored, grid, scaled):
    assert sampling.grid(*stored) == grid
    assert sampling.length(*stored) == (np.prod(grid) if grid else 0)
    assert sampling.scaled(*stored[1:]) == scaled


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_a_window_in_time_lies_inside_the_clip(frames, most, stride, key):
    sampling = Sampling(PIXELS, frames=most, stride=stride)
    start, used = sampling.start(frames, key), sampling.frames_used(frames)
    assert 1 <= used <= most
    assert 0 <= start <= start + (used - 1) * stride < frames


def test_settings_that_cannot_work_are_refused_before_anything_is_read(shapes):
    cases = [
        (
            {"pack_tokens": 100},
            r"data\.pack_tokens=100, .* have 576 to 576 tokens\n.*data\.pack_tokens=576, or data\.frames=1$",
        ),
        ({"sampling": Sampling(PIXELS, size=(30, 32))}, "use 1 frames of 28 x 32"),
        ({"sampling": Sampling(PIXELS, stride=0)}, "stride"),
        ({"sampling": Sampling(TALL, frames=1)}, r"data\.frames=2"),
        (
            {"sampling": Sampling(Geometry(patch=(16, 4, 4)))},
            "none of 24 does; .*: 9 frames at a stride of 1 do not fill",
        ),
        ({"sampling": Sampling(Geometry(patch=(1, 64, 4)))}, "32 x 32 pixels do not fill a token"),
        ({"window": 0}, r"data\.window"),
        ({"pack_tokens": 0}, r"data\.pack_tokens"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            stream_of(**{"index": shapes, "sampling": Sampling(PIXELS), "pack_tokens": 600, "seed": 0, **change})


def test_samples_that_are_too_long_are_counted_and_those_too_short_are_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    for frames in (8, 9, 20, 24):
        picture = np.broadcast_to(np.linspace(0, 255, 32, dtype=np.uint8)[:, None], (frames, 32, 32, 3))
        (tmp_path / "in" / f"{frames}.mp4").write_bytes(video.encode(picture, Fraction(8)))
    prepare(tmp_path / "in", tmp_path / "out", PrepareOptions(allow_missing_captions=True))
    index = Index.open(tmp_path / "out")
    with pytest.raises(InputError, match="2 of 4 samples are longer, the longest has 1536 tokens") as error:
        stream_of(index, Sampling(PIXELS), pack_tokens=640, seed=0)
    assert error.value.remedy == "data.pack_tokens=1536, or data.frames=10"
    assert stream_of(index, Sampling(PIXELS, frames=10), pack_tokens=640, seed=0).source.left_out == []
    stream = stream_of(index, Sampling(Geometry(patch=(9, 4, 4))), pack_tokens=640, seed=0)
    assert stream.source.left_out == [("8.mp4", "8 frames at a stride of 1 do not fill a token of 9 frames")]
    note = next(iter(notes_on(stream)))
    assert note.startswith("1 of 4 samples are left out: 8.mp4: 8 frames at a stride of 1 do not fill a token of 9")
    assert "To take more: model.patch=" in note
    packs, cursor = stream.packs(Cursor(), 1)
    assert {index.file(row) for row in packs[0].rows} == {"9.mp4", "20.mp4", "24.mp4"}
    assert cursor == Cursor(1, 0, 0)


def test_a_changed_shard_is_named(shapes, tmp_path):
    shutil.copytree(shapes.folders[0], tmp_path / "out")
    index = Index.open(tmp_path / "out")
    stream = stream_of(index, Sampling(PIXELS), pack_tokens=600, seed=0)
    pack = stream.packs(Cursor(), 1)[0][0]
    shard, part = index.shard(pack.rows[0]), index.part(pack.rows[0])
    data = shard.read_bytes()
    at = part.offset + part.size // 2
    shard.chmod(0o644)
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    message = rf"shard .*{shard.name}, sample {pack.documents[0].uid}, part mp4: "
    with pytest.raises(InputError, match=message + "bytes .* to .*: BLAKE3"):
        whole(stream, pack)
    shard.write_bytes(data[:at])
    with pytest.raises(InputError, match=message + "cut short"):
        whole(stream, pack)
    shard.unlink()
    stream.close()
    with pytest.raises(InputError, match=message + "No such file"):
        whole(stream, pack)


def test_threads_may_read_one_stream(shapes):
    stream = stream_of(shapes, Sampling(PIXELS), pack_tokens=600, seed=0)
    packs, _ = stream.packs(Cursor(), 24)
    expected, found = [whole(stream, pack) for pack in packs], {}

    def read(number):
        stream.close()
        found[number] = [whole(stream, pack) for pack in packs]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        for a, b in zip(found[number], expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_reading_is_cheap(shapes):
    stream = stream_of(shapes, Sampling(PIXELS), pack_tokens=600 * 24, seed=0)
    pack = stream.packs(Cursor(), 1)[0][0]
    whole(stream, pack)
    assert calls(partial(whole, stream, pack)) < 100 * len(pack.documents), "38 for a clip, in 0.7 ms"
    assert peak_bytes(partial(whole, stream, pack)) < 1 << 20


def test_a_part_of_a_long_clip_reads_only_what_it_needs(real):
    stream = stream_of(real, Sampling(PIXELS, size=(8, 8)), pack_tokens=240 * 4, seed=0)
    packs, _ = stream.packs(Cursor(), 5)
    pack = next(p for p in packs if 240 in [d.grid[0] for d in p.documents])
    number = [d.grid[0] for d in pack.documents].index(240)
    before = sum(d.tokens for d in pack.documents[:number])
    ranges = ((before + 4 * 100, before + 4 * 110),)
    (piece,) = stream.source.read(pack, ranges)
    assert (piece.first_frame, len(piece.frames)) == (100, 10)
    row = pack.rows[number]
    slices, part = real.slices(row), real.part(row)
    assert slices is not None
    header, needed = slices.offsets[0], [s for s, first in enumerate(slices.rows) if 89 < first < 110]
    least = sum(slices.offsets[s + 1] - slices.offsets[s] for s in needed)
    assert stream.source.bytes_of(pack, ranges) == stream.source.reader.shard_reader.bytes_read == header + least
    assert stream.source.reader.shard_reader.bytes_read < part.size / 5
