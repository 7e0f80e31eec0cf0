"""Encoding and decoding: the right frames come back, bit for bit where coding is lossless."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamscale.data.decode import decode_frames
from flamscale.data.encode import LOSSLESS_CRF, NEAR_LOSSLESS_CRF, encode_frames
from flamscale.errors import DataError


def _numbered(num_frames: int, height: int = 16, width: int = 32) -> np.ndarray:
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    frames[:, 0, 0, 0] = np.arange(num_frames)
    return frames


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


def test_near_lossless_coding_stays_above_45_db_on_smooth_moving_pictures() -> None:
    time, y, x = np.mgrid[0:32, 0:64, 0:64] / 64
    waves = [np.sin(9 * x + 8 * time + phase) * np.cos(7 * y - 5 * time) for phase in (0, 2, 4)]
    frames = ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
    decoded = decode_frames(encode_frames(frames, 10.0, NEAR_LOSSLESS_CRF), 0, 32)
    squared_error = ((decoded.astype(np.float64) - frames) ** 2).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / squared_error)).min() > 45


@pytest.mark.parametrize("video", [b"", b"this is no video", b"\0" * 5000])
def test_bytes_that_are_no_video_are_told(video: bytes) -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_frames(video, 0, 1)


def test_a_video_that_ends_too_early_is_told() -> None:
    video = encode_frames(_numbered(8), 10.0, LOSSLESS_CRF)
    with pytest.raises(DataError, match=r"frames 5 to 9, and only 3 of 5 came out"):
        decode_frames(video, 5, 5)
