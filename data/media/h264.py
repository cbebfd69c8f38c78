"""Encoding: frames become an H.264 clip in fragments, the same bytes each time; `media/video.py` decodes them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from data.containers import fragmented_mp4
from data.media.color import BT601, EXACT, Frames
from parallel.errors import InputError

GOP_FRAMES = 12  # of what we encode: a rank that needs one frame decodes at most eleven others
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


def encode(frames: Iterable[Frames], fps: Fraction, crf: int = 17) -> bytes:
    """An H.264 mp4 of RGB frames [height, width, 3], the same bytes for the same frames with the same libraries.

    BT.601, limited range, and tagged so. Odd sizes lose their last row or column, because 4:2:0 needs even ones. One
    thread, since x264's decisions depend on the number of threads. About 65 frames of 1280 x 720 a second on one core.

    Raises:
        InputError: there is no frame, or it is smaller than 2 x 2.
    """
    out = io.BytesIO()
    with av.open(out, "w", format="mp4", options=fragmented_mp4.WRITING) as container:
        stream: Any = None
        rgb = VideoReformatter()
        for row, frame in enumerate(frames):
            height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
            if stream is None:
                if min(height, width) < 2:
                    raise InputError(
                        "a frame has at least 2 x 2 pixels", f"{frame.shape[0]} x {frame.shape[1]}", "leave it out"
                    )
                stream = _stream(container, fps, height, width, crf)
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            image = rgb.reformat(
                image,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.AREA | EXACT,
                threads=1,
            )
            image.pts, image.time_base = row, 1 / fps
            container.mux(stream.encode(image))
        if stream is None:
            raise InputError("a clip has frames", "none", "leave it out")
        container.mux(stream.encode(None))
    return out.getvalue()


def _stream(container: Any, fps: Fraction, height: int, width: int, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    context = stream.codec_context
    context.thread_count, context.gop_size, context.time_base = 1, GOP_FRAMES, 1 / fps
    context.colorspace, context.color_range = BT601, LIMITED_RANGE
    # x264's macroblock tree reads memory that nobody wrote: one 32 x 32 clip in ten had other bytes each time
    stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
    return stream
