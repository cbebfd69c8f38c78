"""Films of every kind, made on the fly: pictures whose every frame differs, and files in any container and codec."""

import struct
from fractions import Fraction

import av
import cv2
import numpy as np

ONE, TWO30 = 1 << 16, 1 << 30  # of a display matrix
TICK, MOVIE_TICK = 512, 40  # a frame of 25 a second, in units of the track and of the movie


def moving(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A textured picture that slides: every frame differs from every other. [frames, height, width, 3]"""
    rng = np.random.default_rng(seed)
    wide = np.kron(rng.integers(0, 255, (height // 8 + 1, (width + 8 * frames) // 8 + 1, 3)), np.ones((8, 8, 1)))
    wide = cv2.blur(wide, (5, 5))
    return np.stack([wide[:height, 4 * i : 4 * i + width] for i in range(frames)]).astype(np.uint8)


def calm(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """One shot: a still picture over which a small square travels. [frames, height, width, 3]"""
    rng = np.random.default_rng(seed)
    still = cv2.resize(
        rng.integers(60, 180, (2, 3, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_LINEAR
    )
    film = np.repeat(still[None], frames, axis=0)
    side = max(2, height // 6)
    for row, frame in enumerate(film):
        left = round((width - side) * row / max(1, frames - 1))
        frame[height // 3 : height // 3 + side, left : left + side] = 255
    return film


def write(
    path,
    frames,
    codec="libx264",
    pixel_format="yuv420p",
    options=None,
    first_pts=0,
    audio=False,
    steps=None,
    flags=0,
    rate=30,
    form=None,
    **tags,
):
    """A file in any container and codec; `steps[i]` is the duration of frame i in ticks of 1/rate s.

    `frames`: RGB arrays, or ready-made `av.VideoFrame`s; `form`: FFmpeg's name of the container; `tags`: attributes of
    the codec context.
    """
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        images = [
            f
            if isinstance(f, av.VideoFrame)
            else av.VideoFrame.from_ndarray(np.ascontiguousarray(f), format="rgb24").reformat(format=pixel_format)
            for f in frames
        ]
        stream.height, stream.width, stream.pix_fmt = images[0].height, images[0].width, pixel_format
        stream.options = options or {}
        stream.codec_context.flags |= flags
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        sound = container.add_stream("aac", rate=8000) if audio else None
        pts = first_pts
        for row, image in enumerate(images):
            image.pts, image.time_base = pts, Fraction(1, rate)
            pts += steps[row] if steps else 1
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
        if sound:
            container.mux(sound.encode(None))
    return path


def turned(data: bytes, matrix: tuple[int, ...]) -> bytes:
    """An mp4 with another display matrix in its track header, version 0 (ISO 14496-12, 8.3.2)."""
    at = data.index(b"tkhd") + 4 + 4 + 36
    return data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :]


def nearest(frames: np.ndarray, known: np.ndarray) -> list[int]:
    """Which of the known frames each one is most like."""
    return [int(np.argmin(np.abs(known.astype(int) - frame).mean(axis=(1, 2, 3)))) for frame in frames]


def stamped(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A film whose frames carry their numbers: block b over the top quarter is bright if bit b is set."""
    film = np.full((frames, height, width, 3), 90, np.uint8)
    for row, frame in enumerate(film):
        left = row % (width - 10)
        frame[height // 2 :, left : left + 10] = (200, 60, 60)
        for bit in range(8):
            frame[: height // 4, bit * width // 8 : (bit + 1) * width // 8] = 230 if row >> bit & 1 else 20
    return film


def stamps(film: np.ndarray) -> list[int]:
    """The numbers that the frames of a film carry, whatever its size."""
    _, height, width, _ = film.shape
    top = film[:, height // 16 : height // 4 - height // 16]
    blocks = [
        top[:, :, bit * width // 8 + 1 : (bit + 1) * width // 8 - 1].mean(axis=(1, 2, 3)) > 125 for bit in range(8)
    ]
    return [int(n) for n in sum(block.astype(int) << bit for bit, block in enumerate(blocks))]


def avi_of(path, data: bytes, repeats=()) -> None:
    """An AVI again, with an entry without bytes (show the frame before once more) after each of these entries."""
    entries, at, seen = [], data.index(b"movi") + 4, 0
    while data[at : at + 4] == b"00dc":
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        entries += [data[at + 8 : at + 8 + size], *[b""] * repeats.count(seen)]
        seen, at = seen + 1, at + 8 + size + size % 2
    avi_with(path, data, entries)


def avi_with(path, data: bytes, entries) -> None:
    """An AVI again, with these entries for its frames; those that it had keep their flags."""
    movi, index_at = data.index(b"movi") - 8, data.rindex(b"idx1")
    head, known = bytearray(data[:movi]), {}
    for at in range(index_at + 8, index_at + 8 + int.from_bytes(data[index_at + 4 : index_at + 8], "little"), 16):
        _, flags, offset, size = struct.unpack_from("<4sIII", data, at)
        known[data[movi + 16 + offset : movi + 16 + offset + size]] = flags
    chunks, index = b"", b""
    for entry in entries:
        index += b"00dc" + struct.pack("<III", known.get(entry, 0), 4 + len(chunks), len(entry))
        chunks += b"00dc" + struct.pack("<I", len(entry)) + entry + bytes(len(entry) % 2)
    for at in (head.index(b"avih") + 8 + 16, head.index(b"strh") + 8 + 32):  # the number of frames
        head[at : at + 4] = struct.pack("<I", len(entries))
    body = bytes(head) + b"LIST" + struct.pack("<I", 4 + len(chunks)) + b"movi" + chunks
    body += b"idx1" + struct.pack("<I", len(index)) + index
    path.write_bytes(body[:4] + struct.pack("<I", len(body) - 8) + body[8:])


def edited(data: bytes, entries, delay: int = 2) -> bytes:
    """An mp4 of 25 frames a second whose only track has another edit list, of (frames, first frame).

    -1: nothing is shown; `delay`: frames by which B-frames put off the first, 0 without any.
    """
    at = data.index(b"edts") - 4
    size = int.from_bytes(data[at : at + 4])
    times = [(frames * MOVIE_TICK, -1 if first < 0 else (first + delay) * TICK) for frames, first in entries]
    body = struct.pack(">II", 0, len(times)) + b"".join(struct.pack(">IiHH", *time, 1, 0) for time in times)
    box = struct.pack(">I4s", 16 + len(body), b"edts") + struct.pack(">I4s", 8 + len(body), b"elst") + body
    out = bytearray(data[:at] + box + data[at + size :])
    for kind in (b"moov", b"trak"):  # which lie behind the frames
        parent = out.index(kind) - 4
        out[parent : parent + 4] = struct.pack(">I", int.from_bytes(out[parent : parent + 4]) + len(box) - size)
    return bytes(out)
