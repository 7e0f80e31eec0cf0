"""Latents of a clip from the bytes of an .npy file; anything else is refused in one sentence, and nothing unpickled."""

import io
from collections.abc import Callable

import numpy as np
import pytest

from flamscale.data.decode_latents import decode_latents
from flamscale.errors import DataError


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize(("first", "count", "stride"), [(0, 12, 1), (3, 4, 2), (11, 1, 5)])
def test_it_gives_the_frames_asked_for(dtype: type, first: int, count: int, stride: int) -> None:
    latents = np.random.default_rng(0).integers(0, 60_000, (12, 5)).astype(dtype)
    found = decode_latents(_npy(latents), first, count, stride)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, latents[first : first + count * stride : stride])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:50],
        lambda content: content[:-1],
        lambda content: b"x" + content[1:],
        lambda content: content[:6] + b"\x02" + content[7:],
        lambda _: _npy(np.array([{"a": 1}], dtype=object)),
        lambda _: _npy(np.asfortranarray(np.ones((3, 4)))),
    ],
    ids=["empty", "header cut", "data cut", "magic", "version", "pickled", "columns"],
)
def test_other_bytes_are_refused_in_one_sentence(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DataError, match=r"^These latents cannot be read: [^\n]*\.$"):
        decode_latents(damage(_npy(np.ones((12, 5), np.uint16))), 0, 4, 1)


def test_latents_that_end_too_early_are_told() -> None:
    with pytest.raises(DataError, match=r"should hold 4 frames from 10 on, and only 2 are there"):
        decode_latents(_npy(np.ones((12, 5), np.uint16)), 10, 4, 1)
