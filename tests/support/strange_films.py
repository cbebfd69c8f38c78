"""Strange films, drawn by chance: gaps, pauses, bursts, edit lists, joined files, packets that are no frames.

Each frame carries its number as eight blocks over its top quarter (`tests.support.films.stamped`), so whoever decodes
what is stored can tell which frame it is, and `Strange` says which frames must come, and when. A new kind is a function
of `KINDS`: it writes one file and returns what must become of it.

    for film in draw(folder, 120, seed=0): ...
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from random import Random

import av
import numpy as np
from PIL import Image

from tests.support.films import avi_of, edited, stamped, write

HEIGHT, WIDTH = 32, 64
B_FRAMES = {"bf": "3", "b_strategy": "0"}
QUICK = {"preset": "ultrafast", "crf": "16"}


@dataclass(frozen=True, eq=False)
class Strange:
    """A film and what must become of it.

    Attributes:
        file: its name.
        kind: of `KINDS`.
        seconds: when each frame is shown, by its number, counted from where a player begins.
        optional: numbers that may be missing, if the reason says it.
        reason: a pattern that the reason must match if a frame is missing; none may be without one.
        refused: whether nothing may come of it, for that reason.
        timed: whether times are compared; not where a container has none.
        about: drawn arguments, for the message of a failed test.
    """

    file: str
    kind: str
    seconds: dict[int, float]
    optional: frozenset[int] = frozenset()
    reason: str = ""
    refused: bool = False
    timed: bool = True
    about: str = ""


Kind = Callable[[Random, Path], Strange]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    """Registers a kind by the name of its function."""
    KINDS[make.__name__] = make
    return make


def draw(folder: Path, count: int, seed: int) -> Iterator[Strange]:
    """Writes films of all kinds in turn; the same arguments write the same films."""
    names = sorted(KINDS)
    for number in range(count):
        name = names[number % len(names)]
        yield KINDS[name](Random(f"{seed} {number} {name}"), folder / f"{number:03d}-{name}")


def pictures(frames: int, random: Random, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A film of numbered frames, in a colour of its own, one shot: two films never are the same clip."""
    film = stamped(frames, height, width)
    tints = np.array([[20, 40, 20], [115, 230, 115]], np.uint8)  # grey has no hue, and noise of it would look like cuts
    film[:, : height // 4] = tints[(film[:, : height // 4, :, 0] > 125).astype(int)]
    film[:, height // 4 :] = [random.randrange(40, 200) for _ in range(3)]
    return film


def timed(random: Random, path: Path, steps: Sequence[int], optional: Sequence[int] = (), reason: str = "") -> Strange:
    """A film whose frames last `steps` milliseconds each, in a container and with B-frames by chance."""
    suffixes = [".mkv", ".mp4", ".mov", ".ts"]
    name = path.with_suffix(random.choice(suffixes if len(steps) > 2 else suffixes[:3]))  # FFmpeg opens no shorter .ts
    options = {**QUICK, **random.choice([{"bf": "0"}, B_FRAMES]), "g": str(random.choice([12, 250]))}
    first = random.choice([0, 0, 700, 16_000])
    write(name, pictures(len(steps), random), options=options, steps=list(steps), rate=1000, first_pts=first)
    began = [0, *accumulate(steps)]
    seconds = {number: began[number] / 1000 for number in range(len(steps))}
    about = f"steps {list(steps)}, first {first}, {options}"
    return Strange(name.name, path.name.split("-")[1], seconds, frozenset(optional), reason, about=about)


SHORT = r"fewer than 8 frames: .*the time stamps pause, which ends a shot: [\d.]+ s before frame \d+"


@kind
def even(random: Random, path: Path) -> Strange:
    """Nothing strange but the rate."""
    return timed(random, path, [random.choice([8, 20, 40, 100, 500, 3000])] * random.randint(8, 60))


@kind
def gaps(random: Random, path: Path) -> Strange:
    """Runs of eight frames or more, and between them long pauses."""
    runs = [random.randint(8, 20) for _ in range(random.randint(2, 4))]
    steps = [[40] * (run - 1) + [random.randint(3000, 90_000)] for run in runs]
    return timed(random, path, [step for run in steps for step in run])


@kind
def title(random: Random, path: Path) -> Strange:
    """A few frames that stand for long, then a film; or a film, and then such frames."""
    few, last = random.randint(1, 5), random.random() < 0.4
    slow, film = [random.randint(3000, 60_000)] * few, [40] * random.randint(16, 40)
    steps = [*film[:-1], random.randint(3000, 60_000), *slow] if last else [*slow, *film]
    numbers = range(len(film), len(steps)) if last else range(few)
    return timed(random, path, steps, numbers, SHORT)


@kind
def lapse(random: Random, path: Path) -> Strange:
    """A slow time lapse within a film."""
    slow = [random.choice([400, 1000, 5000])] * random.randint(16, 30)
    return timed(random, path, [40] * random.randint(16, 60) + slow + [40] * random.randint(16, 60))


@kind
def burst(random: Random, path: Path) -> Strange:
    """Some frames that come much quicker."""
    quick = [random.choice([4, 8])] * random.choice([2, 3, 5, 16, 30])
    return timed(random, path, [40] * random.randint(16, 60) + quick + [40] * random.randint(16, 60))


@kind
def pulldown(random: Random, path: Path) -> Strange:
    """Steps that alternate, as of 24 frames in 30 or 60 beats, or 20 in 30."""
    cycle = random.choice([[33, 33, 34, 67], [33, 50], [33, 67], [17, 33, 17]])
    return timed(random, path, cycle * random.randint(8, 16))


@kind
def change(random: Random, path: Path) -> Strange:
    """A rate that changes in the middle, as phones do when it gets dark."""
    steps = [random.choice([33, 40, 50, 67, 100, 200]) for _ in range(random.randint(2, 3))]
    return timed(random, path, [step for step in steps for _ in range(random.randint(12, 40))])


@kind
def jitter(random: Random, path: Path) -> Strange:
    """No two steps are the same."""
    return timed(random, path, [random.randint(15, 65) for _ in range(random.randint(20, 80))])


@kind
def held(random: Random, path: Path) -> Strange:
    """Frames that stay for a while, as of a screen that is recorded."""
    return timed(random, path, [random.choice([40, 40, 40, 80, 200, 600, 1500]) for _ in range(random.randint(20, 60))])


@kind
def few(random: Random, path: Path) -> Strange:
    """One frame, or two."""
    steps = [random.choice([40, 60_000])] * random.randint(1, 2)
    return timed(random, path, steps, range(len(steps)), "fewer than 8 frames")


@kind
def resized(random: Random, path: Path) -> Strange:
    """The picture becomes another one in the middle: larger, turned, or of other pixels."""
    first, second = random.randint(8, 20), random.randint(8, 20)
    sizes = [(32, 64), random.choice([(64, 32), (48, 96), (32, 48), (32, 64)])]
    codec, suffix = random.choice([("libx264", ".ts"), ("libvpx", ".webm"), ("libx264", ".mkv")])
    film = pictures(first + second, random), pictures(first + second, random, *sizes[1])
    options = {"bf": "0", **QUICK} if codec == "libx264" else {"b": "4M", "deadline": "realtime"}
    data = [
        _bytes(frames, codec, suffix, options, 40, begin * 40)
        for frames, begin in ((film[0][:first], 0), (film[1][first:], first))
    ]
    name = path.with_suffix(suffix)
    joined_packets(name, data, in_band=suffix == ".mkv")
    return Strange(name.name, "resized", {n: n / 25 for n in range(first + second)}, about=f"{codec} {first} {sizes}")


@kind
def joined(random: Random, path: Path) -> Strange:
    """Files put end to end, as `cat` does it, whose time goes on, jumps back, ahead, or passes the end of its count."""
    parts = [random.randint(8, 24) for _ in range(random.randint(2, 3))]
    how = random.choice(["on", "back", "ahead", "wrap"])
    options = {**QUICK, **random.choice([{"bf": "0"}, B_FRAMES])}
    film, name = pictures(sum(parts), random), path.with_suffix(".ts")
    wrap = (1 << 33) / 90 - 1400  # milliseconds that the clock of MPEG-TS can count, less what the muxer adds
    at, begin, whole, seconds = 0, 0.0, b"", {}
    for part in parts:
        first = {"on": begin, "back": 0, "ahead": begin * 3, "wrap": begin + wrap - 1300}[how]
        whole += _bytes(film[at : at + part], "libx264", ".ts", options, 40, 1000 + round(first))  # none before zero
        begin = first if how == "ahead" else begin
        seconds |= {at + n: (begin + 40 * n) / 1000 for n in range(part)}
        at, begin = at + part, begin + 40 * part
    name.write_bytes(whole)
    return Strange(name.name, "joined", seconds, about=f"{how} {parts} {options}")


@kind
def old(random: Random, path: Path) -> Strange:
    """B-frames in a container without time stamps; entries without bytes, which show a frame again."""
    name, frames = path.with_suffix(".avi"), random.randint(16, 40)
    codec, options = random.choice([("libx264", {**QUICK, **B_FRAMES}), ("mpeg4", {"bf": "2"}), ("mpeg4", {})])
    write(name, pictures(frames, random), codec, options=options, rate=25, bit_rate=2_000_000)
    repeats = sorted(random.sample(range(1, frames), random.choice([0, 0, 1, 3])))
    if repeats:
        avi_of(name, name.read_bytes(), repeats)
    return Strange(name.name, "old", {n: n / 25 for n in range(frames)}, timed=False, about=f"{codec} {repeats}")


@kind
def hidden(random: Random, path: Path) -> Strange:
    """Packets that are no frames: references that are never shown."""
    name, frames = path.with_suffix(".webm"), random.randint(24, 60)
    codec = random.choice(["libvpx", "libvpx-vp9"])
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "2M", "deadline": "good", "cpu-used": "5"}
    write(name, pictures(frames, random), codec, options=options, rate=25)
    return Strange(name.name, "hidden", {n: n / 25 for n in range(frames)}, about=codec)


@kind
def clock(random: Random, path: Path) -> Strange:
    """A recorder whose clock is put back, once or twice, in the middle of a group of pictures."""
    name, frames = path.with_suffix(".ts"), random.randint(24, 48)
    data = _bytes(pictures(frames, random), "libx264", name.suffix, {**QUICK, "bf": "0"}, 40, 20_000)
    jumps = random.sample(range(8, frames - 7, 8), random.randint(1, 2))
    name.write_bytes(moved(data, {at: -random.randint(3000, 9000) for at in jumps}))
    return Strange(name.name, "clock", {n: n / 25 for n in range(frames)}, about=f"{jumps}")


@kind
def edits(random: Random, path: Path) -> Strange:
    """An mp4 whose edit list shows a part of it."""
    name, frames = path.with_suffix(".mp4"), random.randint(24, 40)
    options = {**QUICK, **random.choice([{"bf": "0"}, B_FRAMES]), "g": random.choice(["6", "250"])}
    data = write(name, pictures(frames, random), options=options, rate=25).read_bytes()
    first, count = random.randint(1, 8), random.randint(9, 15)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        tick = int(1 / (25 * stream.time_base))
    at = data.index(b"elst") + 12
    _, media = struct.unpack(">Ii", data[at : at + 8])
    name.write_bytes(data[:at] + struct.pack(">Ii", count * 40, media + first * tick) + data[at + 8 :])
    return Strange(name.name, "edits", {first + n: n / 25 for n in range(count)}, about=f"{first} {count} {options}")


@kind
def lost(random: Random, path: Path) -> Strange:
    """A frame that others refer to is missing."""
    frames, name = random.randint(24, 40), path.with_suffix(random.choice([".mkv", ".mp4", ".ts"]))
    data = _bytes(pictures(frames, random), "libx264", ".mkv", {**QUICK, "bf": "0", "refs": "1"}, 40, 1000)
    gone = random.randint(2, frames - 3)
    joined_packets(name, [data], leave_out=gone)
    reason = "frames that others refer to are missing before packet"
    return Strange(name.name, "lost", {n: n / 25 for n in range(frames)}, frozenset(), reason, True, about=f"{gone}")


@kind
def pixels(random: Random, path: Path) -> Strange:
    """The shape of its pixels changes within the film, or how they are coded."""
    first, second = random.randint(8, 20), random.randint(8, 20)
    film, name = pictures(first + second, random), path.with_suffix(".ts")
    how = random.choice(["shape", "format"])
    other = {"shape": {"x264-params": "sar=2/1"}, "format": {}}[how]
    parts = [
        _bytes(film[:first], "libx264", ".ts", {**QUICK, "bf": "0"}, 40, 1000),
        _bytes(film[first:], "libx264", ".ts", {**QUICK, "bf": "0", **other}, 40, 1000 + 40 * first,
               "yuv444p" if how == "format" else "yuv420p"),
    ]  # fmt: skip
    joined_packets(name, parts)
    lost = frozenset(range(first + second)) if how == "shape" else frozenset()
    reason = "the shape of its pixels changes from 1:1 to 2:1" if lost else ""
    return Strange(name.name, "pixels", {n: n / 25 for n in range(first + second)}, lost, reason, bool(lost), about=how)


@kind
def trims(random: Random, path: Path) -> Strange:
    """What a phone trimmed: a list of edits that begin anywhere; the frames between them are there, and not shown."""
    name, frames = path.with_suffix(random.choice([".mp4", ".mov"])), random.randint(24, 48)
    options = {**QUICK, **random.choice([{"bf": "0"}, B_FRAMES]), "g": str(random.choice([6, 12, 250]))}
    write(name, pictures(frames, random), options=options, rate=25)
    cuts = sorted(random.sample(range(frames), random.choice([2, 4])))
    entries = [(b - a, a) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    name.write_bytes(edited(name.read_bytes(), entries, 2 if "b_strategy" in options else 0))
    shown = [first + n for count, first in entries for n in range(count)]
    seconds = {number: n / 25 for n, number in enumerate(shown)}
    return Strange(name.name, "trims", seconds, frozenset(shown), "fewer than 8 frames", about=f"{entries} {options}")


@kind
def bare(random: Random, path: Path) -> Strange:
    """Streams without a container, or in one that has hardly any time stamps."""
    frames, options = random.randint(12, 40), {**QUICK, **random.choice([{"bf": "0"}, B_FRAMES])}
    suffix, codec, form, options = random.choice(
        [
            (".h264", "libx264", "h264", options),
            (".flv", "libx264", "flv", options),
            (".m4v", "mpeg4", "m4v", {"bf": "2"}),
            (".m2v", "mpeg2video", "mpeg2video", {"bf": "2"}),
            (".mpg", "mpeg1video", "mpeg", {"bf": "2"}),
            (".vob", "mpeg2video", "vob", {"bf": "2"}),
            (".avi", "mpeg4", "avi", {"bf": "2"}),
        ]
    )
    name = path.with_suffix(suffix)
    write(name, pictures(frames, random), codec, options=options, rate=25, form=form, bit_rate=2_000_000)
    return Strange(name.name, "bare", {n: n / 25 for n in range(frames)}, timed=False, about=f"{codec} {options}")


@kind
def animation(random: Random, path: Path) -> Strange:
    """GIF, WebP and PNG at the speed of browsers, with what may stand behind the last picture."""
    form, frames = random.choice(["GIF", "WEBP", "PNG"]), random.randint(10, 30)
    delays = [random.choice([0, 10, 20, 50, 50, 50, 200]) for _ in range(frames)]
    film = [Image.fromarray(frame) for frame in pictures(frames, random)]
    name = path.with_suffix(f".{form.lower()}")
    film[0].save(
        name,
        form,
        save_all=True,
        append_images=film[1:],
        duration=delays,
        **({"lossless": True} if form == "WEBP" else {}),
    )
    if form == "GIF":
        behind = [b"", b"\x21\xfe\x05words\x00;", b"\x21\xff\x0bXMP DataXMP\x04abcd\x00;", b";" + bytes(99)]
        name.write_bytes(name.read_bytes()[:-1] + random.choice(behind))
    shown = [0, *accumulate(delay if delay > 10 else 100 for delay in delays)]
    return Strange(name.name, "animation", {n: shown[n] / 1000 for n in range(frames)}, about=f"{delays}")


@kind
def beside(random: Random, path: Path) -> Strange:
    """A still of more pixels beside the film, before or behind it; or a smaller film."""
    frames, name = random.randint(12, 40), path.with_suffix(random.choice([".mkv", ".mp4", ".avi", ".mov"]))
    film, still = pictures(frames, random), pictures(1, random, 128, 160)
    other = random.choice([(still, "mjpeg"), (still, "mjpeg"), (pictures(frames, random, 16, 48), "libx264")])
    both = [(film, "libx264"), other]
    random.shuffle(both)
    with av.open(str(name), "w") as container:
        for made, codec in both:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = made.shape[1:3]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for stream, (made, _) in zip(container.streams.video, both, strict=True):
            for row, frame in enumerate(made):
                image = av.VideoFrame.from_ndarray(frame, format="rgb24")
                image.pts, image.time_base = row, Fraction(1, 25)
                container.mux(stream.encode(image))
            container.mux(stream.encode(None))
    timed = name.suffix != ".avi"
    return Strange(name.name, "beside", {n: n / 25 for n in range(frames)}, timed=timed, about=str(both[0][1]))


def _bytes(
    film: np.ndarray,
    codec: str,
    suffix: str,
    options: dict[str, str],
    step: int,
    first: int,
    pixel_format: str = "yuv420p",
) -> bytes:
    """A file of frames that last `step` milliseconds, the first at `first`."""
    out = io.BytesIO()
    form = {".ts": "mpegts", ".webm": "webm", ".mkv": "matroska"}[suffix]
    with av.open(out, "w", format=form, options={"output_ts_offset": f"{first / 1000:.6f}"}) as container:
        stream = container.add_stream(codec, rate=1000)
        stream.height, stream.width = film.shape[1:3]
        stream.pix_fmt, stream.options = pixel_format, options
        for row, frame in enumerate(film):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = row * step, Fraction(1, 1000)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return out.getvalue()


def moved(data: bytes, jumps: dict[int, int]) -> bytes:
    """An MPEG-TS whose frames come so many milliseconds later, or earlier, from some on; ISO/IEC 13818-1, 2.4.3.6."""
    out, by, number = bytearray(data), 0, 0
    for at in range(0, len(out), 188):
        start = at + 4 + (1 + out[at + 4] if out[at + 3] & 0x20 else 0)
        if not (out[at + 1] & 0x40 and out[start : start + 4] == b"\x00\x00\x01\xe0"):
            continue
        by, number = by + 90 * jumps.get(number, 0), number + 1
        for stamp in range(start + 9, start + 9 + out[start + 8] // 5 * 5, 5):
            high, middle, low = out[stamp] >> 1 & 7, *struct.unpack(">HH", out[stamp + 1 : stamp + 5])
            time = (high << 30 | middle >> 1 << 15 | low >> 1) + by
            out[stamp] = out[stamp] & 0xF1 | time >> 30 << 1
            out[stamp + 1 : stamp + 5] = struct.pack(">HH", time >> 15 << 1 & 0xFFFE | 1, time << 1 & 0xFFFE | 1)
    return bytes(out)


def joined_packets(path: Path, files: Sequence[bytes], in_band: bool = False, leave_out: int | None = None) -> None:
    """The packets of several files as one stream, without one of them perhaps.

    With `in_band` their parameter sets stand before their key frames.
    """
    with av.open(str(path), "w") as target:
        stream, number = None, -1
        for data in files:
            with av.open(io.BytesIO(data)) as source:
                template = source.streams.video[0]
                stream = stream or target.add_stream_from_template(template)
                sets = _sets(template.codec_context.extradata or b"") if in_band else b""
                for packet in source.demux(template):
                    number += 1
                    if not packet.size or number == leave_out:
                        continue
                    made = av.Packet(sets + bytes(packet)) if packet.is_keyframe and sets else packet
                    made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
                    made.is_keyframe, made.stream = packet.is_keyframe, stream
                    target.mux(made)


def _sets(extradata: bytes) -> bytes:
    """Sequence and picture parameter set of an H.264 header, with their lengths (ISO/IEC 14496-15, 5.3.3.1)."""
    size = 8 + int.from_bytes(extradata[6:8])
    sps, pps = extradata[8:size], extradata[size + 3 : size + 3 + int.from_bytes(extradata[size + 1 : size + 3])]
    return b"".join(len(one).to_bytes(4) + one for one in (sps, pps))
