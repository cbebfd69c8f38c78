"""A slice of a stored clip is that slice of the whole, bit for bit, and copied clips are the frames of their source."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from data.containers import fragmented_mp4
from data.containers.byte_ranges import digest_bytes
from data.curation import clips
from data.curation.clips import CutOptions, cut_into_clips
from data.media import video
from data.media.remux import remux
from parallel.errors import InputError
from tests.support.films import calm, moving, write

SMALL = (48, 80)  # height, width to decode real clips at: conversion takes longer than decoding else


def stretch(data: bytes, slices, start: int, stop: int) -> tuple[bytes, int]:
    """The header and the slices that hold frames [start, stop), and the row of the first."""
    first, last = slices.covering(start, stop)
    return data[: slices.offsets[0]] + data[slices.offsets[first] : slices.offsets[last]], slices.rows[first]


def assert_parts_equal(clip, ranks, size=None):
    data, slices = clip.data, clip.slices
    ends = (0, *slices.offsets)
    assert [digest_bytes(data[a:b]) for a, b in pairwise(ends)] == list(slices.hashes)
    assert ends[-1] == len(data)
    full = video.decode(data, size=size)
    assert len(full) == clip.frames
    for number in ranks:
        bounds = [clip.frames * rank // number for rank in range(number + 1)]
        for start, stop in pairwise(bounds):
            part, first = stretch(data, slices, start, stop)
            frames = video.decode_slices(part, first, start, stop, 1, size)
            np.testing.assert_array_equal(frames, full[start:stop])
    return full


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("bikes.mp4", (8,)),
        ("nasa_13013.mp4", (1, 2, 3, 5)),
        ("bigbuckbunny.mp4", (3,)),
        pytest.param("nasa_13013.mp4", range(1, 9), marks=pytest.mark.slow),
        pytest.param("bikes.mp4", range(1, 9), marks=pytest.mark.slow),
        pytest.param("bigbuckbunny.mp4", range(1, 9), marks=pytest.mark.slow),
    ],
)
def test_real_clips_are_copied_and_every_part_of_them_decodes_as_in_the_source(real_clips, name, ranks):
    path = real_clips / name
    found = video.probe(path)
    cut = cut_into_clips(path)
    assert [(clip.start, clip.stop) for clip in cut.kept] == list(
        pairwise([*(row for row, _ in found.scan.restarts), found.frames])
    )
    source = video.decode(path, size=SMALL)
    packets = payloads(path)
    for clip in cut.kept:
        full = assert_parts_equal(clip, ranks, SMALL)
        np.testing.assert_array_equal(full, source[clip.start : clip.stop])
        assert payloads(clip.data) == packets[clip.start : clip.stop], "the packets are those of the source"
        assert (clip.height, clip.width, clip.fps) == (found.height, found.width, found.fps)
        assert clip.scores.motion > 0
        assert clip.preview[:3] == b"\xff\xd8\xff"


def payloads(source) -> list[bytes]:
    """The packets of the stream that is chosen."""
    with video.opened(source) as (container, stream):
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


def test_every_range_of_an_encoded_clip():
    data = video.encode(moving(30, 34, 50), Fraction(24000, 1001))
    slices, full = fragmented_mp4.slices(data), video.decode(data)
    assert slices.rows == (0, 12, 24)
    for start in range(0, 30, 3):
        for stop in range(start + 1, 31, 4):
            for step in (1, 2, 5):
                part, first = stretch(data, slices, start, stop)
                frames = video.decode_slices(part, first, start, stop, step)
                np.testing.assert_array_equal(frames, full[start:stop:step])
    part, first = stretch(data, slices, 13, 30)
    np.testing.assert_array_equal(
        video.decode_slices(part, first, 14, 30, 3, (20, 32)), video.decode(data, 14, 30, 3, (20, 32))
    )


def test_any_reader_reads_the_whole_and_any_run_of_slices(tmp_path):
    """FFmpeg's own demuxer, with no help of ours."""
    frames = moving(30, 32, 48)
    data = video.encode(frames, Fraction(25))
    slices, full = fragmented_mp4.slices(data), video.decode(data)
    for start, stop in ((0, 30), (12, 24), (12, 30)):
        path = tmp_path / f"{start}.mp4"
        path.write_bytes(stretch(data, slices, start, stop)[0])
        np.testing.assert_array_equal(video.decode(path), full[start:stop])
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == stop - start
    with av.open(str(tmp_path / "0.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.start_time, stream.average_rate) == (0, 25)
        assert sorted(p.pts * stream.time_base * 25 for p in container.demux(stream) if p.size) == list(range(30))


def test_slices_that_are_not_those_asked_for_are_an_error():
    data = video.encode(moving(36, 32, 32), Fraction(8))
    slices = fragmented_mp4.slices(data)
    header, (a, b, c, d) = data[: slices.offsets[0]], slices.offsets
    middle = header + data[b:c]
    assert len(video.decode_slices(middle, 12, 12, 24)) == 12
    for part, first, start, stop, reason in [
        (middle, 0, 0, 12, "begins with row 12, not 0"),
        (middle, 12, 11, 13, "rows 11 to 13 of frames 12 to 24"),
        (middle, 12, 20, 25, "rows 20 to 25 of frames 12 to 24"),
        (header + data[a:b] + data[c:d], 0, 0, 36, "a slice begins with row 24 after one"),
        (header + data[b:c] + data[a:b], 12, 12, 24, "a slice begins with row 0 after one"),
        (header, 0, 0, 1, "not a clip in fragments"),
        (data[b:c], 12, 12, 24, "not a clip in fragments"),
        (header + data[b : c - 1], 12, 12, 24, "cut short"),
        (b"", 0, 0, 1, "not a clip in fragments"),
        (b"words " * 99, 0, 0, 1, "not a clip in fragments"),
    ]:
        with pytest.raises(InputError, match=reason):
            video.decode_slices(part, first, start, stop)
    assert fragmented_mp4.is_clip(data)
    assert not fragmented_mp4.is_clip(middle)
    with pytest.raises(InputError, match="begins with row 12"):
        fragmented_mp4.slices(middle)


def test_a_flipped_byte_anywhere_in_a_slice_is_an_error_or_a_frame_of_the_right_size():
    """Hashes tell of damage; what gets past none of them must not crash."""
    data = video.encode(moving(12, 32, 32), Fraction(8))
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 150):
        bad = bytearray(data)
        bad[at] ^= 1 << rng.integers(8)
        try:
            assert video.decode_slices(bytes(bad), 0, 0, 12).shape[0] == 12
        except InputError:
            continue


GOPS = {"g": "10", "sc_threshold": "0"}


@pytest.mark.parametrize(
    ("options", "start", "stop", "exact"),
    [
        ({**GOPS, "bf": "0"}, 10, 30, True),
        ({**GOPS, "bf": "0"}, 10, 17, True),  # a prefix, as no frame comes before its turn
        ({**GOPS, "bf": "0"}, 11, 20, False),  # does not begin at a restart
        ({**GOPS, "bf": "3", "b_strategy": "0"}, 10, 30, True),
        ({**GOPS, "bf": "3", "b_strategy": "0"}, 0, 40, True),
        ({**GOPS, "bf": "3", "b_strategy": "0"}, 10, 12, False),  # row 11 needs row 14
        ({**GOPS, "bf": "3", "b_strategy": "0"}, 10, 15, True),
        ({"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0:b-adapt=0"}, 0, 40, True),
        ({"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0:b-adapt=0"}, 8, 16, False),
        ({"x264-params": "intra-refresh=1:keyint=8:bframes=0"}, 0, 40, True),
        ({"x264-params": "repeat-headers=1:keyint=10:scenecut=0"}, 10, 30, True),  # the same as in the header
    ],
)
@pytest.mark.parametrize("first_pts", [0, 77])
def test_what_can_be_copied_is_copied_exactly(tmp_path, options, start, stop, exact, first_pts):
    path = write(tmp_path / "a.mkv", moving(40, 48, 64), options=options, first_pts=first_pts, audio=True)
    found, whole = video.probe(path), video.decode(path)
    data = remux(path, found, start, stop)
    assert (data is not None) is exact
    if data is None:
        return
    np.testing.assert_array_equal(video.decode(data), whole[start:stop])
    (tmp_path / "b.mp4").write_bytes(data)
    np.testing.assert_array_equal(video.decode(tmp_path / "b.mp4"), whole[start:stop])
    again = video.probe(data)
    assert (again.fps, again.even, again.frames) == (30, True, stop - start)
    assert fragmented_mp4.slices(data).rows == tuple(r - start for r, _ in found.scan.restarts if start <= r < stop)
    assert sorted(payloads(data)) == sorted(payloads(path)[p] for p in packets_of(path, found, start, stop))
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [s.type for s in container.streams] == ["video"]
        assert container.streams.video[0].start_time == 0


def packets_of(path, found, start, stop) -> list[int]:
    with av.open(str(path)) as container:
        pts = [packet.pts for packet in container.demux(video=0) if packet.size]
    rows = {p: row for row, p in enumerate(found.scan.pts)}
    return [number for number, p in enumerate(pts) if start <= rows[p] < stop]


def test_streams_whose_parameters_are_not_in_the_header_are_not_copied(tmp_path):
    frames = calm(24, 48, 64)
    path = write(tmp_path / "a.ts", frames, options={"g": "12"})
    assert remux(path, video.probe(path), 0, 24) is None
    (clip,) = cut_into_clips(path).kept
    assert np.abs(video.decode(clip.data).astype(int) - frames).mean() < 4


def test_what_we_encoded_is_copied_to_the_very_bytes(tmp_path):
    data = video.encode(calm(40, 48, 64), Fraction(30000, 1001))
    (tmp_path / "a.mp4").write_bytes(data)
    (clip,) = cut_into_clips(tmp_path / "a.mp4").kept
    assert clip.data == data
    assert (clip.frames, clip.fps) == (40, Fraction(30000, 1001))


def test_long_shots_are_cut_into_parts_at_restarts(tmp_path):
    path = write(tmp_path / "a.mp4", calm(100, 48, 64), options={**GOPS, "bf": "2"})
    whole, packets = video.decode(path), payloads(path)
    cut = cut_into_clips(path, CutOptions(max_frames=40))
    assert [(c.start, c.stop) for c in cut.kept] == [(0, 30), (30, 70), (70, 100)]
    for clip in cut.kept:
        np.testing.assert_array_equal(video.decode(clip.data), whole[clip.start : clip.stop])
        assert payloads(clip.data) == packets[clip.start : clip.stop]
    hashes = [clip.scores.phash for clip in cut.kept]
    assert len({clip.preview for clip in cut.kept}) == 3, "each part has its own"
    assert all(len(phash) == 16 for phash in hashes)


def test_long_shots_without_restarts_are_cut_into_equal_parts(tmp_path):
    frames = calm(50, 48, 64)
    path = write(tmp_path / "a.mp4", frames, options={"g": "250"})
    cut = cut_into_clips(path, CutOptions(max_frames=20))
    assert [(c.start, c.stop, c.frames) for c in cut.kept] == [(0, 16, 16), (16, 33, 17), (33, 50, 17)]
    for clip in cut.kept:
        assert np.abs(video.decode(clip.data).astype(int) - frames[clip.start : clip.stop]).mean() < 4
    assert cut.kept[1].slices.rows == (0, 12)
    copied = cut_into_clips(path).kept[0]
    assert payloads(copied.data) == payloads(path)
    encoded = cut_into_clips(path, CutOptions(max_gop=49)).kept[0]
    assert encoded.slices.rows == (0, 12, 24, 36, 48), "its stretches between restarts were too long"


def test_a_copy_that_shows_something_else_is_not_kept(tmp_path, monkeypatch):
    film = calm(12, 48, 64)
    path = write(tmp_path / "a.mp4", film)
    other = video.encode(calm(12, 48, 64, seed=1), Fraction(30))
    monkeypatch.setattr(clips, "remux", lambda *_: other)
    (clip,) = cut_into_clips(path).kept
    assert np.abs(video.decode(clip.data).astype(int) - film).mean() < 4


def test_where_parts_begin():
    assert clips.equal_parts(10, 3) == [0, 3, 6, 10]
    assert clips.at_restarts([10, 20, 30, 40, 50], 60, 8, 30) == [0, 30, 60]
    assert clips.at_restarts([13, 26, 39, 52], 60, 8, 30) == [0, 26, 39, 60]
    assert clips.at_restarts([55], 60, 8, 30) is None
    assert clips.at_restarts([], 60, 8, 30) is None


@pytest.mark.parametrize(
    ("height", "width", "options", "scaled", "stored"),
    [
        (33, 17, CutOptions(), (32, 16), (32, 16)),
        (720, 1280, CutOptions(short_side=360), (360, 640), (360, 640)),
        (270, 480, CutOptions(short_side=360), (270, 480), (270, 480)),
        (720, 1280, CutOptions(sizes=((256, 256), (256, 448), (448, 256))), (256, 455), (256, 448)),
        (1280, 720, CutOptions(sizes=((256, 256), (256, 448), (448, 256))), (455, 256), (448, 256)),
        (500, 480, CutOptions(sizes=((256, 256), (256, 448), (448, 256))), (267, 256), (256, 256)),
        (720, 1280, CutOptions(sizes=((144, 256), (360, 640), (1080, 1920))), (360, 640), (360, 640)),
        (100, 100, CutOptions(sizes=((256, 256), (128, 128))), (128, 128), (128, 128)),
    ],
)
def test_sizes(height, width, options, scaled, stored):
    assert clips.target_size(height, width, options) == (scaled, stored)


def test_buckets_crop_around_the_centre(tmp_path):
    frames = calm(12, 60, 100)
    path = write(tmp_path / "a.mp4", frames)
    (clip,) = cut_into_clips(path, CutOptions(sizes=((60, 60), (32, 32)))).kept
    assert (clip.height, clip.width) == (60, 60)
    assert np.abs(video.decode(clip.data).astype(int) - frames[:, :, 20:80]).mean() < 4
    (clip,) = cut_into_clips(path, CutOptions(sizes=((60, 100),))).kept
    assert payloads(clip.data) == payloads(path), "nothing had to change"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"min_frames": 0}, "min_frames is at least 1"),
        ({"max_frames": 4}, "max_frames is at least 8"),
        ({"short_side": 33}, "even"),
        ({"short_side": 8}, "at least 16"),
        ({"sizes": ((64, 33),)}, "even"),
        ({"sizes": ()}, "buckets"),
        ({"sizes": ((64, 64),), "short_side": 64}, "buckets"),
        ({"max_gop": 0}, "max_gop"),
    ],
)
def test_options_that_make_no_sense(wrong, reason):
    with pytest.raises(InputError, match=reason):
        CutOptions(**wrong)


def test_every_short_shot_is_named(tmp_path):
    shots = [calm(n, 48, 64, seed) for seed, n in enumerate([12, 3, 2, 5, 4, 1, 9, 6, 2])]
    path = write(tmp_path / "a.mp4", np.concatenate(shots), options={"sc_threshold": "0", "g": "250"})
    cut = cut_into_clips(path, CutOptions(min_frames=8))
    assert [(c.start, c.stop) for c in cut.kept] == [(0, 12), (27, 36)]
    assert cut.shots == 9
    assert cut.rejected == ("7 of 9 shots have fewer than 8 frames: 12:15, 15:17, 17:22, 22:26, 26:27, 36:42, 42:44",)
