"""What a file holds decides nothing but its pictures: lists of files, stream descriptions and patterns open nothing."""

import ast
import os
import struct
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.containers import open_media
from data.containers.open_media import FORMATS, open_container
from data.media import image, video
from parallel.errors import InputError
from tests.support.films import moving, write

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"
 mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1">
<BaseURL>hidden.bin</BaseURL></Representation></AdaptationSet></Period></MPD>
"""
LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {hidden}\n",
    "ffconcat_beyond_text": "ffconcat version 1.0\nfile {hidden}\n# \x00\x01\x02\n",
    "ffconcat_data": "ffconcat version 1.0\nfile 'subfile,,start,0,end,0,,:{hidden}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{hidden}\n#EXT-X-ENDLIST\n",
    "dash": DASH,
    "sdp": SDP,
    "smil": '<?xml version="1.0"?><smil><body><video src="{hidden}"/></body></smil>',
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
    "ffmetadata": ";FFMETADATA1\ntitle={hidden}\n",
    "words": "an apple on a table\n",
}


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("film") / "a.mp4", moving(12, 32, 48)).read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".txt"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_and_descriptions_are_no_videos(tmp_path, film, kind, suffix):
    (tmp_path / "hidden.bin").write_bytes(film)
    path = tmp_path / f"list{suffix}"
    path.write_text(LISTS[kind].replace("{hidden}", "hidden.bin"))
    for source in (path, path.read_bytes()):
        with pytest.raises(InputError, match=r"no video but (text|a list of other files)"):
            video.probe(source)


def sockets() -> set[str]:
    """What this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


def test_the_description_of_a_stream_opens_no_socket(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text(LISTS["sdp"])
    before, seen, ended = sockets(), set[str](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            seen.update(sockets())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(InputError, match="no video but text"):
            video.probe(path)
    finally:
        ended.set()
        watcher.join()
    assert seen <= before


def test_formats_that_open_others_are_on_no_list():
    others = {
        "concat",
        "hls",
        "dash",
        "sdp",
        "rtsp",
        "rtp",
        "sap",
        "image2",
        "imf",
        "lavfi",
        "vobsub",
        "webm_dash_manifest",
    }
    assert not others & set(FORMATS)
    assert not {"ffmetadata", "tty", "hds", "smoothstreaming", "rawvideo", "image2pipe"} & set(FORMATS)
    known = {part for name in av.formats_available for part in name.split(",")}
    assert set(FORMATS) <= known


@pytest.mark.parametrize("name", ["frame%03d.png", "frame[0-9].png", "f?.gif", "*.jpg", "frame%d.gif"])
def test_a_name_with_a_pattern_is_the_name_of_one_file(tmp_path, name):
    for number in range(12):
        Image.fromarray(np.full((32, 32, 3), number * 20, np.uint8)).save(tmp_path / f"frame{number:03}.png")
    (tmp_path / name).write_bytes(b"no picture \x00\x01")
    with pytest.raises(InputError, match="no kind of video"):
        video.probe(tmp_path / name)


NAMES = ("50%d off.mp4", "100%.mp4", "a%03d.gif", "what?.gif", "x*[0-9]{2}.gif", "file:a.mp4", "concat:a|b.mp4")
MORE_NAMES = ("http:x.mp4", "subfile,,start,0,end,9,,:a.mp4", "data:x.mp4", "пляж 海.mp4", "a b\n.mp4", "\udcff.mp4")


@pytest.mark.parametrize("name", [*NAMES, *MORE_NAMES])
def test_any_name_is_a_name(tmp_path, film, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    if name.endswith(".gif"):
        frames = [Image.fromarray(frame) for frame in moving(12, 32, 48)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    else:
        path.write_bytes(film)
    assert video.probe(path).frames == 12
    assert len(video.decode(path, 2, 4)) == 2


def with_reference(film: bytes, other: Path) -> bytes:
    """An mp4 whose pictures are said to lie in another file (ISO/IEC 14496-12, 8.7.2; QuickTime's alias)."""
    url = b"\0\0\0\x0durl \0\0\0\x01"
    at = film.index(url) if url in film else film.index(b"url ") - 4
    name = os.fsencode(other)
    alias = bytearray(150)
    alias[8:10] = struct.pack(">H", 2)
    alias += struct.pack(">HH", 2, len(name)) + name + b"\xff\xff"
    box = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    grown = len(box) - 12
    data = bytearray(film[:at] + box + film[at + 12 :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(kind) - 4
        (size,) = struct.unpack_from(">I", data, place)
        struct.pack_into(">I", data, place, size + grown)
    return bytes(data)


def test_a_film_that_says_its_pictures_lie_elsewhere_opens_nothing(tmp_path, film, monkeypatch):
    (tmp_path / "other.mp4").write_bytes(film)
    path = tmp_path / "a.mov"
    path.write_bytes(with_reference(film, tmp_path / "other.mp4"))
    seen: list[str] = []
    path_before = open_media.open_regular
    monkeypatch.setattr(open_media, "open_regular", lambda path: seen.append(str(path)) or path_before(path))
    before = os.listdir("/proc/self/fd")
    container = open_container(path)
    targets = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in set(os.listdir("/proc/self/fd")) - set(before)]
    container.close()
    assert str(tmp_path / "other.mp4") not in targets
    assert seen == [str(path)]


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="a pipe or a device"):
        video.probe(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="a folder"):
        video.probe(tmp_path)
    with pytest.raises(InputError, match="a pipe or a device"):
        video.probe(Path("/dev/zero"))


def test_a_picture_that_is_too_large_is_refused_before_it_is_made():
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0\0\0\0\xff\xff\xff" + b","
    gif += struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\x02\x02D\x01\0;"
    y4m = b"YUV4MPEG2 W40000 H40000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(4096)
    with pytest.raises(InputError, match="more than 89,478,485"):
        video.probe(gif)
    with pytest.raises(InputError):
        video.probe(y4m)


@pytest.mark.parametrize("size", [(9500, 9500), (30000, 30000)])
def test_a_picture_of_a_few_bytes_cannot_take_gigabytes(size):
    data = bytearray(image.encode(np.zeros((16, 16, 3), np.uint8)))
    struct.pack_into(">II", data, 16, *size)  # IHDR; its checksum is that of the header
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    with pytest.raises(InputError, match=rf"{size[0]} x {size[0]} pixels|exceeds limit"):
        image.decode(bytes(data))


def test_media_are_opened_in_one_place():
    """Whoever adds a way to open a film or a picture meets this."""
    home = Path(__file__).resolve().parent.parent.parent.parent
    found = []
    for package in ("data", "launcher", "models", "parallel"):
        for file in sorted((home / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                writes = any(ast.unparse(given) == "'w'" for given in node.args)
                if name in ("av.open", "Image.open", "cv2.VideoCapture", "cv2.imread") and not writes:
                    found.append((str(file.relative_to(home)), name))
    assert sorted(set(found)) == [("data/containers/open_media.py", "av.open"), ("data/media/image.py", "Image.open")]
