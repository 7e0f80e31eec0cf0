"""Encoding and decoding: the right frames come back from every backend, bit for bit where coding is lossless."""

import io
import itertools
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamscale.data.decode import PREFERENCE, Backend, best_backend, decode_frames, why_unavailable
from flamscale.data.encode import LOSSLESS_CRF, NEAR_LOSSLESS_CRF, encode_frames
from flamscale.errors import ConfigError, DataError

NUM_FRAMES = 40
CODINGS: dict[str, dict[str, Any]] = {
    "no B-frames": {"bf": "0"},
    "B-frames": {"bf": "3", "b_strategy": "0", "b-pyramid": "normal"},
    "B-frames, open GOPs": {"bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"},
    "GOPs of many lengths": {"bf": "3", "b_strategy": "0", "g": "250", "keyframes": (5, 9, 10, 30)},
    "a late first frame": {"bf": "3", "b_strategy": "0", "delay": 37},
    "odd height and width": {"bf": "0", "height": 17, "width": 33},
    "29.97 frames a second": {"bf": "3", "b_strategy": "0", "fps": Fraction(30000, 1001)},
}


@pytest.fixture(params=PREFERENCE)
def backend(request: pytest.FixtureRequest) -> Backend:
    reason = why_unavailable(request.param)
    if reason:
        pytest.skip(f"{request.param} is not available here: {reason}")
    return request.param


@pytest.fixture
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "cv2", None)
    why_unavailable.cache_clear()
    yield
    why_unavailable.cache_clear()


def _numbered(num_frames: int, height: int = 16, width: int = 32) -> np.ndarray:
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    frames[:, 0, 0, 0] = np.arange(num_frames)
    return frames


def _waves(num_frames: int) -> np.ndarray:
    time, y, x = np.mgrid[0:num_frames, 0:64, 0:64] / 64
    waves = [np.sin(9 * x + 8 * time + phase) * np.cos(7 * y - 5 * time) for phase in (0, 2, 4)]
    return ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)


def _encode(
    frames: np.ndarray,
    codec: str = "libx264rgb",
    pix_fmt: str = "rgb24",
    fps: Fraction = Fraction(10),
    delay: int = 0,
    keyframes: tuple[int, ...] = (),
    **options: str,
) -> bytes:
    """An mp4 as others might write it."""
    buffer = io.BytesIO()
    height, width = frames.shape[1:3]
    options = {"crf": "0", "g": "16", "sc_threshold": "0", **options}
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            codec, rate=fps, options=options, width=width, height=height, pix_fmt=pix_fmt
        )
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index + delay, 1 / fps
            if index in keyframes:
                picture.pict_type = av.video.frame.PictureType.I
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    num_frames=st.integers(2, 70),
    fps=st.sampled_from([1.0, 7.3, 10.0, 12.5, 23.976, 25.0, 29.97, 30.0, 59.94, 120.0]),
    stride=st.integers(1, 5),
    data=st.data(),
)
def test_any_run_of_frames_comes_back_bit_for_bit(
    num_frames: int, fps: float, stride: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, num_frames - 1))
    count = data.draw(st.integers(1, (num_frames - 1 - first) // stride + 1))
    frames = _numbered(num_frames)
    decoded = decode_frames(encode_frames(frames, fps, LOSSLESS_CRF), first, count, stride)
    np.testing.assert_array_equal(decoded, frames[first : first + (count - 1) * stride + 1 : stride])


@pytest.mark.parametrize("coding", CODINGS)
def test_every_run_of_frames_is_found_however_the_video_is_coded(coding: str, backend: Backend) -> None:
    options = dict(CODINGS[coding])
    frames = _numbered(NUM_FRAMES, options.pop("height", 16), options.pop("width", 32))
    video = _encode(frames, **options)
    for first, count, stride in itertools.product(range(NUM_FRAMES), (1, 6, 16), (1, 3)):
        wanted = range(first, first + (count - 1) * stride + 1, stride)
        if wanted[-1] < NUM_FRAMES:
            decoded = decode_frames(video, first, count, stride, backend=backend)
            np.testing.assert_array_equal(decoded, frames[wanted], err_msg=str(wanted))


def test_near_lossless_coding_stays_above_45_db_on_smooth_moving_pictures() -> None:
    frames = _waves(32)
    decoded = decode_frames(encode_frames(frames, 10.0, NEAR_LOSSLESS_CRF), 0, 32)
    squared_error = ((decoded.astype(np.float64) - frames) ** 2).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / squared_error)).min() > 45


@pytest.mark.parametrize("num_threads", [1, 3])
def test_backends_and_numbers_of_threads_agree_bit_for_bit(backend: Backend, num_threads: int) -> None:
    frames = _waves(40)
    ours = encode_frames(frames, 10.0, NEAR_LOSSLESS_CRF)
    theirs = _encode(frames, "libx264", "yuv420p", crf="20", bf="3")
    for video in (ours, theirs):
        decoded = decode_frames(video, 5, 16, 2, backend=backend, num_threads=num_threads)
        np.testing.assert_array_equal(decoded, decode_frames(video, 5, 16, 2, backend="pyav"))


def test_frames_are_decoded_into_a_part_of_a_batch(backend: Backend) -> None:
    frames = _numbered(20)
    batch = np.zeros((2, 5, 16, 32, 3), dtype=np.uint8)
    out = batch[:, 3]
    assert decode_frames(encode_frames(frames, 10.0, LOSSLESS_CRF), 3, 2, 7, backend=backend, out=out) is out
    np.testing.assert_array_equal(batch[:, 3], frames[[3, 10]])
    assert not batch[:, [0, 1, 2, 4]].any()


def test_frames_that_do_not_fit_are_told(backend: Backend) -> None:
    video = encode_frames(_numbered(8), 10.0, LOSSLESS_CRF)
    with pytest.raises(DataError, match=r"Expected 4 frames of 32x32, found 4 of 16x32"):
        decode_frames(video, 0, 4, backend=backend, out=np.empty((4, 32, 32, 3), np.uint8))


def test_a_backend_that_is_not_installed_is_told_and_auto_does_without(without_opencv: None) -> None:
    video = encode_frames(_numbered(8), 10.0, LOSSLESS_CRF)
    with pytest.raises(ConfigError, match=r"opencv cannot be loaded \(.*cv2.*\): pip install .* or use auto"):
        decode_frames(video, 0, 4, backend="opencv")
    assert best_backend() == "pyav"
    np.testing.assert_array_equal(decode_frames(video, 0, 4), decode_frames(video, 0, 4, backend="pyav"))


@pytest.mark.parametrize("video", [b"", b"this is no video", b"\0" * 5000])
def test_bytes_that_are_no_video_are_told(video: bytes, backend: Backend) -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_frames(video, 0, 1, backend=backend)


def test_a_video_that_ends_too_early_is_told(backend: Backend) -> None:
    video = encode_frames(_numbered(8), 10.0, LOSSLESS_CRF)
    with pytest.raises(DataError, match=r"frames 5 to 9, and only 3 of 5 came out"):
        decode_frames(video, 5, 5, backend=backend)
    with pytest.raises(DataError, match=r"frames 8 to 8, and only 0 of 1 came out"):
        decode_frames(video, 8, 1, backend=backend)


def test_damaged_frames_are_told_rather_than_painted_over() -> None:
    video = encode_frames(_waves(48), 10.0, NEAR_LOSSLESS_CRF)
    middle = len(video) // 2
    damaged = video[:middle] + bytes(200) + video[middle + 200 :]
    with pytest.raises(DataError, match=r"cannot be decoded: the data of frame \d+ are damaged"):
        decode_frames(damaged, 0, 48)


def test_a_video_cut_short_is_told(backend: Backend) -> None:
    video = encode_frames(_numbered(48), 10.0, LOSSLESS_CRF)
    for size in (len(video) // 4, len(video) // 2, len(video) - 100):
        with pytest.raises(DataError, match=r"cannot be decoded|came out"):
            decode_frames(video[:size], 0, 48, backend=backend)
