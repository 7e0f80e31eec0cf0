"""The order of training data, a pure function: (seed, epoch, offset) -> clip number.

Shards are shuffled; then all clips of `window_shards` successive shards are shuffled together, so that reads stay near
each other and every clip comes exactly once an epoch. World size, workers and micro-batches play no part, so that a run
resumes at the very next clip on any number of machines. The bit stream of NumPy's Philox is guaranteed never to change.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64


class ClipOrder:
    """The endless order of clips: epoch after epoch, each shuffled anew.

    Args:
        shard_clips: clips in each shard; clip numbers run through the shards in this order.
        window_shards: shards shuffled together.
        seed: seed of the run.
    """

    def __init__(self, shard_clips: tuple[int, ...], window_shards: int, seed: int) -> None:
        self.num_clips = sum(shard_clips)
        self._shard_clips = np.asarray(shard_clips, dtype=np.int64)
        self._first_clip = np.cumsum(self._shard_clips) - self._shard_clips
        self._window_shards = window_shards
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._window = lru_cache(maxsize=2)(self._shuffle_window)

    def clip_at(self, epoch: int, offset: int) -> int:
        """Returns the clip at `offset` of `epoch`, 0 <= offset < num_clips; O(1) but for the first of a window."""
        _, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends, offset, side="right"))
        start = int(ends[window - 1]) if window else 0
        return int(self._window(epoch, window)[offset - start])

    def _shuffle_shards(self, epoch: int) -> tuple[Int64[np.ndarray, "shards"], Int64[np.ndarray, "windows"]]:
        """Returns the shards of an epoch in order, and the offset at which each window ends."""
        shards = _permutation(len(self._shard_clips), self._seed, epoch, 0)
        starts = np.arange(0, len(shards), self._window_shards)
        return shards, np.cumsum(np.add.reduceat(self._shard_clips[shards], starts))

    def _shuffle_window(self, epoch: int, window: int) -> Int64[np.ndarray, "clips"]:
        """Returns the clips of one window in order."""
        shards, _ = self._epoch(epoch)
        chosen = shards[window * self._window_shards : (window + 1) * self._window_shards]
        clips = np.concatenate(
            [self._first_clip[shard] + np.arange(self._shard_clips[shard], dtype=np.int64) for shard in chosen]
        )
        return clips[_permutation(len(clips), self._seed, epoch, window + 1)]


def _permutation(length: int, *entropy: int) -> Int64[np.ndarray, "length"]:
    bits = np.random.Philox(np.random.SeedSequence(entropy))
    return np.argsort(bits.random_raw(length), kind="stable")
