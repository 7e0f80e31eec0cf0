"""Video bytes of one sample in, frames out: seeks to the keyframe before the first and decodes only what is needed.

Three backends do the same work. All of them find every frame exactly, and give the same bits on our own shards (coded
as RGB, see encode.py) and on other 8-bit video. On 10-bit video their colours differ, by up to 30 levels in a trial.

The default, "auto", is the first of PREFERENCE that can be loaded. That is PyAV: it is always installed, and it gave
the most clips a second at GOP 16 in recipes/benchmark_decode.py: torchcodec gave 0.7 to 0.9 of it, OpenCV 0.6 to 0.8.
OpenCV leads by up to a fifth only on whole samples and long GOPs of small frames. Being the same on every machine, PyAV
also keeps a resumed run on the same pixels.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from flamscale.data.decode_backends import decode_opencv, decode_pyav, decode_torchcodec
from flamscale.data.freed_memory import note_decoded_clip
from flamscale.errors import ConfigError, DataError

Backend = Literal["pyav", "torchcodec", "opencv"]
PREFERENCE: tuple[Backend, ...] = ("pyav", "torchcodec", "opencv")
"""Backends by clips a second at GOP 16, best first."""

MODULES: dict[Backend, str] = {"pyav": "av", "torchcodec": "torchcodec", "opencv": "cv2"}
_DECODERS: dict[Backend, Callable[[bytes, range, int], Iterator[np.ndarray]]] = {
    "pyav": decode_pyav,
    "torchcodec": decode_torchcodec,
    "opencv": decode_opencv,
}


def decode_frames(
    video: bytes,
    first: int,
    count: int,
    stride: int = 1,
    *,
    backend: Backend | Literal["auto"] = "auto",
    num_threads: int = 1,
    out: UInt8[np.ndarray, "T H W 3"] | None = None,
) -> UInt8[np.ndarray, "T H W 3"]:
    """Decodes frames first, first + stride, ... (`count` of them) of an mp4 with a constant frame rate.

    Args:
        video: the whole file.
        first: index of the first frame.
        count: frames to return.
        stride: frames from one to the next.
        backend: "auto" for the best that is available.
        num_threads: threads that decode this one clip. To start them costs more than they save below about 256x256;
            decoding several clips at a time from threads of your own comes first.
        out: array to decode into, for example a part of a batch in shared memory; a new one if not given.

    Returns:
        RGB frames: `out`, where given.

    Raises:
        ConfigError: the backend cannot be loaded here.
        DataError: the bytes are no video, are damaged, end before the last of these frames, or do not fit `out`.
    """
    assert first >= 0
    assert min(count, stride, num_threads) >= 1
    name = best_backend() if backend == "auto" else backend
    missing = why_unavailable(name)
    if missing:
        raise ConfigError(
            f"The decoding backend {name} cannot be loaded ({missing}): pip install 'flamscale[decode]' (torchcodec "
            f"needs the system's FFmpeg too), or use auto."
        )
    wanted = range(first, first + (count - 1) * stride + 1, stride)
    num_decoded = 0
    for num_decoded, frame in enumerate(_DECODERS[name](video, wanted, num_threads), start=1):
        if out is None:
            out = np.empty((count, *frame.shape), np.uint8)
        if out.shape != (count, *frame.shape):
            raise DataError(
                f"Expected {out.shape[0]} frames of {out.shape[1]}x{out.shape[2]}, found {count} of "
                f"{frame.shape[0]}x{frame.shape[1]}."
            )
        out[num_decoded - 1] = frame
    note_decoded_clip()
    if out is None or num_decoded != count:
        raise DataError(
            f"This video should hold frames {first} to {wanted[-1]}, and only {num_decoded} of {count} came out."
        )
    return out


def best_backend() -> Backend:
    """Returns the first backend of PREFERENCE that can be loaded."""
    return next(name for name in PREFERENCE if why_unavailable(name) is None)


@cache
def why_unavailable(backend: Backend) -> str | None:
    """Returns the reason why `backend` cannot be loaded here, or None where it can."""
    try:
        importlib.import_module(MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec without FFmpeg's libraries: a RuntimeError
        return str(error).splitlines()[0].split(". ")[0]
    return None
