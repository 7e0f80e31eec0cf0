"""Fixed pictures of a data set: evenly spread clips for evaluation, and the median frame: the scene, no movers."""

from itertools import chain

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from flamscale.data.clips import ClipSpace
from flamscale.data.mixture import Mixture
from flamscale.data.reader import ClipReader


def eval_clips(
    data: Mixture, split: str, *, clip_frames: int, frame_stride: int, num_clips: int
) -> UInt8[Tensor, "n T H W 3"]:
    """Returns `num_clips` clips spread evenly over a split, or all its non-overlapping clips if there are fewer.

    Always the same ones. In place of a damaged sample's clip stands the next good one.

    Raises:
        DataError: no such split, no sample long enough, or none that can be read.
    """
    span = (clip_frames - 1) * frame_stride + 1
    return _evenly(data, ClipSpace(data.of_split(split), clip_frames, frame_stride, clip_hop=span), num_clips)


def median_frame(data: Mixture, num_frames: int = 256) -> UInt8[Tensor, "H W 3"]:
    """Returns the per-pixel, per-channel median of `num_frames` training frames spread evenly (all, if fewer)."""
    frames = _evenly(data, ClipSpace(data.of_split("train"), 1, 1, 1), num_frames)
    return frames[:, 0].median(dim=0).values


def _evenly(data: Mixture, space: ClipSpace, count: int) -> UInt8[Tensor, "n T H W 3"]:
    """Reads `count` clips evenly spread over the clip space, or all of them if there are fewer."""
    total = space.num_clips
    reader = ClipReader(space, content=data.content, frame_shape=data.frame_shape)
    numbers = (np.arange(min(count, total)) * total) // min(count, total)
    wanted = [chain(range(number, total), range(number)) for number in numbers.tolist()]
    try:
        return torch.from_numpy(np.stack([clip for entry in wanted for clip in reader.read([entry])[0]]))
    finally:
        reader.close()
