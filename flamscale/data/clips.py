"""Samples in, numbered clips out: clip i is (shard, sample, first frame) for a given length, stride and hop."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from flamscale.data.manifest import Samples, Shard
from flamscale.errors import DataError

_INDICES_KEPT = 256  # shards; a window of them is in use at a time


@dataclass(frozen=True)
class Clip:
    """Where one clip lies."""

    shard: int
    """Number of the shard in its clip space."""
    sample: int
    """Number of the sample in its shard."""
    first: int
    """First frame in the sample's video."""


class ClipSpace:
    """All clips of some shards, numbered shard by shard, sample by sample, by first frame.

    A sample has a clip at every `clip_hop`-th frame from which `clip_frames` frames `frame_stride` apart still fit.
    Of a shard only its number of clips stays in memory; the rest is read from the manifest's file when it is asked for.

    Attributes:
        num_clips: clips in all.
        shard_clips: int64 [shards], clips in each shard.

    Raises:
        DataError: no sample is long enough for a single clip.
    """

    def __init__(self, shards: tuple[Shard, ...], clip_frames: int, frame_stride: int, clip_hop: int) -> None:
        self.shards = shards
        self.clip_frames = clip_frames
        self.frame_stride = frame_stride
        self.clip_hop = clip_hop
        self.span = (clip_frames - 1) * frame_stride + 1
        self.shard_clips = np.array([self._fitting(shard.samples).sum() for shard in shards], dtype=np.int64)
        self._shard_ends = np.cumsum(self.shard_clips)
        self.num_clips = int(self._shard_ends[-1])
        self._indices: OrderedDict[int, tuple[Samples, np.ndarray]] = OrderedDict()
        if not self.num_clips:
            longest = max((int(shard.samples.frames.max()) for shard in shards if len(shard)), default=0)
            raise DataError(
                f"A clip of {clip_frames} frames at stride {frame_stride} spans {self.span} frames, and the longest of "
                f"the {shards[0].split} samples has {longest}: choose shorter clips, or make shards of longer episodes."
            )

    def clip(self, number: int) -> Clip:
        """Returns clip `number`, 0 <= number < num_clips."""
        if not 0 <= number < self.num_clips:
            raise IndexError(f"clip {number} of {self.num_clips}")
        shard = int(self._shard_ends.searchsorted(number, side="right"))
        within_shard = number - (int(self._shard_ends[shard - 1]) if shard else 0)
        _, ends = self._index(shard)
        sample = int(ends.searchsorted(within_shard, side="right"))
        within_sample = within_shard - (int(ends[sample - 1]) if sample else 0)
        return Clip(shard, sample, within_sample * self.clip_hop)

    def samples(self, shard: int) -> Samples:
        """Returns the samples of shard number `shard`."""
        return self._index(shard)[0]

    def mean_bytes(self, content: str) -> float:
        """Mean size of the file that a clip is read from (bytes), for files of one extension."""
        total = sum(
            int((self._fitting(shard.samples) * shard.samples.members[content].sizes).sum()) for shard in self.shards
        )
        return total / self.num_clips

    def _fitting(self, samples: Samples) -> np.ndarray:
        """int64 [samples], clips that fit into each."""
        return np.maximum(samples.frames - self.span, -1) // self.clip_hop + 1

    def _index(self, shard: int) -> tuple[Samples, np.ndarray]:
        """Returns a shard's samples, and the running number of its clips after each of them."""
        found = self._indices.get(shard)
        if found is None:
            samples = self.shards[shard].samples
            found = self._indices[shard] = samples, np.cumsum(self._fitting(samples))
            while len(self._indices) > _INDICES_KEPT:
                self._indices.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_indices": OrderedDict()}
