"""The bytes of a sample's latents (.npy) in; the codebook indices of a clip out."""

import io
import math
import struct
from functools import lru_cache

import numpy as np

from flamscale.data import npy
from flamscale.errors import DataError

_LENGTH = struct.Struct("<H")  # of the header, at byte 8


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and dtype of a .npy file; samples share a few headers, whose parsing takes longer than all else.

    Raises:
        ValueError: it is none of version 1.0, or holds other than rows of numbers.
    """
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the .npy format, where (1, 0) was expected")
    with npy.HEADERS:
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if in_columns or dtype.hasobject:
        raise ValueError(f"an array of {dtype}{' in Fortran order' * in_columns}, where rows of numbers were expected")
    return shape, dtype


def decode_latents(content: bytes, first: int, count: int, stride: int) -> np.ndarray:
    """Returns frames first, first + stride, ... (`count` of them) of pre-tokenised latents, integers [T, N].

    Raises:
        DataError: the bytes are no such array, or it ends before the last of these frames.
    """
    try:
        header_end = _LENGTH.unpack_from(content, 8)[0] + 10
        shape, dtype = _npy_header(content[:header_end])
        latents = np.frombuffer(content, dtype, math.prod(shape), header_end).reshape(shape)
    except (ValueError, EOFError, struct.error) as error:
        raise DataError(f"These latents cannot be read: {error}.") from error
    frames = latents[first : first + (count - 1) * stride + 1 : stride]
    if len(frames) != count:
        raise DataError(f"These latents should hold {count} frames from {first} on, and only {len(frames)} are there.")
    return frames
