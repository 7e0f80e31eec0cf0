"""PyAV, torchcodec and OpenCV behind one signature: (video, wanted, num_threads) in, RGB frames out, one by one.

`wanted` are the indices of the frames to return, ascending. Fewer come out of a video that ends too early.
"""

import importlib
import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from flamscale.errors import DataError

Frame = UInt8[np.ndarray, "H W 3"]

_PROBING = {"skip_frame": "all", "probesize": "2048"}
"""An mp4's header says all; probing would decode the first keyframe as well, a fifth of the time of a clip."""


def decode_pyav(video: bytes, wanted: range, num_threads: int) -> Iterator[Frame]:
    """Decodes from the keyframe on, and converts the wanted frames only.

    What did not pay: copying the planes of RGB video without swscale, other buffer sizes, fflags, slice threads.
    """
    num_found = 0
    reformatter = VideoReformatter()
    try:
        with av.open(io.BytesIO(video), "r", format="mp4", options=_PROBING) as container:
            stream = container.streams.video[0]
            stream.thread_type = "FRAME" if num_threads > 1 else "NONE"
            stream.codec_context.thread_count = num_threads
            frames_per_tick = float(stream.average_rate * stream.time_base)  # type: ignore[operator]
            start = stream.start_time or 0
            if wanted[0]:
                container.seek(start + round(wanted[0] / frames_per_tick), stream=stream)
            has_keyframe = False
            for picture in container.decode(stream):
                index = round((picture.pts - start) * frames_per_tick)  # type: ignore[operator]
                has_keyframe |= picture.key_frame  # what an open GOP shows before it refers to the GOP before
                if has_keyframe and picture.is_corrupt:
                    raise DataError(f"This video cannot be decoded: the data of frame {index} are damaged.")
                if index == wanted[num_found]:
                    yield _pixels(reformatter.reformat(picture, format="rgb24", threads=1))
                    num_found += 1
                if index >= wanted[-1]:
                    break
    except (av.FFmpegError, IndexError, TypeError, ZeroDivisionError) as error:  # no video stream, rate or time stamps
        raise DataError(f"This video cannot be decoded: {error}.") from error


def decode_torchcodec(video: bytes, wanted: range, num_threads: int) -> Iterator[Frame]:
    """Scans the packets of the whole sample first, which makes seeking exact at any frame rate."""
    torchcodec: Any = importlib.import_module("torchcodec")
    try:
        decoder = torchcodec.decoders.VideoDecoder(
            video, dimension_order="NHWC", num_ffmpeg_threads=num_threads, device="cpu"
        )
        stop = min(wanted.stop, len(decoder))
        frames = decoder.get_frames_in_range(wanted.start, stop, wanted.step).data if wanted.start < stop else []
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"This video cannot be decoded: {reason}.") from error
    for frame in frames:
        yield frame.numpy()


def decode_opencv(video: bytes, wanted: range, num_threads: int) -> Iterator[Frame]:
    """Reads from memory (OpenCV 4.12 or later), and goes back to a keyframe by trial."""
    cv2: Any = importlib.import_module("cv2")
    capture = cv2.VideoCapture(io.BytesIO(video), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, num_threads])
    if not capture.isOpened():
        raise DataError("This video cannot be decoded: OpenCV cannot open it.")
    if wanted[0]:
        capture.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
    for index in range(wanted.start, wanted.stop):
        if not capture.grab():
            break
        if index in wanted:
            yield cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)


def _pixels(rgb: VideoFrame) -> Frame:
    """The frame's own memory, without the padding at the end of its rows."""
    plane: Any = rgb.planes[0]  # a buffer, which PyAV's types do not say
    rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
    return rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
