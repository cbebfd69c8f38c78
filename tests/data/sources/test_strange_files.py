"""Strange files come out right or are rejected with a reason: never a crash, never silently wrong frames or colours."""

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.context import Flags

from data.curation.clips import CutOptions, cut_into_clips
from data.curation.shot_scan import watch
from data.media import frame_rate, video
from data.media.timeline import timeline_of
from parallel.errors import InputError
from tests.support.films import ONE, TWO30, calm, moving, nearest, turned, write

# --- Colours: eight patches of known RGB, coded by the formulas of the standards -------------------------------------

PATCHES = np.array(
    [[250, 5, 5], [5, 250, 5], [5, 5, 250], [0, 0, 0], [255, 255, 255], [128, 128, 128], [230, 180, 30], [90, 20, 160]]
)
SIDE = 32
WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # ITU-R BT.709, BT.601, BT.2020: red, blue


def coded(matrix: int, full: bool, pixel_format: str, height: int = 64) -> av.VideoFrame:
    """The patches in two rows of four, as planes; ITU-R BT.709, 3 and BT.2020, 4."""
    red, blue = WEIGHTS[matrix]
    rgb = PATCHES[None].repeat(SIDE, 0).reshape(SIDE, 2, 4, 3).transpose(1, 0, 2, 3).repeat(SIDE, 2)
    rgb = np.tile(rgb.reshape(2 * SIDE, 4 * SIDE, 3), (-(-height // (2 * SIDE)), 1, 1))[:height]
    image = av.VideoFrame(4 * SIDE, len(rgb), pixel_format)
    bits = image.format.components[0].bits
    luma = rgb @ np.array([red, 1 - red - blue, blue]) / 255
    planes = [luma, (rgb[..., 2] / 255 - luma) / (2 - 2 * blue), (rgb[..., 0] / 255 - luma) / (2 - 2 * red)]
    steps, zero = (2**bits - 1, 0) if full else (219 << (bits - 8), 16 << (bits - 8))
    for number, (plane, values) in enumerate(zip(image.planes, planes, strict=False)):
        if number:
            values = np.rint(values * (steps if full else 224 << (bits - 8))) + (1 << (bits - 1))
            values = values[:: len(rgb) // plane.height, :: 4 * SIDE // plane.width]
        else:
            values = np.rint(values * steps) + zero
        kind = np.uint8 if bits == 8 else np.uint16
        lines = np.frombuffer(plane, kind).reshape(plane.height, -1)
        lines[:, : plane.width] = values.clip(0, 2**bits - 1)
    return image


def seen_patches(frames: np.ndarray) -> np.ndarray:
    """[frames, 8, 3]: the middles of the patches."""
    return frames[:, 16:64:32, 16:128:32].reshape(len(frames), 8, 3).astype(int)


@pytest.mark.parametrize(
    ("pixel_format", "matrix", "full", "tag", "height"),
    [
        ("yuv420p", 6, False, 6, 64),
        ("yuv420p", 6, False, 5, 64),
        ("yuv420p", 1, False, 1, 64),
        ("yuv420p", 9, False, 9, 64),
        ("yuv420p", 6, False, 2, 64),  # untagged, small: BT.601
        ("yuv420p", 1, False, 2, 720),  # untagged, from 720 lines up: BT.709
        ("yuvj420p", 6, True, 6, 64),
        ("yuvj420p", 1, True, 1, 64),
        ("yuv420p", 1, True, 1, 64),  # full range by its tag alone
        ("yuv422p", 1, False, 1, 64),
        ("yuv444p", 6, False, 6, 64),
        ("yuv420p10le", 1, False, 1, 64),
        ("yuv420p10le", 9, False, 9, 64),
        ("yuv422p10le", 6, False, 2, 64),
        ("yuv444p10le", 1, True, 1, 64),
    ],
)
def test_colours_are_decoded_by_their_own_matrix_and_range(tmp_path, pixel_format, matrix, full, tag, height):
    picture = coded(matrix, full, pixel_format, height)
    path = write(
        tmp_path / "a.mp4",
        [picture] * 8,
        pixel_format=pixel_format,
        options={"crf": "1", "preset": "ultrafast"},
        colorspace=tag,
        color_range=2 if full else 1,
    )
    frames = video.decode(path)
    assert np.abs(seen_patches(frames) - PATCHES).max() <= 3
    assert (
        np.abs(seen_patches(video.decode(path, size=(height // 2, 64)).repeat(2, 1).repeat(2, 2)) - PATCHES).max() <= 3
    )
    (clip,) = cut_into_clips(path).kept
    stored = video.decode(clip.data)
    if pixel_format in ("yuv420p", "yuvj420p"):
        np.testing.assert_array_equal(stored, frames)
    assert np.abs(seen_patches(stored) - PATCHES).max() <= 5  # encoded once more, at crf 17
    (encoded,) = cut_into_clips(path, CutOptions(max_gop=1)).kept
    assert np.abs(seen_patches(video.decode(encoded.data)) - PATCHES).max() <= 5


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_tags_of_the_container_alone_survive_copying(tmp_path, codec):
    """The stream says nothing, the container does."""
    path = write(tmp_path / "a.mkv", [coded(1, False, "yuv420p")] * 8, codec, options={"crf": "1"})
    tagged = tmp_path / "tagged.mkv"
    with av.open(str(path)) as source, av.open(str(tagged), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert np.abs(seen_patches(video.decode(tagged)) - PATCHES).max() <= 3
    (clip,) = cut_into_clips(tagged).kept
    assert np.abs(seen_patches(video.decode(clip.data)) - PATCHES).max() <= 5
    if codec == "libx264":
        np.testing.assert_array_equal(video.decode(clip.data), video.decode(tagged))


def test_grey(tmp_path):
    film = calm(12, 48, 64).mean(axis=3, keepdims=True).astype(np.uint8).repeat(3, 3)
    images = [av.VideoFrame.from_ndarray(frame[..., 0].copy(), format="gray") for frame in film]
    path = write(tmp_path / "a.mkv", images, "ffv1", "gray")
    np.testing.assert_allclose(video.decode(path).astype(int), film, atol=1)
    (clip,) = cut_into_clips(path).kept
    assert np.abs(video.decode(clip.data).astype(int) - film).mean() < 3


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_rejected(tmp_path, transfer, name):
    path = write(
        tmp_path / "a.mp4",
        [coded(9, False, "yuv420p10le")] * 8,
        pixel_format="yuv420p10le",
        colorspace=9,
        color_trc=transfer,
        color_primaries=9,
    )
    for read in (cut_into_clips, video.probe, video.decode):
        with pytest.raises(InputError, match=rf"a\.mp4: it is HDR \({name}\), which is not tone-mapped"):
            read(path)


def test_a_matrix_that_nobody_can_decode_is_rejected(tmp_path):
    path = write(tmp_path / "a.mp4", [coded(6, False, "yuv420p")] * 8, colorspace=8)  # YCgCo
    with pytest.raises(InputError, match="colour matrix, number 8"):
        cut_into_clips(path)


@pytest.mark.parametrize("codec", ["png", "qtrle"])
def test_what_is_transparent_is_laid_over_black(tmp_path, codec):
    film = calm(8, 48, 64)
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:, 32:48], alpha[:, 48:] = 128, 0
    form = "rgba" if codec == "png" else "argb"
    order = [0, 1, 2, 3] if codec == "png" else [3, 0, 1, 2]
    rgba = [np.ascontiguousarray(np.concatenate([frame, alpha], 2)[..., order]) for frame in film]
    path = write(tmp_path / "a.mov", [av.VideoFrame.from_ndarray(f, format=form) for f in rgba], codec, form)
    np.testing.assert_allclose(video.decode(path), film * (alpha / 255), atol=1)
    assert len(cut_into_clips(path).kept) == 1


# --- Geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, ONE, 0, -ONE, 0, 0, 0, 0, TWO30), lambda f: np.rot90(f, -1, (1, 2))),
        ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, TWO30), lambda f: np.rot90(f, 2, (1, 2))),
        ((0, -ONE, 0, ONE, 0, 0, 0, 0, TWO30), lambda f: np.rot90(f, 1, (1, 2))),
        ((-ONE, 0, 0, 0, ONE, 0, 0, 0, TWO30), lambda f: f[:, :, ::-1]),
        ((ONE, 0, 0, 0, -ONE, 0, 0, 0, TWO30), lambda f: f[:, ::-1]),
        ((0, ONE, 0, ONE, 0, 0, 0, 0, TWO30), lambda f: f.transpose(0, 2, 1, 3)),
    ],
)
def test_turned_and_mirrored(tmp_path, matrix, upright):
    film = calm(10, 32, 48)
    path = write(tmp_path / "a.mp4", film)
    expected = upright(video.decode(path))
    path.write_bytes(turned(path.read_bytes(), matrix))
    np.testing.assert_array_equal(video.decode(path), expected)
    (clip,) = cut_into_clips(path).kept
    assert (clip.height, clip.width) == expected.shape[1:3]
    assert np.abs(video.decode(clip.data).astype(int) - expected).mean() < 3


def test_tilted_is_rejected(tmp_path):
    path = write(tmp_path / "a.mp4", calm(10, 32, 48))
    path.write_bytes(turned(path.read_bytes(), (46341, 46341, 0, -46341, 46341, 0, 0, 0, TWO30)))
    with pytest.raises(InputError, match="tilted"):
        cut_into_clips(path)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"),
    [("a.webm", "libvpx-vp9", "yuv420p"), ("a.mp4", "libx264", "yuv444p"), ("a.mkv", "mpeg4", "yuv420p")],
)
def test_odd_sizes(tmp_path, name, codec, pixel_format):
    film = calm(10, 33, 47)
    path = write(tmp_path / name, film, codec, pixel_format, options={"b": "2M"})
    assert video.decode(path).shape == film.shape
    (clip,) = cut_into_clips(path).kept
    assert (clip.height, clip.width) == (32, 46)
    expected = np.stack([np.asarray(f) for f in video.decode(path, size=(32, 46))])
    assert np.abs(video.decode(clip.data).astype(int) - expected).mean() < 3


def test_pixels_that_are_not_square(tmp_path):
    path = write(tmp_path / "a.mp4", calm(10, 32, 48), options={"x264-params": "sar=2/1"})
    (clip,) = cut_into_clips(path).kept
    assert (clip.height, clip.width) == (32, 96)
    assert np.abs(video.decode(clip.data).astype(int) - video.decode(path)).mean() < 3


def test_a_size_that_changes_within_the_stream(tmp_path):
    first, second = calm(12, 48, 64), calm(12, 64, 96)
    one, two = (
        write(tmp_path / f"{n}.ts", film, first_pts=12 * n, options={"bf": "0"})
        for n, film in enumerate((first, second))
    )
    path = tmp_path / "a.ts"
    with av.open(str(one)) as a, av.open(str(two)) as b, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(a.streams.video[0])
        for packet in (p for source in (a, b) for p in source.demux(video=0) if p.size):
            packet.stream = stream
            target.mux(packet)
    shown = [video.decode(clip.data) for clip in cut_into_clips(path).kept]
    assert [frames.shape for frames in shown] == [(12, 48, 64, 3), (12, 64, 96, 3)]
    for frames, film in zip(shown, (first, second), strict=True):
        assert np.abs(frames.astype(int) - film).mean() < 4
    with pytest.raises(InputError, match=r"its picture changes from 48 x 64 to 64 x 96 within the film"):
        video.decode(path)


# --- Time ------------------------------------------------------------------------------------------------------------


def test_each_frame_of_an_uneven_rate_is_what_was_on_screen(tmp_path):
    film = moving(40, 32, 32)
    steps = [1] * 10 + [7] + [1] * 9 + [20] + [2, 1, 1] * 6 + [1]
    path = write(tmp_path / "a.mkv", film, steps=steps, first_pts=11)
    found = video.probe(path)
    assert (found.even, found.fps) == (False, 30)
    cut = cut_into_clips(path, CutOptions(min_frames=1))
    assert sum(clip.frames for clip in cut.kept) == sum(steps)
    ticks = np.cumsum([0, *steps])
    on_screen = [int(np.searchsorted(ticks, tick, side="right")) - 1 for tick in range(sum(steps))]
    whole = video.decode(path)
    frames = np.concatenate([video.decode(clip.data) for clip in cut.kept])
    assert nearest(frames, whole) == on_screen
    assert {clip.fps for clip in cut.kept} == {Fraction(30)}


def test_parts_of_an_uneven_rate(tmp_path):
    film = calm(40, 32, 32)
    path = write(tmp_path / "a.mkv", film, steps=[1] * 15 + [9] + [1] * 24)
    whole = cut_into_clips(path).kept
    assert [(c.start, c.stop, c.frames) for c in whole] == [(0, 40, 48)]
    parts = cut_into_clips(path, CutOptions(max_frames=20)).kept
    assert [(c.start, c.stop, c.frames) for c in parts] == [(0, 16, 16), (15, 24, 16), (24, 40, 16)]
    joined = np.concatenate([video.decode(c.data) for c in parts])
    assert np.abs(joined.astype(int) - video.decode(whole[0].data)).mean() < 3


def test_rates():
    even = [0, 33, 67, 100, 133, 167, 200]  # milliseconds, rounded
    assert frame_rate.rate_of(even, Fraction(1, 1000), Fraction(30)) == (30, True)
    assert frame_rate.rate_of(even, Fraction(1, 1000), None) == (30, True)
    assert frame_rate.rate_of(even, Fraction(1, 1000), Fraction(60)) == (30, True), "fields were counted"
    assert frame_rate.rate_of([5], Fraction(1, 1000), None) == (1, True)
    ntsc = [1001 * row for row in range(500)]
    assert frame_rate.rate_of(ntsc, Fraction(1, 30000), None) == (Fraction(30000, 1001), True)
    assert frame_rate.rate_of([0, 5000, 10000], Fraction(1), None) == (Fraction(1, 5000), True)
    assert frame_rate.rate_of([0, 1, 4, 5, 8], Fraction(1, 10), None) == (5, True)
    assert frame_rate.rate_of([0, 1, 2, 12, 13, 14, 24], Fraction(1, 10), None) == (10, False)
    gap = [*range(50), *range(100, 150)]
    assert frame_rate.rate_of(gap, Fraction(1, 25), Fraction(100, 8)) == (25, False)
    assert frame_rate.rate_of([*range(50), 5000], Fraction(1, 50), None) == (50, False), "one outlier moves nothing"


MS = Fraction(1, 1000)


@pytest.mark.parametrize(
    # milliseconds; (first row, frames, beats, rate, seconds of the pause before) of each stretch
    ("steps", "expected"),
    [
        pytest.param([40] * 47, [(0, 48, 48, 25, 0)], id="even"),
        pytest.param([40] * 23 + [30_000] + [40] * 23, [(0, 24, 24, 25, 0), (24, 24, 24, 25, 30)], id="a pause"),
        pytest.param(
            ([40] * 9 + [5000]) * 2 + [40] * 9, [(10 * n, 10, 10, 25, 5 * (n > 0)) for n in range(3)], id="two"
        ),
        pytest.param([60_000] + [40] * 46, [(0, 1, 1, 1, 0), (1, 47, 47, 25, 60)], id="a title"),
        pytest.param([40] * 46 + [60_000], [(0, 47, 47, 25, 0), (47, 1, 1, 1, 60)], id="a last frame by itself"),
        pytest.param([40] * 23 + [200] + [40] * 23, [(0, 48, 52, 25, 0)], id="a held frame"),
        pytest.param([33, 33, 34, 67] * 20, [(0, 81, 81, Fraction(4000, 167), 0)], id="24 frames in 30 beats"),
        pytest.param([100] * 50 + [33, 33, 34] * 50, [(0, 201, 301, 30, 0)], id="a rate that changes"),
        pytest.param([100] * 99 + [33, 33, 34] * 20, [(0, 99, 99, 10, 0), (99, 61, 61, 30, 0)], id="a quicker end"),
        pytest.param(
            [40] * 100 + [1000] * 40 + [40] * 100,
            [(0, 100, 100, 25, 0), (100, 40, 40, 1, 0), (140, 101, 101, 25, 0)],
            id="a slow time lapse",
        ),
        pytest.param(
            [40] * 100 + [5] * 20 + [40] * 100,
            [(0, 100, 100, 25, 0), (100, 20, 20, 200, 0), (120, 101, 101, 25, 0)],
            id="a burst",
        ),
        pytest.param([40] * 50 + [5] * 3 + [40] * 50, [(0, 104, 104, 25, 0)], id="a short burst: a beat for each"),
        pytest.param(([40] * 3 + [1500]) * 5, [(0, 21, 26, 25, 0)], id="frames held too often are cut short"),
        pytest.param([40, 900] * 10, [(0, 21, 21, Fraction(10, 9), 0)], id="two kinds, mixed"),
        pytest.param([60_000], [(0, 2, 2, Fraction(1, 60), 0)], id="two frames"),
        pytest.param([], [(0, 1, 1, 1, 0)], id="one frame"),
    ],
)
def test_stretches_of_one_rate(steps, expected):
    pts = np.cumsum([1000, *steps]).tolist()
    found = frame_rate.stretches(pts, MS, None)
    assert [(s.rows[0], len(set(s.rows)), len(s.rows), s.fps, round(s.pause)) for s in found] == expected
    assert sorted({row for s in found for row in s.rows}) == list(range(len(pts))), "no frame is dropped"
    for stretch in found:
        first = [list(stretch.rows).index(row) for row in sorted(set(stretch.rows))]
        began = (np.array(pts) - pts[0])[sorted(set(stretch.rows))] / 1000
        np.testing.assert_allclose(stretch.seconds[first], began)
        told = timeline_of(stretch.seconds, float(stretch.fps))
        assert max(abs(told.second(n) - s) for n, s in enumerate(stretch.seconds)) < 0.5 / stretch.fps
        assert [round(told.rows_until(told.second(n)), 3) for n in range(len(stretch.rows))] == [
            *range(len(stretch.rows))
        ]


def test_the_beats_of_a_shot():
    pts = np.cumsum([0, 40, 40, 120, 40, 80, *[40] * 20]).tolist()
    (found,) = frame_rate.stretches(pts, MS, None)
    shot = found.of_rows(2, 5)
    assert (list(shot.rows), shot.fps) == ([2, 2, 2, 3, 4, 4], 25)
    np.testing.assert_allclose(shot.seconds, [0.08, 0.12, 0.16, 0.2, 0.24, 0.28])


def test_a_start_time_that_is_not_zero_and_an_edit_list(tmp_path):
    film = calm(30, 32, 48)
    late = write(tmp_path / "late.mp4", film, first_pts=500, options={"bf": "2"})
    (clip,) = cut_into_clips(late).kept
    assert (clip.start, clip.stop) == (0, 30)
    np.testing.assert_array_equal(video.decode(clip.data), video.decode(late))
    data = bytearray(write(tmp_path / "edited.mp4", film, options={"bf": "0"}).read_bytes())
    whole = video.decode(tmp_path / "edited.mp4")
    with av.open(str(tmp_path / "edited.mp4")) as container:
        beat = int(1 / (30 * container.streams.video[0].time_base))
    at = data.index(b"elst") + 4 + 4 + 4
    duration, media_time = struct.unpack(">Ii", data[at : at + 8])
    data[at : at + 8] = struct.pack(">Ii", duration - 7 * 1000 // 30, media_time + 7 * beat)
    edited = tmp_path / "edited.mp4"
    edited.write_bytes(data)
    assert video.probe(edited).frames == 23
    np.testing.assert_array_equal(video.decode(edited), whole[7:])
    (clip,) = cut_into_clips(edited).kept
    assert (clip.start, clip.stop, clip.frames) == (0, 23, 23)
    assert np.abs(video.decode(clip.data).astype(int) - whole[7:]).mean() < 3


def test_a_first_frame_that_is_no_key_frame(tmp_path):
    film = calm(30, 32, 48)
    path = write(tmp_path / "whole.ts", film, options={"g": "10", "bf": "0", "sc_threshold": "0"})
    cut = tmp_path / "cut.ts"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if number >= 4:
                packet.stream = stream
                target.mux(packet)
    (clip,) = cut_into_clips(cut).kept
    assert (clip.start, clip.stop) == (0, 20)
    assert np.abs(video.decode(clip.data).astype(int) - film[10:]).mean() < 3


@pytest.mark.parametrize(
    ("name", "codec", "options", "flags"),
    [
        ("a.mp4", "libx264", {"x264-params": "interlaced=1", "crf": "10"}, 0),
        ("a.ts", "libx264", {"x264-params": "interlaced=1:keyint=10", "crf": "10"}, 0),
        ("a.mpg", "mpeg2video", {"b": "8M"}, Flags.interlaced_dct | Flags.interlaced_me),
    ],
)
def test_interlaced_is_deinterlaced(tmp_path, name, codec, options, flags):
    fast = np.full((40, 64, 128, 3), 60, np.uint8)  # fifty moments a second, shown as twenty-five frames of two fields
    for row, frame in enumerate(fast):
        frame[8:56, 2 * row : 2 * row + 40] = 190
    film = fast[::2].copy()
    film[:, 1::2] = fast[1::2, 1::2]
    path = write(tmp_path / name, film, codec, options=options, flags=flags, rate=25)
    found = video.probe(path)
    assert found.interlaced
    full = video.decode(path)
    assert len(full) == 20
    moments = fast[1::2]  # the encoders take the lower field for the first
    assert np.abs(full.astype(int) - moments).mean() < 0.7 * np.abs(film.astype(int) - moments).mean()
    np.testing.assert_array_equal(video.decode(path, 5, 9), full[5:9])
    (clip,) = cut_into_clips(path).kept
    assert clip.frames == 20
    assert np.abs(video.decode(clip.data).astype(int) - full).mean() < 2
    with av.open(str(path)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    assert watch(path, replace(found, interlaced=False)).found.interlaced, "even if the header does not say so"


# --- Containers and damage -------------------------------------------------------------------------------------------


def test_of_several_streams_and_a_cover_the_film_is_taken(tmp_path):
    film = calm(12, 48, 64)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.height = cover.width = 256
        cover.pix_fmt, cover.disposition = "rgb24", av.stream.Disposition.attached_pic
        streams = []
        for height, width in ((24, 32), (48, 64)):
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(moving(1, 256, 256)[0], format="rgb24")))
        for frame in film:
            for stream in streams:
                image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(image.reformat(stream.width, stream.height, "yuv420p")))
        for stream in (*streams, cover):
            container.mux(stream.encode(None))
    found = video.probe(path)
    assert (found.height, found.width, found.frames, found.video_streams) == (48, 64, 12, 2)
    (clip,) = cut_into_clips(path).kept
    np.testing.assert_array_equal(video.decode(clip.data), video.decode(path))
    assert np.abs(video.decode(clip.data).astype(int) - film).mean() < 4


def test_names_do_not_matter(tmp_path):
    film = calm(12, 48, 64)
    path = write(tmp_path / "a.mp4", film).rename(tmp_path / "b.mkv")
    assert len(cut_into_clips(path).kept) == 1
    words = tmp_path / "words.mp4"
    words.write_text("this is no film\n" * 99)
    with pytest.raises(InputError, match=r"words\.mp4"):
        cut_into_clips(words)
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.mp4"):
        cut_into_clips(tmp_path / "empty.mp4")
    with pytest.raises(InputError, match="No such file"):
        cut_into_clips(tmp_path / "absent.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=r"folder\.mp4"):
        cut_into_clips(tmp_path / "folder.mp4")


def test_sound_alone_and_one_frame_alone(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        cut_into_clips(tmp_path / "a.mp4")
    path = write(tmp_path / "one.mp4", calm(1, 48, 64))
    assert cut_into_clips(path).rejected == ("1 of 1 shots have fewer than 8 frames: 0:1",)
    (clip,) = cut_into_clips(path, CutOptions(min_frames=1)).kept
    assert (clip.frames, clip.fps, clip.slices.rows) == (1, 30, (0,))


def test_tiny_films_are_rejected(tmp_path):
    cut = cut_into_clips(write(tmp_path / "a.mp4", calm(12, 8, 64)))
    assert (cut.kept, cut.rejected) == ((), ("8 x 64 pixels, smaller than 16",))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm", "fragments.mp4"])
def test_files_cut_short_anywhere(tmp_path, name):
    film = calm(48, 48, 64)
    path = tmp_path / name
    if name == "fragments.mp4":
        path.write_bytes(video.encode(film, Fraction(30)))
    else:
        write(path, film, "libvpx" if name.endswith("webm") else "libx264", options={"g": "12"})
    whole, data = video.decode(path), path.read_bytes()
    rng = np.random.default_rng(0)
    for size in sorted(rng.integers(1, len(data), 12).tolist()):
        short = Path(tmp_path / f"short.{name}")
        short.write_bytes(data[:size])
        try:
            cut = cut_into_clips(short)
        except InputError:
            continue
        assert name != "a.mp4", "its header says how many frames it has"
        for clip in cut.kept:
            frames = video.decode(clip.data)
            known = nearest(frames, whole)
            assert known == sorted(known)
            assert np.abs(frames.astype(int) - whole[known]).mean() < 3
