"""The order of training data, a pure function: position -> clip number, without end.

Shards are shuffled; then all clips of `window_shards` successive shards are shuffled together, so that reads stay near
each other and every clip comes exactly once an epoch. Of several data sets, each keeps such an order of its own, and
every position draws from one of them, in proportion to the weights. World size, workers and micro-batches play no part,
so that a run resumes at the very next clip on any number of machines. The bit stream of NumPy's Philox is guaranteed
never to change.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int64

_BLOCK = 1024
"""Positions within which a mixture holds its proportions to a clip for each data set."""


class ClipOrder:
    """The endless order of one data set's clips: epoch after epoch, each shuffled anew.

    Args:
        shard_clips: clips in each shard; clip numbers run through the shards in this order.
        window_shards: shards shuffled together.
        seed: seed of the run.
    """

    def __init__(self, shard_clips: Sequence[int] | Int64[np.ndarray, "shards"], window_shards: int, seed: int) -> None:
        self._shard_clips = np.asarray(shard_clips, dtype=np.int64)
        self.num_clips = int(self._shard_clips.sum())
        self._first_clip = np.cumsum(self._shard_clips) - self._shard_clips
        self._window_shards = window_shards
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._window = lru_cache(maxsize=2)(self._shuffle_window)

    def __reduce__(self) -> tuple[type["ClipOrder"], tuple[Any, ...]]:
        return ClipOrder, (self._shard_clips, self._window_shards, self._seed)

    def clip_at(self, epoch: int, offset: int) -> int:
        """Returns the clip at `offset` of `epoch`, 0 <= offset < num_clips; O(1) but for the first of a window."""
        window, start = self._find(epoch, offset)
        return int(self._window(epoch, window)[offset - start])

    def shards_near(self, epoch: int, offset: int) -> list[int]:
        """Returns the shards of the window at `offset`, then those of the window after it in this epoch."""
        first = self._find(epoch, offset)[0] * self._window_shards
        return self._epoch(epoch)[0][first : first + 2 * self._window_shards].tolist()

    def _find(self, epoch: int, offset: int) -> tuple[int, int]:
        """Returns the window that holds `offset`, and the offset at which it starts."""
        _, ends = self._epoch(epoch)
        window = int(ends.searchsorted(offset, side="right"))
        return window, int(ends[window - 1]) if window else 0

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


class MixtureOrder:
    """The endless order over the clips of one or several data sets; clip numbers run through them in turn.

    An epoch is as many positions as there are clips. With no weights it holds every clip of every data set once; with
    weights, each data set goes through epochs of its own, faster or slower.

    Args:
        parts: shard_clips of each data set.
        weights: how often each is drawn from, in any unit; none: by its number of clips.
        window_shards, seed: as in `ClipOrder`.
    """

    def __init__(
        self, parts: Sequence[Int64[np.ndarray, "shards"]], weights: Sequence[float], window_shards: int, seed: int
    ) -> None:
        seeds = [seed] if len(parts) == 1 else np.random.SeedSequence(seed).generate_state(len(parts)).tolist()
        self._orders = [ClipOrder(part, window_shards, own) for part, own in zip(parts, seeds, strict=True)]
        sizes = [order.num_clips for order in self._orders]
        self.num_clips = sum(sizes)
        self._first_clips = np.cumsum([0, *sizes]).tolist()
        self._first_shards = np.cumsum([0, *map(len, parts)]).tolist()
        self._weights = [Fraction(weight) for weight in weights] or [Fraction(size) for size in sizes]
        self._seed = seed
        self._block = lru_cache(maxsize=4)(self._shuffle_block)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_block"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._block = lru_cache(maxsize=4)(self._shuffle_block)

    def candidates(self, position: int) -> Iterator[int]:
        """Yields the clip at `position`, then those that stand in for it in turn: the ones after it in its epoch."""
        part, own = self._draw(position)
        order = self._orders[part]
        epoch, offset = divmod(own, order.num_clips)
        for step in range(order.num_clips):
            yield self._first_clips[part] + order.clip_at(epoch, (offset + step) % order.num_clips)

    def shards_near(self, position: int) -> Iterator[int]:
        """Yields, for each data set, the shards that are read from at `position`, then those that come next."""
        epoch, offset = divmod(position, self.num_clips)
        for part, (order, own) in enumerate(zip(self._orders, self._counts(epoch, offset), strict=True)):
            yield from (self._first_shards[part] + near for near in order.shards_near(*divmod(own, order.num_clips)))

    def _draw(self, position: int) -> tuple[int, int]:
        """Returns the data set drawn from at `position`, and the position in its own endless order."""
        if len(self._orders) == 1:
            return 0, position
        epoch, offset = divmod(position, self.num_clips)
        parts, own = self._block(epoch, offset // _BLOCK)
        return int(parts[offset % _BLOCK]), int(own[offset % _BLOCK])

    def _counts(self, epoch: int, offset: int) -> list[int]:
        """Returns how often each data set has been drawn from before `offset` of `epoch`; whole epochs count alike."""
        total, left = sum(self._weights), [self.num_clips, offset]
        counts = []
        for weight in self._weights:
            here = [int(count * weight / total) if total else 0 for count in left]
            counts.append(epoch * here[0] + here[1])
            left = [count - drawn for count, drawn in zip(left, here, strict=True)]
            total -= weight
        return counts

    def _shuffle_block(self, epoch: int, block: int) -> tuple[Int64[np.ndarray, "block"], Int64[np.ndarray, "block"]]:
        """Returns the data set and its own position for each position of a block."""
        start, end = block * _BLOCK, min((block + 1) * _BLOCK, self.num_clips)
        before, after = (np.array(self._counts(epoch, offset)) for offset in (start, end))
        drawn = after - before
        parts = np.repeat(np.arange(len(drawn)), drawn)
        own = np.concatenate([np.arange(first, last) for first, last in zip(before, after, strict=True)])
        shuffled = parts[_permutation(len(parts), self._seed, epoch, block, len(self._orders))]
        places = np.argsort(np.argsort(shuffled, kind="stable"), kind="stable")  # n-th draw of a part: its n-th clip
        return shuffled, own[places]


def _permutation(length: int, *entropy: int) -> Int64[np.ndarray, "length"]:
    bits = np.random.Philox(np.random.SeedSequence(entropy))
    return np.argsort(bits.random_raw(length), kind="stable")
