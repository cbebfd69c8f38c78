"""The one place where a video file is opened, so that what is in it decides nothing but its pictures.

FFmpeg takes a file for whatever its first bytes, or its name, look like: a list of other files (`ffconcat`, HLS, DASH),
the description of a network stream (SDP), a pattern of numbered pictures. Those would read other files of the user into
a dataset, or open sockets. So only formats are opened that hold their pictures themselves, FFmpeg may open nothing
more, and it is never told the name: a file is handed over as an open descriptor, a file in memory as its bytes.

A picture of more than 89 million pixels is refused before anything is allocated for it: a file of a few kilobytes may
declare one that takes gigabytes. Pillow's own bound is the same.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av

from data.containers.regular_file import open_regular

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".wmv",
        ".flv",
        ".ogv",
        ".3gp",
        ".gif",
        ".y4m",
        ".mxf",
        ".vob",
        ".asf",
        ".apng",
        ".divx",
        ".f4v",
        ".h264",
        ".264",
        ".h265",
        ".265",
        ".hevc",
        ".ivf",
        ".m1v",
        ".m2v",
        ".mjpeg",
        ".mjpg",
        ".nut",
    ]
)
IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp"])
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES

Source = Path | bytes

# demuxers that read their own file alone
FORMATS = (
    "mov",  # mp4, m4v, 3gp, 3g2
    "matroska",  # webm
    "avi",
    "flv",
    "asf",  # wmv
    "ogg",
    "mpeg",  # program streams: mpg, vob
    "mpegts",
    "mxf",
    "gif",
    "apng",
    "yuv4mpegpipe",  # y4m
    "dv",
    "nut",
    "ivf",
    "mpegvideo",  # from here on bare streams
    "m4v",
    "h264",
    "hevc",
    "av1",
    "obu",
    "mjpeg",
)
BY_DESCRIPTOR, NO_PROTOCOL = "fd", "none"  # FFmpeg's name of the one, and a name that none of them has
MOST_PIXELS = 89_478_485  # of one picture: a quarter of a GiB at 3 bytes a pixel, as Pillow counts
DECODER = {"max_pixels": str(MOST_PIXELS)}


def open_container(source: Source) -> Any:
    """PyAV's container of a file, or of a whole file in memory.

    Raises:
        av.error.FFmpegError: it is damaged, or of a format that is not read; see `is_refused`.
        OSError: it cannot be read, or is no regular file.
    """
    rules = {"format_whitelist": ",".join(FORMATS), "enable_drefs": "0", **DECODER}
    if isinstance(source, bytes):
        rules["protocol_whitelist"] = NO_PROTOCOL
        return av.open(io.BytesIO(source), options=rules, metadata_errors="replace")
    with open_regular(source) as file:  # FFmpeg makes a descriptor of its own from this one
        rules |= {"protocol_whitelist": BY_DESCRIPTOR, BY_DESCRIPTOR: str(file.fileno())}
        return av.open(f"{BY_DESCRIPTOR}:", options=rules, metadata_errors="replace")


def is_refused(error: Exception) -> bool:
    """Whether FFmpeg said no to the format, as far as it tells."""
    return isinstance(error, av.error.ArgumentError)
