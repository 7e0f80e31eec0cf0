"""Short films for the tests: scenes that move, cut and repeat, written with any codec, rate and time stamps."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def scene(seed: int, num_frames: int, height: int = 48, width: int = 64, speed: int = 1) -> np.ndarray:
    """A smooth random landscape that scrolls by `speed` pixels a frame; uint8 [F, H, W, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    landscape = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.stack([np.roll(landscape, speed * frame, axis=1) for frame in range(num_frames)])


def walk(seed: int, num_frames: int, size: int = 64) -> np.ndarray:
    """A camera that stands still before one person of 2x5 pixels, who walks a pixel a frame; uint8 [F, H, W, 3]."""
    frames = np.repeat(scene(seed, 1, size, size), num_frames, axis=0)
    for number, frame in enumerate(frames):
        left = (10 + number) % (size - 2)
        frame[40:45, left : left + 2] = 255 - frame[40:45, left : left + 2]
    return frames


def write_film(
    path: Path,
    frames: np.ndarray,
    *,
    fps: float = 10.0,
    codec: str = "libx264",
    crf: int = 12,
    times_ms: Sequence[int] | None = None,
) -> None:
    """Writes a film; `times_ms` gives each frame its own time stamp, in a container that keeps them (mkv)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": str(crf)} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 0 if codec == "libx264" else 4_000_000
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times_ms is not None:
                picture.pts, picture.time_base = times_ms[number], Fraction(1, 1000)
                stream.codec_context.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
