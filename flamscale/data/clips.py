"""Samples in, numbered clips out: clip i is (shard, sample, first frame) for a given length, stride and hop."""

from dataclasses import dataclass

import numpy as np

from flamscale.data.manifest import Shard
from flamscale.errors import DataError


@dataclass(frozen=True)
class Clip:
    """Where one clip lies."""

    shard: int
    """Number of the shard in its split."""
    sample: int
    """Number of the sample in its shard."""
    first: int
    """First frame in the sample's video."""


class ClipSpace:
    """All clips of a split, numbered shard by shard, sample by sample, by first frame.

    A sample has a clip at every `clip_hop`-th frame from which `clip_frames` frames `frame_stride` apart still fit.

    Attributes:
        num_clips: clips in all.
        shard_clips: clips in each shard.

    Raises:
        DataError: no sample is long enough for a single clip.
    """

    def __init__(self, shards: tuple[Shard, ...], clip_frames: int, frame_stride: int, clip_hop: int) -> None:
        self.shards = shards
        self.clip_frames = clip_frames
        self.frame_stride = frame_stride
        self.clip_hop = clip_hop
        self.span = (clip_frames - 1) * frame_stride + 1
        self._ends = []  # for each shard, the running number of clips after each of its samples
        for shard in shards:
            fitting = np.maximum(shard.frames - self.span, -1) // clip_hop + 1
            self._ends.append(np.cumsum(fitting))
        self.shard_clips = tuple(int(ends[-1]) if len(ends) else 0 for ends in self._ends)
        self._shard_ends = np.cumsum(self.shard_clips)
        self.num_clips = int(self._shard_ends[-1])
        if not self.num_clips:
            longest = max((int(shard.frames.max()) for shard in shards if len(shard)), default=0)
            raise DataError(
                f"A clip of {clip_frames} frames at stride {frame_stride} spans {self.span} frames, and the longest of "
                f"the {shards[0].split} samples has {longest}: choose shorter clips, or make shards of longer episodes."
            )

    def clip(self, number: int) -> Clip:
        """Returns clip `number`, 0 <= number < num_clips."""
        if not 0 <= number < self.num_clips:
            raise IndexError(f"clip {number} of {self.num_clips}")
        shard = int(np.searchsorted(self._shard_ends, number, side="right"))
        within_shard = number - (int(self._shard_ends[shard - 1]) if shard else 0)
        ends = self._ends[shard]
        sample = int(np.searchsorted(ends, within_shard, side="right"))
        within_sample = within_shard - (int(ends[sample - 1]) if sample else 0)
        return Clip(shard, sample, within_sample * self.clip_hop)
