"""Pictures that change their size, their turn or the shape of their pixels: divided there, or refused for it."""

import io
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from data.curation.clips import CutOptions, cut_into_clips
from data.media import video
from data.media.picture_changes import check_steady
from data.prepare.import_webdataset import import_tars
from parallel.errors import InputError
from tests.support.films import ONE, TWO30, stamps, turned, write
from tests.support.strange_films import QUICK, _bytes, joined_packets, pictures

CODECS = {"ts": "libx264", "mkv": "libx264", "webm": "libvpx", "vp9.webm": "libvpx-vp9"}
CODECS |= {"jpeg.mkv": "mjpeg", "hevc.ts": "libx265"}
OPTIONS = {"libx264": {"bf": "0", **QUICK}, "libx265": {"x265-params": "log-level=none:bframes=0"}}
OPTIONS |= {"mjpeg": {}}


def changing(path: Path, codec: str, sizes=((32, 64), (64, 32)), frames: int = 12) -> Path:
    """A film whose picture has the one size, then the other."""
    options = OPTIONS.get(codec, {"b": "4M", "deadline": "realtime"})
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    parts = []
    for number, size in enumerate(sizes):
        film = pictures(2 * frames, Random(0), *size)[number * frames : (number + 1) * frames]
        parts.append(_bytes(film, codec, path.suffix, options, 40, 1000 + 40 * frames * number, pixels))
    joined_packets(path, parts, in_band=codec == "libx264" and path.suffix == ".mkv")
    return path


@pytest.mark.parametrize(("name", "codec"), CODECS.items(), ids=CODECS)
def test_a_size_that_changes(tmp_path, name, codec):
    path = changing(tmp_path / f"a.{name}", codec)
    clips = cut_into_clips(path).kept
    assert [(clip.height, clip.width) for clip in clips] == [(32, 64), (64, 32)]
    assert [stamps(video.decode(clip.data)) for clip in clips] == [[*range(12)], [*range(12, 24)]]
    assert clips[1].timeline.second(0) == pytest.approx(0.48, abs=0.001)
    buckets = cut_into_clips(path, CutOptions(sizes=((16, 32), (32, 16)))).kept
    assert [(clip.height, clip.width) for clip in buckets] == [(16, 32), (32, 16)]
    with pytest.raises(InputError, match=r"its picture changes from 32 x 64 to 64 x 32 within the film"):
        check_steady(path, video.probe(path))
    same = changing(tmp_path / f"same.{name}", codec, ((32, 64), (32, 64)))
    check_steady(same, video.probe(same))
    assert len(cut_into_clips(same).kept) == 1


def test_imports_are_refused_for_it(tmp_path):
    good, bad = changing(tmp_path / "g.webm", "libvpx", ((32, 64), (32, 64))), changing(tmp_path / "b.webm", "libvpx")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in (good, bad):
            for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.txt", b"words")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    summary = import_tars([str(tmp_path / "a.tar")], tmp_path / "dataset")
    assert summary.videos == 1
    assert [why for _, why in summary.rejected] == ["its picture changes from 32 x 64 to 64 x 32 within the film"]


def test_a_turn_of_the_whole_film_is_no_change(tmp_path):
    path = write(tmp_path / "a.mp4", pictures(24, Random(0)), options={"g": "6"})
    path.write_bytes(turned(path.read_bytes(), (0, ONE, 0, -ONE, 0, 0, 0, 0, TWO30)))
    check_steady(path, video.probe(path))
    (clip,) = cut_into_clips(path).kept
    assert (clip.height, clip.width) == (64, 32)


@pytest.mark.parametrize("shapes", [("1:1", "2:1"), ("2:1", "1:1"), ("4:3", "2:1")])
def test_pixels_of_another_shape(tmp_path, shapes):
    film, parts = pictures(24, Random(0)), []
    for number, shape in enumerate(shapes):
        options = {**OPTIONS["libx264"], "x264-params": f"sar={shape.replace(':', '/')}"}
        part = film[12 * number : 12 * number + 12]
        parts.append(_bytes(part, "libx264", ".ts", options, 40, 1000 + 480 * number))
    joined_packets(tmp_path / "a.ts", parts)
    with pytest.raises(InputError, match=f"the shape of its pixels changes from {shapes[0]} to {shapes[1]} within"):
        cut_into_clips(tmp_path / "a.ts")


def test_a_pixel_format_that_changes_is_one_film(tmp_path):
    parts = [_bytes(pictures(24, Random(0))[n : n + 12], "libx264", ".ts", OPTIONS["libx264"], 40, 1000 + 40 * n, form)
             for n, form in ((0, "yuv420p"), (12, "yuv444p"))]  # fmt: skip
    joined_packets(tmp_path / "a.ts", parts)
    (clip,) = cut_into_clips(tmp_path / "a.ts").kept
    shown = video.decode(clip.data)
    assert stamps(shown) == [*range(24)]
    assert np.abs(shown[0, 16:].astype(int) - shown[-1, 16:]).max() < 8, "and of one colour"
