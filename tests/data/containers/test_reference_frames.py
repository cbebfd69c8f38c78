"""Frames that others refer to and that are missing are noticed, whatever the container; whole streams pass."""

import io
from pathlib import Path
from random import Random

import av
import pytest

from data.containers.packet_index import units
from data.containers.reference_frames import References
from data.curation.clips import cut_into_clips
from data.media import video
from parallel.errors import InputError
from tests.support.films import stamps, write
from tests.support.strange_films import pictures

VIDEOS = Path(__file__).parents[4] / "shared" / "videos"
FILM = pictures(40, Random(0))
STREAMS = {
    "no B-frames": {"bf": "0"},
    "B-frames": {"bf": "3"},
    "pyramid": {"bf": "7", "x264-params": "b-pyramid=normal:b-adapt=0"},
    "open": {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0"},
    "refresh": {"x264-params": "intra-refresh=1:keyint=8:bframes=0"},
    "interlaced": {"x264-params": "interlaced=1:bframes=2"},
    "slices": {"x264-params": "slices=4:ref=4"},
    "long": {"g": "250", "x264-params": "ref=16"},
    "matrices": {"x264-params": "cqm=jvt"},
}


@pytest.mark.parametrize("options", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_whole_streams_pass(tmp_path, name, options):
    path = write(tmp_path / name, FILM, options={"crf": "20", **options}, rate=25)
    assert stamps(video.decode(path)) == [*range(40)]


def without(data: bytes, path: Path, lost) -> Path:
    """The file without these packets."""
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if number not in lost:
                packet.stream = stream
                target.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
@pytest.mark.parametrize(("bf", "lost"), [("0", {9}), ("0", {20, 21, 22}), ("3", {5}), ("3", {13, 14, 15, 16})])
def test_lost_references_are_noticed(tmp_path, name, bf, lost):
    options = {"bf": bf, "b_strategy": "0", "x264-params": "b-pyramid=none", "g": "250"}
    data = write(tmp_path / f"whole.{name}", FILM, options=options, rate=25).read_bytes()
    whole = tmp_path / f"whole.{name}"
    with av.open(str(whole)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        extradata = container.streams.video[0].codec_context.extradata or b""
    if extradata[:1] == b"\x01":
        first = packets[min(lost)]
        assert any(first[a] >> 5 & 3 for a, _ in units(first, extradata)), "it is referred to"
    path = without(data, tmp_path / name, lost)
    with pytest.raises(
        InputError, match=r"frames that others refer to are missing before packet \d+: number \d+ after"
    ):
        cut_into_clips(path)


def test_lost_groups_of_pictures_are_a_pause(tmp_path):
    """What follows refers to nothing that is lost."""
    data = write(tmp_path / "whole.mkv", FILM, options={"bf": "0", "g": "8", "sc_threshold": "0"}, rate=25).read_bytes()
    path = without(data, tmp_path / "a.mkv", range(8, 16))
    assert stamps(video.decode(path)) == [*range(8), *range(16, 40)]


def test_real_clips_pass():
    if not VIDEOS.is_dir():
        pytest.skip(f"the real clips are not at {VIDEOS}")
    for path in sorted(VIDEOS.glob("*.mp4")):
        assert video.probe(path).frames > 0


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01d\x00\x1f\xff\xe1\x00\x05gdd", b"\x00\x00\x01", bytes(40)])
def test_damaged_headers_are_left_to_the_decoder(data):
    assert References(data).missing_before(memoryview(b"\x00\x00\x01\x65\x88" + bytes(9)), True) is None
