"""Video bytes of one sample in, frames out: seeks to the keyframe before the first and decodes only what is needed."""

import io

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from flamscale.errors import DataError


def decode_frames(video: bytes, first: int, count: int, stride: int = 1) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes frames first, first + stride, ... (`count` of them) of a constant-rate video, on one thread.

    Raises:
        DataError: the bytes are no video, or it ends before the last of these frames.
    """
    last = first + (count - 1) * stride
    frames: list[np.ndarray] = []
    reformatter = VideoReformatter()
    try:
        with av.open(io.BytesIO(video), "r") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            frame_ticks = 1 / (stream.average_rate * stream.time_base)  # type: ignore[operator]
            start = stream.start_time or 0
            if first:
                container.seek(start + round(first * frame_ticks), stream=stream, backward=True)
            for picture in container.decode(stream):
                index = round((picture.pts - start) / frame_ticks)  # type: ignore[operator]
                if index >= first and (index - first) % stride == 0:
                    frames.append(reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray())
                if index >= last:
                    break
    except (av.FFmpegError, IndexError, TypeError, ZeroDivisionError) as error:  # no video stream, rate or time stamps
        raise DataError(f"This video cannot be decoded: {error}.") from error
    if len(frames) != count:
        raise DataError(f"This video should hold frames {first} to {last}, and only {len(frames)} of {count} came out.")
    return np.stack(frames)
