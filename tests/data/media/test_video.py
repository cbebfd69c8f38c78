"""Any stretch of a video is that stretch of its full decode, whatever the file looks like; damage is never silent."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data.containers.packet_index import Scan
from data.media import color, video
from parallel.errors import InputError
from tests.support.films import ONE, TWO30, moving, turned, write

VIDEOS = Path(__file__).parents[4] / "shared" / "videos"


def assert_slices_equal(source, frames: int, size=None):
    full = video.decode(source, size=size)
    assert len(full) == frames
    for start, stop in [(0, 1), (frames // 3, frames // 2), (frames - 1, frames), (frames // 2, frames)]:
        np.testing.assert_array_equal(video.decode(source, start, stop, size=size), full[start:stop])
    np.testing.assert_array_equal(video.decode(source, 1, frames, step=3, size=size), full[1::3])
    return full


@pytest.fixture(params=["bigbuckbunny.mp4", "bikes.mp4", "nasa_13013.mp4"])
def real(request):
    if not VIDEOS.is_dir():
        pytest.skip(f"the real clips are not at {VIDEOS}")
    return VIDEOS / request.param


def test_real_clips_from_a_path_and_from_memory(real):
    frames = {"bigbuckbunny.mp4": 132, "bikes.mp4": 250, "nasa_13013.mp4": 390}[real.name]
    full = assert_slices_equal(real, frames, size=(36, 64))
    np.testing.assert_array_equal(video.decode(real.read_bytes(), 77, 90, size=(36, 64)), full[77:90])


def test_of_several_video_streams_the_largest_is_chosen():
    if not VIDEOS.is_dir():
        pytest.skip(f"the real clips are not at {VIDEOS}")
    found = video.probe(VIDEOS / "nasa_13013.mp4")
    assert (found.height, found.width, found.frames, found.video_streams) == (270, 480, 390, 2)
    assert found.fps == Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "options"),
    [
        ("b_frames.mp4", "libx264", "yuv420p", {"bf": "3", "g": "10"}),
        (
            "open_gop.mp4",
            "libx264",
            "yuv420p",
            {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0"},
        ),
        ("refresh.mp4", "libx264", "yuv420p", {"x264-params": "intra-refresh=1:keyint=8:bframes=0"}),
        ("ten_bit.mkv", "libx264", "yuv420p10le", {"g": "5"}),
        ("full_range.mp4", "libx264", "yuvj420p", {"g": "5"}),
        ("colour444.mp4", "libx264", "yuv444p", {"g": "5"}),
        ("annex_b.ts", "libx264", "yuv420p", {"bf": "2", "g": "10"}),
        ("old.avi", "mpeg4", "yuv420p", {"g": "10", "bf": "2"}),
        (
            "hidden_frames.webm",
            "libvpx",
            "yuv420p",
            {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "20", "b": "200k"},
        ),
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"g": "10", "lag-in-frames": "10"}),
        ("moving.gif", "gif", "rgb8", {}),
        ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "keyint=10:log-level=none"}),
    ],
)
def test_containers_and_codecs(tmp_path, name, codec, pixel_format, options):
    frames = moving(40, 48, 64)
    try:
        path = write(tmp_path / name, frames, codec, pixel_format, options)
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        pytest.skip(f"this FFmpeg cannot write {codec} as {pixel_format}: {error}")
    full = assert_slices_equal(path, len(frames))
    error = np.abs(full.astype(int) - frames).mean(axis=(1, 2, 3))
    assert error.max() < 40, "the frames are not those that were written, in their order"
    nearest = [int(np.argmin(np.abs(frames.astype(int) - f).mean(axis=(1, 2, 3)))) for f in full[[0, 7, 20, 39]]]
    assert nearest == [0, 7, 20, 39]


def test_variable_rate_and_a_late_start(tmp_path):
    frames = moving(24, 32, 32)
    path = write(tmp_path / "late.mkv", frames, options={"bf": "2"}, first_pts=300, steps=[1, 3, 2] * 8)
    full = assert_slices_equal(path, 24)
    assert np.abs(full.astype(int) - frames).mean() < 20


def test_a_first_frame_that_is_no_key_frame_is_not_a_row(tmp_path):
    path = write(tmp_path / "whole.ts", moving(30, 32, 32), options={"g": "10", "bf": "0", "sc_threshold": "0"})
    whole = video.decode(path)
    cut = tmp_path / "cut.ts"
    with av.open(str(path)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if number >= 4:
                packet.stream = stream
                target.mux(packet)
    found = video.probe(cut)
    assert found.frames == 20
    np.testing.assert_array_equal(video.decode(cut), whole[10:])


@pytest.mark.parametrize(
    ("matrix", "clockwise"),
    [
        ((0, ONE, 0, -ONE, 0, 0, 0, 0, TWO30), 1),
        ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, TWO30), 2),
        ((0, -ONE, 0, ONE, 0, 0, 0, 0, TWO30), 3),
    ],
)
def test_rotation_tags_are_obeyed(matrix, clockwise):
    upright = video.encode(moving(10, 32, 48), Fraction(10))
    tagged = turned(upright, matrix)
    found = video.probe(tagged)
    expected = np.rot90(video.decode(upright), -clockwise, axes=(1, 2))
    assert (found.height, found.width) == expected.shape[1:3]
    np.testing.assert_array_equal(video.decode(tagged), expected)
    assert video.decode(tagged, size=(24, 16)).shape == (10, 24, 16, 3)


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    path = tmp_path / "anamorphic.mp4"
    write(path, moving(8, 32, 48), options={"x264-params": "sar=2/1"})
    found = video.probe(path)
    assert (found.height, found.width, found.stored) == (32, 96, (32, 48))
    assert video.decode(path).shape == (8, 32, 96, 3)


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("png", rate=1)
        cover.height = cover.width = 64
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(moving(1, 64, 64)[0], format="rgb24")))
        container.mux(cover.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match="no video stream"):
        video.probe(path)


def test_encoding_is_faithful_reproducible_and_cut_into_short_gops():
    frames = video.decode(video.encode(moving(30, 64, 96), Fraction(25)))  # what 4:2:0 can hold
    data = video.encode(frames, Fraction(24000, 1001))
    assert data == video.encode(iter(frames), Fraction(24000, 1001))
    found = video.probe(data)
    assert (found.frames, found.height, found.width, found.fps) == (30, 64, 96, Fraction(24000, 1001))
    assert (found.codec, found.pixel_format, found.container) == ("h264", "yuv420p", "mp4")
    assert found.longest_gop <= video.GOP_FRAMES
    error = video.decode(data).astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 1, "a colour shifts"


def test_odd_sizes_lose_a_row_and_a_column():
    assert video.decode(video.encode(moving(4, 33, 17), Fraction(8))).shape == (4, 32, 16, 3)


@pytest.mark.parametrize("fast_start", [False, True])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.97])
def test_a_file_cut_short_is_an_error(tmp_path, fast_start, part):
    whole = tmp_path / "whole.mp4"
    with av.open(str(whole), "w", options={"movflags": "faststart"} if fast_start else {}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in moving(60, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    data = whole.read_bytes()
    with pytest.raises(InputError):
        video.decode(data[: int(len(data) * part)])
    path = tmp_path / "short.mp4"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=r"short\.mp4"):
        video.decode(path)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "webm"])
def test_streams_cut_short_give_no_damaged_frame(tmp_path, suffix):
    """These containers do not say how many frames they have: what is left must at least be whole, and in order.

    A last frame may have arrived before the B-frames that precede it.
    """
    frames = moving(60, 48, 64)
    codec = "libvpx" if suffix == "webm" else "libx264"
    path = write(tmp_path / f"whole.{suffix}", frames, codec, options={"g": "10"})
    whole = video.decode(path)
    data = path.read_bytes()
    try:
        left = video.decode(data[: int(len(data) * 0.6)])
    except InputError:
        return
    known = [int(np.argmin(np.abs(whole.astype(int) - frame).mean(axis=(1, 2, 3)))) for frame in left]
    np.testing.assert_array_equal(left, whole[known])
    assert known[:-1] == list(range(len(left) - 1))
    assert known[-1] >= len(left) - 1


def test_what_is_not_a_video(tmp_path):
    film = video.encode(moving(9, 32, 32), Fraction(8))
    boxes = int.from_bytes(film[:4], "big")  # size of the first
    refused = {
        b"": "the file is empty",
        "wörter\n".encode() * 900: "no video but text",
        b"PK\x03\x04": "no video but a zip archive",
        bytes(5000): "zero: it was never written",
        bytes(range(255, 0, -1)) * 20: "no kind of video that FFmpeg knows",
        film[: boxes + 99]: f"cut short or damaged: its box 'moov' goes to byte .*, the file to {boxes + 99}",
        film[: boxes + 5]: f"cut short at {boxes + 5} bytes, within the header of a box",
        film[:boxes]: "has no box 'moov'",
        film[:boxes] + bytes(8) + film[boxes + 8 :]: f"damaged at byte {boxes}",
    }
    for content, why in refused.items():
        (tmp_path / "film.mp4").write_bytes(content)
        with pytest.raises(InputError, match=rf"film\.mp4: .*{why}"):
            video.probe(tmp_path / "film.mp4")
        with pytest.raises(InputError, match=why):
            video.probe(content)
    with pytest.raises(InputError, match="No such file"):
        video.probe(tmp_path / "absent.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    with pytest.raises(InputError, match=r"no video stream \(it has: audio\)"):
        video.probe(tmp_path / "sound.mp4")


def test_matroska_cut_short(tmp_path):
    """It has no number of frames; FFmpeg reads what is there and says nothing."""
    write(tmp_path / "whole.mkv", moving(60, 64, 64))
    data = (tmp_path / "whole.mkv").read_bytes()
    assert video.probe(tmp_path / "whole.mkv").frames == 60
    for part in (0.5, 0.9):
        (tmp_path / "cut.mkv").write_bytes(data[: int(part * len(data))])
        with pytest.raises(InputError, match="cut short: its frames go to byte"):
            video.probe(tmp_path / "cut.mkv")


def test_rows_that_are_not_there_are_an_error():
    data = video.encode(moving(10, 32, 32), Fraction(8))
    for start, stop in [(5, 11), (-1, 3), (6, 5)]:
        with pytest.raises(InputError, match="of 10 frames were asked for"):
            video.decode(data, start, stop)
    assert len(video.decode(data, 3, 3)) == 0
    with pytest.raises(InputError, match="has frames"):
        video.encode([], Fraction(8))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_long_files_are_read_from_the_restart(tmp_path, name):
    codec, options = ("mpeg4", {"g": "10"}) if name == "a.avi" else ("libx264", {"g": "10", "bf": "2"})
    path = write(tmp_path / name, moving(150, 32, 48), codec, options={**options, "sc_threshold": "0"})
    found, whole = video.probe(path), video.decode(path)
    for start, stop in ((0, 150), (3, 4), (95, 101), (111, 149), (149, 150)):
        rows = list(video.stream_frames(path, start, stop, video=found))
        np.testing.assert_array_equal(rows, whole[start:stop])
        np.testing.assert_array_equal(video.decode(path, start, stop), whole[start:stop])
    with video.opened(path) as (container, stream):
        packets = video.packets_from(path, container, stream, found.scan, 95, True)
        assert next(packets).pts == found.scan.pts[90]


@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_the_quick_conversion_is_close_to_the_exact_one(matrix):
    frame = av.VideoFrame(128, 64, "yuv420p")
    rng = np.random.default_rng(matrix)
    for plane, (low, high) in zip(frame.planes, ((60, 190), (90, 166), (90, 166)), strict=True):
        np.frombuffer(plane, np.uint8)[:] = rng.integers(low, high, plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, 1
    flat = np.frombuffer(frame.planes[0], np.uint8).reshape(64, -1)
    flat[1::2], flat[:, 1::2] = flat[::2], flat[:, ::2]
    how = color.EXACT | color.Interpolation.POINT
    exact = color.VideoReformatter().reformat(frame, format="rgb24", interpolation=how, threads=1).to_ndarray()
    difference = color.Rgb("a")(frame).astype(int) - exact
    assert np.abs(difference).max() <= 2
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.6


def test_restarts_are_found_by_row():
    scan = Scan(pts=(0, 10, 20, 30, 40), restarts=((0, 0), (3, 2)), packets=5)
    assert [scan.restart(row) for row in range(5)] == [(0, 0)] * 3 + [(3, 2)] * 2
