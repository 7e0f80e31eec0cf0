"""Shards in, this rank's micro-batches out, without end and in an order that does not depend on the world size.

Global batch b is positions [b*G, (b+1)*G) of the endless order; rank r takes the r-th contiguous share of it, in
micro-batches. The state is four values; a run that loads it continues with exactly the next global batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import torch

from flamscale.config import DataConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.manifest import Manifest
from flamscale.data.order import ClipOrder
from flamscale.data.prefetch import Prefetcher
from flamscale.data.reader import GoodClips, SampleReader, Transform
from flamscale.errors import ConfigError, DataError
from flamscale.types import Batch


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """Where the data stands: after the last complete global batch handed out."""

    epoch: int
    """Passes over the data completed (count)."""
    position: int
    """Clips of the current epoch already used (count)."""
    seed: int
    """Seed of the order."""
    manifest_hash: str
    """Identity of the data set."""


class ClipLoader:
    """Iterates over one rank's micro-batches; see the module's docstring and `DataConfig`.

    Args:
        manifest, split: the data.
        clip_frames, frame_stride, clip_hop: what a clip is; see `ClipSpace`.
        global_batch: clips of one optimiser step over all ranks (count).
        micro_batch: clips handed out at once (count).
        rank, world_size: this worker, of how many.
        seed: seed of the order.
        config: window, prefetching, cache and the share of damaged samples that is borne.
        transform: frame-wise map of decoded frames, applied once a sample where the cache is on.

    Raises:
        ConfigError: the batch sizes do not divide.
        DataError: no such split, or no sample is long enough for a clip.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        *,
        clip_frames: int,
        frame_stride: int,
        clip_hop: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
        config: DataConfig,
        transform: Transform | None = None,
    ) -> None:
        if global_batch % (world_size * micro_batch) or not 0 <= rank < world_size:
            raise ConfigError(
                f"global batch must be a multiple of micro-batch x world size = {micro_batch} x {world_size}, and rank "
                f"below the world size, got {global_batch} and rank {rank}."
            )
        self._space = ClipSpace(manifest.of_split(split), clip_frames, frame_stride, clip_hop)
        self._order = ClipOrder(self._space.shard_clips, config.window_shards, seed)
        reader = SampleReader(manifest, transform, config.cache_mib)
        self._clips = GoodClips(self._space, reader, config.max_bad_fraction, world_size)
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._rank, self._world_size = rank, world_size
        self._seed, self._manifest_hash = seed, manifest.hash
        self._prefetch_batches = config.prefetch_batches
        self._done = 0  # positions of the endless order behind the last complete global batch handed out
        self._stream: Iterator[tuple[Batch, int]] | None = None

    @property
    def num_clips(self) -> int:
        """Clips of one epoch, over all ranks (count)."""
        return self._space.num_clips

    @property
    def bad_samples(self) -> dict[str, str]:
        """Key of each damaged sample this rank has met, with what is wrong with it."""
        return dict(self._clips.bad_samples)

    @property
    def skipped_samples(self) -> int:
        """Damaged samples this rank has met (count)."""
        return len(self._clips.bad_samples)

    def state(self) -> LoaderState:
        """Returns the place after the last complete global batch handed out."""
        epoch, position = divmod(self._done, self.num_clips)
        return LoaderState(epoch=epoch, position=position, seed=self._seed, manifest_hash=self._manifest_hash)

    def load_state(self, state: LoaderState) -> None:
        """Continues after `state`, in constant time, at any world size.

        Raises:
            DataError: the state belongs to another data set or seed.
        """
        for name, here in (("manifest_hash", self._manifest_hash), ("seed", self._seed)):
            there = getattr(state, name)
            if there != here:
                raise DataError(
                    f"This data position was saved with {name.replace('_', ' ')} {there}, and the run now has {here}: "
                    f"resume with the same data set and seed, or start a new run directory."
                )
        self.close()
        self._done = state.epoch * self.num_clips + state.position

    def __iter__(self) -> "ClipLoader":
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            produce = self._produce(self._done)
            self._stream = Prefetcher(produce, self._prefetch_batches) if self._prefetch_batches else produce
        try:
            batch, self._done = next(self._stream)
        except BaseException:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Ends the background thread; iterating again goes on after the last complete global batch."""
        if isinstance(self._stream, Prefetcher):
            self._stream.close()
        self._stream = None

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _produce(self, start: int) -> Iterator[tuple[Batch, int]]:
        """Yields micro-batches from position `start` on, each with the position reached once it is handed out."""
        share = self._global_batch // self._world_size
        while True:
            mine = range(start + self._rank * share, start + (self._rank + 1) * share)
            for first in range(0, share, self._micro_batch):
                positions = mine[first : first + self._micro_batch]
                video = torch.stack([self._read(position) for position in positions])
                if first + self._micro_batch == share:
                    start += self._global_batch
                yield Batch(video, torch.tensor(list(positions), dtype=torch.int64)), start

    def _read(self, position: int) -> torch.Tensor:
        """Returns the clip at `position`, or where its sample is damaged, the next good one in the epoch's order."""
        epoch, offset = divmod(position, self.num_clips)
        steps = range(self.num_clips)
        return self._clips.first(self._order.clip_at(epoch, (offset + step) % self.num_clips) for step in steps)
