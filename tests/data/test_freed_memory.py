"""What native code has freed goes back to the system while clips are decoded."""

import ctypes
import itertools

import numpy as np
import psutil
import pytest

from flamscale.data.decode import decode_frames
from flamscale.data.encode import LOSSLESS_CRF, encode_frames
from flamscale.data.freed_memory import TRIM_EVERY

LIBC = ctypes.CDLL(None)
BLOCK, NUM_BLOCKS = 100_000, 1_000


@pytest.mark.skipif(not hasattr(LIBC, "malloc_trim"), reason="glibc alone keeps what was freed, and can give it back")
def test_memory_freed_in_the_midst_of_what_is_in_use_is_given_back_while_clips_are_decoded() -> None:
    LIBC.malloc.restype = ctypes.c_void_p
    LIBC.free.argtypes = [ctypes.c_void_p]
    video = encode_frames(np.zeros((2, 16, 16, 3), np.uint8), fps=10.0, crf=LOSSLESS_CRF)
    blocks = [LIBC.malloc(BLOCK) for _ in range(NUM_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    *freed, last = blocks
    for block in freed:
        LIBC.free(block)
    kept_bytes = psutil.Process().memory_info().rss
    for _ in itertools.repeat(None, TRIM_EVERY):
        decode_frames(video, 0, 1)
    given_back_bytes = kept_bytes - psutil.Process().memory_info().rss
    LIBC.free(last)
    assert given_back_bytes > 0.8 * BLOCK * NUM_BLOCKS
