"""A packet is not a frame, a declared number is no promise, and time stamps may be the demuxer's.

Every film carries the numbers of its frames, so that what comes out says what it is.
"""

import io
import itertools
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.containers import container_pieces
from data.containers.edit_lists import why_edited
from data.containers.hevc import has_alpha_layer
from data.containers.packet_index import Headers, by_output
from data.containers.truncation import why_cut
from data.curation.clips import CutOptions, cut_into_clips
from data.media import video
from data.prepare.pipeline import PrepareOptions, prepare
from parallel.errors import InputError
from tests.support.films import avi_of, avi_with, edited, stamped, stamps, write

B_FRAMES = {"bf": "3", "g": "12", "b_strategy": "0"}
MPEG4 = {"bf": "2", "g": "12"}
FRAMES, RATE = 32, 25


def kept(path: Path) -> list[list[int]]:
    """The numbers of the frames of each clip that comes of a file."""
    return [stamps(video.decode(clip.data)) for clip in cut_into_clips(path, CutOptions(min_frames=1)).kept]


def frames_shown(path: Path) -> list[int]:
    """The same of all clips together."""
    return list(itertools.chain.from_iterable(kept(path)))


@pytest.mark.parametrize(
    ("name", "codec", "options", "form"),
    [
        ("a.avi", "libx264", B_FRAMES, None),
        ("pyramid.avi", "libx264", {"bf": "7", "g": "24", "x264-params": "b-pyramid=normal:b-adapt=0"}, None),
        ("xvid.avi", "mpeg4", MPEG4, None),
        ("a.h264", "libx264", B_FRAMES, "h264"),
        ("a.hevc", "libx265", {"x265-params": "bframes=3:log-level=none"}, "hevc"),
        ("raw.m4v", "mpeg4", MPEG4, "m4v"),
        ("a.m2v", "mpeg2video", MPEG4, "mpeg2video"),
        ("a.mpg", "mpeg1video", MPEG4, "mpeg"),
        ("a.vob", "mpeg2video", MPEG4, "vob"),
        ("a.flv", "libx264", B_FRAMES, None),
        ("a.mjpeg", "mjpeg", {}, "mjpeg"),
        ("a.nut", "libx264", B_FRAMES, None),
    ],
)
def test_frames_come_in_order_where_a_container_has_no_time_stamps(tmp_path, name, codec, options, form):
    film = stamped(FRAMES)
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / name, film, codec, pixels, options, rate=RATE, form=form, bit_rate=800_000)
    found = video.probe(path)
    assert (found.frames, float(found.fps), found.even) == (FRAMES, RATE, True)
    assert stamps(video.decode(path)) == list(range(FRAMES))
    assert stamps(video.decode(path, 17, 31, 3)) == [17, 20, 23, 26, 29]
    assert frames_shown(path) == list(range(FRAMES))


@pytest.mark.parametrize(
    ("codec", "pixels", "options"),
    [
        ("mjpeg", "yuvj420p", {}),
        ("libx264", "yuv420p", B_FRAMES),
        ("mpeg4", "yuv420p", MPEG4),
        ("mpeg4", "yuv420p", {}),
    ],
)
def test_entries_without_bytes_show_a_frame_once_more(tmp_path, codec, pixels, options):
    path = write(tmp_path / "whole.avi", stamped(FRAMES), codec, pixels, options, rate=RATE, bit_rate=800_000)
    repeats = [4, 10, 10, 20, 31]
    avi_of(tmp_path / "a.avi", path.read_bytes(), repeats)
    found = video.probe(tmp_path / "a.avi")
    assert (found.frames, found.fps) == (FRAMES, RATE)
    stamped_rows = (np.array(found.scan.pts) - found.scan.pts[0]).tolist()
    assert stamped_rows == [row + sum(r < row for r in repeats) for row in range(FRAMES)]
    (shown,) = kept(tmp_path / "a.avi")
    assert sorted(set(shown)) == list(range(FRAMES))
    assert shown == sorted(shown)


@pytest.fixture(scope="module")
def phone(tmp_path_factory) -> bytes:
    path = write(tmp_path_factory.mktemp("phone") / "a.mp4", stamped(FRAMES), options=B_FRAMES, rate=RATE)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("entries", "shown"),
    [
        ([(20, 5)], [*range(5, 25)]),
        ([(20, 0)], [*range(20)]),
        ([(8, 2), (10, 18)], [*range(2, 10), *range(18, 28)]),
        ([(8, 18), (10, 2)], [*range(18, 26), *range(2, 12)]),
        ([(10, -1), (32, 0)], [*range(32)]),
        ([(1, 31)], [31]),
        ([(10, -1), (5, -1), (12, 3)], [*range(3, 15)]),
    ],
)
def test_an_edit_list_tells_which_frames_are_shown(tmp_path, phone, entries, shown):
    (tmp_path / "a.mp4").write_bytes(edited(phone, entries))
    assert stamps(video.decode(tmp_path / "a.mp4")) == shown
    assert frames_shown(tmp_path / "a.mp4") == shown


@pytest.mark.parametrize("gone", [[5, 6, 20], [31], [0, 9]])
def test_samples_without_bytes_show_a_frame_once_more(tmp_path, gone):
    """QuickTime's way to repeat a frame; a decoder takes a packet without bytes for the end of the film."""
    path = write(tmp_path / "a.mov", stamped(FRAMES), "mjpeg", "yuvj420p", rate=RATE)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    sizes, mdat = data.index(b"stsz") + 16, data.index(b"mdat") - 4
    length = int.from_bytes(data[mdat : mdat + 4]) - sum(places[n][1] for n in gone)
    for number in gone:
        data[sizes + 4 * number : sizes + 4 * number + 4] = bytes(4)
    data[mdat : mdat + 4] = length.to_bytes(4)
    for at, size in (places[number] for number in sorted(gone, reverse=True)):  # all lie in one chunk
        del data[at : at + size]
    path.write_bytes(data)
    left = [n for n in range(FRAMES) if n not in gone]
    assert stamps(video.decode(path)) == left
    assert sorted(set(frames_shown(path))) == left


def test_packed_frames_and_frames_that_are_not_coded(tmp_path):
    """DivX puts a B-frame into the entry of the frame that it needs, and an entry that says "as before" behind it."""
    path = write(tmp_path / "a.avi", stamped(33), "mpeg4", options={"bf": "1", "g": "300"}, rate=RATE, bit_rate=800_000)
    with av.open(str(path)) as container:
        entries = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    begin, as_before = b"\0\0\1\xb6", b"\0\0\1\xb6\x50\x4f"  # of a picture; one that is not coded (ISO/IEC 14496-2)
    kinds = ["IPBS"[entry[entry.index(begin) + 4] >> 6] for entry in entries]
    assert kinds[:4] == ["I", "P", "B", "P"]
    head, words = entries[0].index(b"\0\0\1\xb2"), b"\0\0\1\xb2DivX503b1393p"  # which of it are packed
    entries[0] = entries[0][:head] + words + entries[0][entries[0].index(begin) :]
    packed = list(entries)
    for at, kind in enumerate(kinds):
        if kind == "B":
            packed[at - 1 : at + 1] = [entries[at - 1] + entries[at], as_before]
    avi_with(tmp_path / "packed.avi", path.read_bytes(), packed)
    assert stamps(video.decode(tmp_path / "packed.avi")) == list(range(33))
    assert kept(tmp_path / "packed.avi") == [list(range(33))]
    write(path, stamped(FRAMES), "mpeg4", options={"bf": "0", "g": "300"}, rate=RATE, bit_rate=800_000)
    with av.open(str(path)) as container:
        entries = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    avi_with(tmp_path / "dropped.avi", path.read_bytes(), [*entries[:9], as_before, as_before, *entries[9:]])
    found = video.probe(tmp_path / "dropped.avi")
    assert (found.frames, found.fps) == (FRAMES, RATE)
    assert (np.diff(found.scan.pts) != 1).nonzero()[0].tolist() == [8]
    assert stamps(video.decode(tmp_path / "dropped.avi")) == list(range(FRAMES))


def test_edits_that_hold_a_picture_or_change_the_speed_are_refused(phone):
    at = edited(phone, [(20, 0), (10, 20)]).index(b"elst") + 12
    for rate, reason in ((0, "holds a picture"), (2, "at another speed")):
        data = bytearray(edited(phone, [(20, 0), (10, 20)]))
        data[at + 20 : at + 22] = struct.pack(">h", rate)
        with pytest.raises(InputError, match=reason):
            video.probe(bytes(data))
    for entries in ([(20, 0), (50, -1), (10, 20)], [(20, 0), (5, -1)], [(5, -1), (9, 2), (3, -1), (9, 20)]):
        with pytest.raises(InputError, match="shows nothing for a while behind its first part"):
            video.probe(edited(phone, entries))
    assert why_edited(phone) is None
    assert why_edited(b"") is None
    for end in range(0, len(phone), 7):
        why_edited(phone[:end])


def test_time_stamps_in_the_order_of_decoding_are_not_believed(tmp_path, phone):
    (tmp_path / "a.mp4").write_bytes(phone.replace(b"ctts", b"free").replace(b"elst", b"free"))
    assert stamps(video.decode(tmp_path / "a.mp4")) == list(range(FRAMES))
    assert kept(tmp_path / "a.mp4") == [list(range(FRAMES))]


def test_a_last_frame_that_is_held_is_no_cut(tmp_path):
    path = write(tmp_path / "a.mp4", stamped(FRAMES), options=B_FRAMES, rate=RATE)
    with av.open(str(path)) as source, av.open(str(tmp_path / "held.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        last = max(packets, key=lambda packet: packet.pts)
        for packet in packets:
            packet.stream = stream
            packet.duration *= 200 if packet is last else 1
            target.mux(packet)
    assert video.probe(tmp_path / "held.mkv").frames == FRAMES
    assert stamps(video.decode(tmp_path / "held.mkv")) == list(range(FRAMES))


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.webm", "a.gif", "a.mp4"])
def test_a_file_is_cut_short_where_bytes_are_missing(tmp_path, name):
    codec = {"a.webm": "libvpx", "a.gif": "gif"}.get(name, "libx264")
    path = write(tmp_path / name, stamped(FRAMES), codec, "rgb8" if codec == "gif" else "yuv420p", rate=RATE)
    data = path.read_bytes()
    assert why_cut(data) is None
    for part in (0.4, 0.6, 0.85):
        with pytest.raises(InputError, match="cut short"):
            video.probe(data[: int(part * len(data))])


CHAINS = {
    "flv": "libx264",
    "wmv": "wmv2",
    "ogv": "libvpx",
    "ivf": "libvpx",
    "mxf": "mpeg2video",
    "y4m": "wrapped_avframe",
}


@pytest.mark.parametrize("suffix", CHAINS)
def test_a_chain_is_cut_short_where_its_last_piece_is(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", stamped(FRAMES), CHAINS[suffix], rate=RATE, bit_rate=900_000)
    data = path.read_bytes()
    for whole in (data, data + bytes(99), data + b"<html>404</html>" * 9):
        assert why_cut(whole) is None
    for part in (0.3, 0.5, 0.7, 0.9):
        stop = int(part * len(data))
        ends = {piece.stop for piece in container_pieces.pieces(io.BytesIO(data))}
        while stop in ends or any(end < stop <= end + 26 for end in ends):  # between two pieces, or in a head
            stop += 1
        with pytest.raises(InputError, match=r"cut short: its frames go to byte"):
            video.probe(data[:stop])


def test_a_fragment_that_is_cut_is_told():
    data = video.encode(stamped(FRAMES), Fraction(RATE))
    last = data.rindex(b"moof") - 4
    assert why_cut(data) is None
    assert why_cut(data + b"behind the last") is None
    for stop in (last + 30, len(data) - 1):
        assert why_cut(data[:stop]).startswith("cut short: its frames go to byte")


def test_pages_of_ogg_that_are_missing_are_told(tmp_path):
    data = write(tmp_path / "a.ogv", stamped(FRAMES), "libvpx", rate=RATE, form="ogg").read_bytes()
    pages = [data[piece.start : piece.stop] for piece in container_pieces.pieces(io.BytesIO(data))]
    counted = bytearray(pages[-1])
    counted[18:22] = (int.from_bytes(counted[18:22], "little") + 1).to_bytes(4, "little")
    assert "pages of Ogg are missing" in why_cut(b"".join([*pages[:-1], bytes(counted)]))


def test_frames_without_a_time_stamp_are_shown_between_or_before_those_that_have_one():
    headers = Headers(made_up=False)
    headers.pts = [None, None, 80, 120, None, 200, None]
    headers.dts, headers.shown, headers.keys = [None] * 7, [True] * 7, [(0, True)]
    assert by_output(headers, range(7), "a").pts == (0, 40, 80, 120, 160, 200, 240)
    headers.pts = [None] * 7
    assert by_output(headers, range(7), "a").pts == ()


class Unseekable(io.BytesIO):
    """As a live stream, whose sizes nobody can go back to and fill in."""

    def seekable(self) -> bool:
        return False


def matroska(codec: str = "ffv1", live: bool = False, **options: str) -> bytes:
    """A film in several clusters, of random pictures."""
    out = Unseekable() if live else io.BytesIO()
    with av.open(out, "w", format="matroska", options={"cluster_time_limit": "200", **options}) as container:
        stream = container.add_stream(codec, rate=RATE, width=64, height=48, pix_fmt="yuv420p")
        for picture in np.random.default_rng(0).integers(0, 255, (FRAMES, 48, 64, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"live": True}, {"reserve_index_space": "4096"}, {"write_crc32": "0"}], ids=str
)
def test_matroska_with_a_hole_is_damaged_and_whole_is_not(options):
    """FFmpeg goes on at the next cluster, and says nothing of the frames between."""
    data = matroska(**options)
    for whole in (data, data + data, data + (bytes(99) if options.get("live") else b"junk")):
        assert why_cut(whole) is None
    clusters = [match.start() for match in re.finditer(re.escape(b"\x1f\x43\xb6\x75"), data)]
    second = next(at for at in clusters if at > len(data) // 2)
    block = data.index(b"\xa3", second + 8)
    harmed = {
        "zeroed": data[: block - 200] + bytes(400) + data[block + 200 :],
        "cluster": data[:second] + b"\x1f\x43\xb6\x74" + data[second + 4 :],
        "inserted": data[: block + 100] + b"?" * 77 + data[block + 100 :],
        "missing": data[: block + 100] + data[block + 177 :],
        "block": data[:block] + b"\xa2" + data[block + 1 :],
    }
    for how, bad in harmed.items():
        if how == "missing" and not options.get("live"):
            bad += bytes(77)  # else the segment is plainly cut short
        with pytest.raises(InputError, match=r"damaged at byte \d"):
            video.probe(bad)
    for stop in range(second, len(data) - 1, 997) if options.get("live") else ():
        assert why_cut(data[:stop]) is None  # a recording that broke off


def test_an_avi_without_its_index_has_all_its_frames(tmp_path):
    data = write(tmp_path / "a.avi", stamped(FRAMES), options=B_FRAMES, rate=RATE).read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: data.rindex(b"idx1") + 20])
    assert kept(tmp_path / "cut.avi") == [list(range(FRAMES))]


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.mov"])
def test_motion_jpeg_may_become_smaller(tmp_path, name):
    """A decoder that begins with a small picture takes it for one of two fields of the size in the header."""
    pictures = [*stamped(70, 96, 128), *stamped(12)]
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE, width=128, height=96, pix_fmt="yuvj420p")
        for row, picture in enumerate(pictures):
            out = io.BytesIO()
            Image.fromarray(picture).save(out, "JPEG", quality=95)
            packet = av.Packet(out.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, RATE), True
            packet.pts = packet.dts = row
            container.mux(packet)
    found = video.probe(tmp_path / name)
    for first in (3, 69, 70, 75):
        shown = [frame.shape[0] for frame in video.stream_frames(tmp_path / name, first, 82 if first > 69 else 70)]
        assert shown == ([48] * (82 - first) if first > 69 else [96] * (70 - first))
    assert found.frames == len(pictures)
    assert [clip.height for clip in cut_into_clips(tmp_path / name, CutOptions(min_frames=1)).kept][-1] == 48


def test_frames_before_the_first_key_frame_are_lost_and_told(tmp_path):
    path = write(tmp_path / "whole.mkv", stamped(FRAMES), options={"g": "12", "bf": "0"}, rate=RATE)
    with av.open(str(path)) as source, av.open(str(tmp_path / "late.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][5:]:
            packet.stream = stream
            target.mux(packet)
    found = cut_into_clips(tmp_path / "late.mkv", CutOptions(min_frames=1))
    assert stamps(video.decode(found.kept[0].data)) == list(range(12, FRAMES))
    assert found.headless == 7
    path.unlink()
    notes = prepare(tmp_path, tmp_path / "out", PrepareOptions(None, True, workers=0, previews=False)).notes
    lost = "frames before the first one cannot be decoded and are lost"
    assert notes == [f"1 file begins without a key frame; {lost}: late.mkv (7)"]


# --- Which stream, and what is transparent beside it ------------------------------------------------------------------


def streams(path: Path, *films: tuple[np.ndarray, str]) -> Path:
    """A file of several video streams: films and the codecs they are in."""
    with av.open(str(path), "w") as container:
        made = []
        for film, codec in films:
            stream = container.add_stream(codec, rate=RATE)
            stream.height, stream.width = film.shape[1:3]
            stream.pix_fmt = {"libx264": "yuv420p", "png": "rgb24"}.get(codec, "yuvj420p")
            made.append(stream)
        for stream, (film, _) in zip(made, films, strict=True):
            for row, frame in enumerate(film):
                image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                image.pts, image.time_base = row, Fraction(1, RATE)
                container.mux(stream.encode(image))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov", "a.avi"])
@pytest.mark.parametrize("first", [True, False])
def test_a_still_of_more_pixels_is_not_the_film(tmp_path, name, first):
    film, still = (stamped(FRAMES), "libx264"), (stamped(1, 320, 400), "mjpeg")
    path = streams(tmp_path / name, *((still, film) if first else (film, still)))
    found = video.probe(path)
    assert (found.frames, found.height, found.width, found.video_streams) == (FRAMES, 48, 64, 2)
    assert kept(path) == [list(range(FRAMES))]


def test_a_file_with_several_streams_is_told(tmp_path):
    (tmp_path / "in").mkdir()
    streams(tmp_path / "in" / "a.mkv", (stamped(1, 320, 400), "mjpeg"), (stamped(FRAMES), "libx264"))
    write(tmp_path / "in" / "b.mkv", stamped(FRAMES - 9), rate=RATE)
    options = PrepareOptions(None, True, workers=0, previews=False)
    notes = prepare(tmp_path / "in", tmp_path / "out", options).notes
    assert notes == ["1 file has several video streams, of which the film of most pixels is taken: a.mkv"]


def test_of_films_the_one_with_most_pixels_is_meant_and_of_a_show_of_stills_none(tmp_path):
    small, large = stamped(FRAMES), stamped(FRAMES // 2, 96, 128)
    path = streams(tmp_path / "a.mkv", (small, "libx264"), (large, "libx264"), (stamped(3, 320, 400), "mjpeg"))
    found = video.probe(path)
    assert (found.frames, found.height, found.video_streams) == (FRAMES // 2, 96, 3)
    alone = streams(tmp_path / "still.mkv", (stamped(1), "mjpeg"))
    assert video.probe(alone).frames == 1


def test_a_layer_of_transparencies_is_read_or_refused(tmp_path):
    """HEVC says in a message that its second layer is that; a decoder of the first alone shows what is to be hidden."""
    options = {"x265-params": "log-level=none"}
    write(tmp_path / "a.hevc", stamped(FRAMES), "libx265", options=options, rate=RATE, form="hevc")
    plain = (tmp_path / "a.hevc").read_bytes()
    assert video.probe(plain).frames == FRAMES
    at = plain.index(bytes([0, 0, 1, 39 << 1]))  # behind the parameter sets
    message = b"\x00\x00\x00\x01" + bytes([39 << 1, 1, 165, 4, 0x10, 2, 3, 4, 0x80])
    with pytest.raises(InputError, match="what is transparent is a layer"):
        video.probe(plain[:at] + message + plain[at:])
    other = b"\x00\x00\x00\x01" + bytes([39 << 1, 1, 5, 20, *[165] * 20, 0x80])  # a message of another kind
    assert video.probe(plain[:at] + other + plain[at:]).frames == FRAMES
    unit = message[4:]
    record = b"\x01" + bytes(20) + b"\xff\x01" + bytes([39, 0, 1, 0, len(unit)]) + unit
    assert has_alpha_layer(record, b"")
    assert has_alpha_layer(b"\x01" + bytes(20) + b"\xff\x00", len(unit).to_bytes(4) + unit)
    for end in range(len(record)):
        assert not has_alpha_layer(record[: min(end, 27)], b"")


@pytest.mark.parametrize(("codec", "name"), [("libvpx-vp9", "a.webm"), ("libvpx", "a.webm"), ("libvpx-vp9", "a.mkv")])
def test_what_is_transparent_beside_the_pictures_is_laid_over_black(tmp_path, codec, name):
    picture = np.full((FRAMES, 64, 64, 4), (40, 180, 90, 255), np.uint8)
    picture[:, :, 32:, 3] = 0
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height = stream.width = 64
        stream.pix_fmt, stream.options = "yuva420p", {"auto-alt-ref": "0"}
        for row, frame in enumerate(picture):
            image = av.VideoFrame.from_ndarray(frame, format="rgba").reformat(format="yuva420p")
            image.pts, image.time_base = row, Fraction(1, RATE)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    (clip,) = cut_into_clips(tmp_path / name).kept
    for shown in (video.decode(clip.data), video.decode(tmp_path / name), video.decode(tmp_path / name, 20, 24)):
        assert np.abs(shown[:, 4:60, 4:28].astype(int) - (40, 180, 90)).max() < 12
        assert shown[:, 4:60, 36:60].max() < 8
