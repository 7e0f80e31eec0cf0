"""Fixed pictures of a data set: evenly spread clips for evaluation, and the median frame: the scene, no movers."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from flamscale.data.clips import Clip, ClipSpace
from flamscale.data.mixture import Mixture
from flamscale.data.reader import ClipReader
from flamscale.errors import DataError


def eval_clips(
    data: Mixture, split: str, *, clip_frames: int, frame_stride: int, num_clips: int
) -> UInt8[Tensor, "n T H W 3"]:
    """Returns `num_clips` clips spread evenly over a split, or all its non-overlapping clips if there are fewer.

    Always the same ones. In place of a damaged sample's clip stands the next good one.

    Raises:
        DataError: no such split, no sample long enough, or none that can be read.
    """
    return read_spread(data, eval_space(data, split, clip_frames=clip_frames, frame_stride=frame_stride), num_clips)[0]


def eval_clip(
    data: Mixture, split: str, number: int, *, clip_frames: int, frame_stride: int
) -> UInt8[Tensor, "T H W 3"]:
    """Returns clip `number`, from 0 up, of those of a split that do not overlap; a damaged one's next good one.

    Raises:
        DataError: there is no such split or clip, or none that can be read.
    """
    space = eval_space(data, split, clip_frames=clip_frames, frame_stride=frame_stride)
    if not 0 <= number < space.num_clips:
        raise DataError(
            f"Expected a clip number from 0 to {space.num_clips - 1}, of the {split} clips of {clip_frames} frames at "
            f"stride {frame_stride}, got {number}; choose one of these."
        )
    reader = ClipReader(space, content=data.content, frame_shape=data.frame_shape)
    try:
        (frames,), _ = reader.read([_from(number, space.num_clips)])
    finally:
        reader.close()
    return torch.from_numpy(frames)


def median_frame(data: Mixture, num_frames: int = 256) -> UInt8[Tensor, "H W 3"]:
    """Returns the per-pixel, per-channel median of `num_frames` training frames spread evenly (all, if fewer)."""
    frames, _ = read_spread(data, ClipSpace(data.of_split("train"), 1, 1, 1), num_frames)
    return frames[:, 0].median(dim=0).values


def eval_space(data: Mixture, split: str, *, clip_frames: int, frame_stride: int) -> ClipSpace:
    """Returns the clips of a split that do not overlap."""
    span = (clip_frames - 1) * frame_stride + 1
    return ClipSpace(data.of_split(split), clip_frames, frame_stride, clip_hop=span)


def read_spread(data: Mixture, space: ClipSpace, count: int) -> tuple[UInt8[Tensor, "n T H W 3"], list[Clip]]:
    """Reads `count` clips evenly spread over the clip space, or all if there are fewer; returns where each lay, too."""
    total = space.num_clips
    reader = ClipReader(space, content=data.content, frame_shape=data.frame_shape)
    frames: list[np.ndarray] = []
    places: list[Clip] = []
    try:
        for number in ((np.arange(min(count, total)) * total) // min(count, total)).tolist():
            read, findings = reader.read([_from(number, total)])
            frames += read
            places += findings.clips
    finally:
        reader.close()
    return torch.from_numpy(np.stack(frames)), places


def _from(number: int, total: int) -> Iterator[int]:
    """All of `total` clip numbers, beginning with `number`."""
    return chain(range(number, total), range(number))
