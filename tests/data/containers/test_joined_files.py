"""Files put end to end: both are read, or it is said that the second would not be."""

import io
from fractions import Fraction
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from data.containers.joined_files import later_streams, second_file
from data.curation.clips import cut_into_clips
from data.media import video
from parallel.errors import InputError
from tests.support.films import stamps, write
from tests.support.strange_films import _bytes as transport
from tests.support.strange_films import pictures

FILM = pictures(40, Random(1))
FORMS = {"mp4": "libx264", "mov": "libx264", "flv": "libx264", "wmv": "wmv2", "mkv": "libx264", "webm": "libvpx"}
FORMS |= {"ogv": "libvpx", "ivf": "libvpx", "mxf": "mpeg2video", "y4m": "wrapped_avframe"}
FORMS |= {"avi": "mpeg4", "mpg": "mpeg2video", "ts": "libx264", "h264": "libx264", "m2v": "mpeg2video"}
QUICK = {"preset": "ultrafast", "bf": "3", "b_strategy": "0"}
READ_TO_THE_END = ("mkv", "webm", "avi", "mpg", "ts", "h264", "m2v")


def part(path: Path, start: int, stop: int) -> bytes:
    form = {".h264": "h264", ".m2v": "mpeg2video"}.get(path.suffix)
    codec = FORMS[path.suffix[1:]]
    return write(path, FILM[start:stop], codec, rate=25, form=form, bit_rate=900_000).read_bytes()


@pytest.mark.parametrize("suffix", FORMS)
def test_two_files_as_one(tmp_path, suffix):
    one, two = part(tmp_path / f"one.{suffix}", 0, 20), part(tmp_path / f"two.{suffix}", 20, 40)
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(one + two)
    assert second_file(tmp_path / f"one.{suffix}") is None
    if suffix in READ_TO_THE_END:
        clips = cut_into_clips(path).kept
        assert [stamps(video.decode(clip.data)) for clip in clips] in ([[*range(20)], [*range(20, 40)]], [[*range(40)]])
        assert [round(clip.timeline.second(0), 2) for clip in clips] in ([0.0, 0.8], [0.0])
        return
    with pytest.raises(InputError, match=rf"another file is joined to it at byte {len(one):,}, which no") as refused:
        cut_into_clips(path)
    assert f"head -c {len(one)} FILE, tail -c +{len(one) + 1} FILE" in refused.value.remedy


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_packet_that_is_lost_begins_no_file(tmp_path, codec):
    """Of MPEG-TS, each in turn that lies near the second place where decoding may begin."""
    film = FILM[:24].copy()
    film[:, 8:] = np.random.default_rng(0).integers(0, 255, film[:, 8:].shape)
    options = {"g": "12", "bf": "0", "sc_threshold": "0", "b": "3M"}
    data = write(tmp_path / "a.ts", film, codec, options=options, rate=25).read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    frames = [at for at, packet in enumerate(packets) if packet[1] & 0x41 == 0x41 and packet[2] == 0]
    assert len(frames) == 24
    assert later_streams(data) == []
    lost = [at for at in range(frames[11], frames[13]) if packets[at][1] & 0x1F == 1]
    assert len(lost) > 4
    for at in lost:
        with pytest.raises(InputError, match=r"is damaged or cut short|damaged \(|others refer to are missing"):
            video.probe(b"".join(packets[:at] + packets[at + 1 :]))
    assert later_streams(data + data) == [len(data) + 188], "the table of services comes first"
    assert video.probe(data + data).frames == 48


def test_pictures_end_to_end_are_a_film(tmp_path):
    path = write(tmp_path / "a.mjpeg", FILM, "mjpeg", "yuvj420p", rate=25, form="mjpeg")
    (clip,) = cut_into_clips(path).kept
    assert stamps(video.decode(clip.data)) == [*range(40)]


def test_fragments_under_a_second_header_are_not_read(tmp_path):
    """FFmpeg leaves out the first of them."""
    data = video.encode(FILM[:24], Fraction(25))
    assert second_file(data + data) == len(data)
    assert second_file(data) is None
    assert second_file(b"") is None
    assert second_file(b"RIFF") is None
    for size in range(0, len(data), 97):
        second_file(data[:size])


def counted_on(data: bytes, by: int) -> bytes:
    """An MPEG-TS whose counters begin elsewhere."""
    out = bytearray(data)
    for at in range(3, len(out), 188):
        out[at] = out[at] & 0xF0 | (out[at] + by) & 15
    return bytes(out)


@pytest.mark.parametrize(("by", "first"), [(7, 0), (3, 800), (1, 800), (9, 5000)])
@pytest.mark.parametrize("before", [0, 4], ids=["ts", "m2ts"])
def test_parts_whose_counters_begin_elsewhere(tmp_path, by, first, before):
    one, two = (
        transport(FILM[a:b], "libx264", ".ts", QUICK, 40, begin)
        for a, b, begin in ((0, 20, 1000), (20, 40, 1000 + first))
    )
    data = one + counted_on(two, by)
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(bytes(before) + data[at : at + 188] for at in range(0, len(data), 188)))
    assert len(later_streams(path)) == 1
    assert [n for clip in cut_into_clips(path).kept for n in stamps(video.decode(clip.data))] == [*range(40)]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_two_animations_as_one(form):
    parts = []
    for film in (FILM[:10], FILM[10:20]):
        out = io.BytesIO()
        first, *more = (Image.fromarray(frame) for frame in film)
        first.save(out, form, save_all=True, append_images=more, duration=40)
        parts.append(out.getvalue())
    assert video.probe(parts[0] + b"behind").frames == 10
    with pytest.raises(InputError, match=f"another file is joined to it at byte {len(parts[0]):,}, which no"):
        video.probe(parts[0] + parts[1])
