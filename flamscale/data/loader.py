"""Shards in, this rank's micro-batches out, without end and in an order that does not depend on the world size.

Global batch b is positions [b*G, (b+1)*G) of the endless order; rank r takes the r-th contiguous share of it, in
micro-batches. The state is four values; a run that loads it continues with exactly the next global batch.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from flamscale.config import DataConfig
from flamscale.data.actions import TrueActions
from flamscale.data.clips import ClipSpace
from flamscale.data.fetch import Fetcher
from flamscale.data.mixture import Mixture
from flamscale.data.order import MixtureOrder
from flamscale.data.position_reader import PositionReader
from flamscale.data.reader import ClipReader, Findings, SampleId, Transform
from flamscale.data.shard_cache import ShardCache, temporary_cache
from flamscale.data.workers import ReadAhead
from flamscale.errors import ConfigError, DataError
from flamscale.types import Batch

_LOG = logging.getLogger(__name__)


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
        data, split: the data.
        clip_frames, frame_stride, clip_hop: what a clip is; see `ClipSpace`.
        global_batch: clips of one optimiser step over all ranks (count).
        micro_batch: clips handed out at once (count).
        rank, world_size: this worker, of how many.
        seed: seed of the order.
        config: window, processes, prefetching, caches and the share of damaged samples that is borne.
        transform: frame-wise map of decoded frames, applied once a sample where the cache is on; in this process only.
        actions: true actions of this split, which batches shall carry.
        node_ranks: ranks that share this node's local copies of shards (count).

    Raises:
        ConfigError: the batch sizes do not divide, or the shared memory is too small.
        DataError: no such split, or no sample is long enough for a clip.
    """

    def __init__(
        self,
        data: Mixture,
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
        actions: TrueActions | None = None,
        node_ranks: int = 1,
    ) -> None:
        if global_batch % (world_size * micro_batch) or not 0 <= rank < world_size:
            raise ConfigError(
                f"global batch must be a multiple of micro-batch x world size = {micro_batch} x {world_size}, and rank "
                f"below the world size, got {global_batch} and rank {rank}."
            )
        assert transform is None or config.num_processes == 0, "a transform stays in its process"
        assert actions is None or frame_stride == 1, "one true action leads from frame to frame"
        shards = data.train_shards(config.train_samples) if split == "train" else data.of_split(split)
        space = ClipSpace(shards, clip_frames, frame_stride, clip_hop)
        shard_cache = _shard_cache(config, space, node_ranks / world_size)
        order = MixtureOrder(data.clips_of_parts(space, split), data.weights, config.window_shards, seed)
        self._reader = ClipReader(
            space,
            content=data.content,
            frame_shape=data.frame_shape,
            cache_mib=config.cache_mib,
            transform=transform,
            decode_backend=config.decode_backend,
            decode_threads=config.decode_threads,
            shard_cache=shard_cache,
            fetcher=None if shard_cache else _fetcher(config, space, data, world_size),
        )
        self._read = PositionReader(order, self._reader)
        self._batch_bytes = micro_batch * clip_frames * data.frame_bytes
        self._quarantine = Quarantine(space, config.max_bad_fraction, world_size)
        self._config = config
        self._actions, self._clip_frames = actions, clip_frames
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._rank, self._world_size = rank, world_size
        self._seed, self._manifest_hash = seed, data.hash
        self.num_clips = space.num_clips
        """Clips of one epoch, over all ranks (count)."""
        self._done = 0  # positions of the endless order behind the last complete global batch handed out
        self._restarts = 0
        self._stream: ReadAhead | None = None

    @property
    def bad_samples(self) -> dict[str, str]:
        """Shard and key of each damaged sample this rank has met, with what is wrong with it."""
        return dict(self._quarantine.bad_samples)

    @property
    def skipped_samples(self) -> int:
        """Damaged samples this rank has met (count)."""
        return len(self._quarantine.bad_samples)

    @property
    def restarts(self) -> int:
        """How often processes that read for this rank died and were replaced (count)."""
        return self._restarts + (self._stream.restarts if self._stream else 0)

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
            self._stream = ReadAhead(
                self._read,
                self._micro_batches(self._done),
                depth=self._config.prefetch_batches,
                num_processes=self._config.num_processes,
                batch_bytes=self._batch_bytes,
            )
        try:
            positions, clips, findings = next(self._stream)
            self._quarantine.note(findings)
        except BaseException:
            self.close()
            raise
        share = self._global_batch // self._world_size
        last_of_share = self._done + (self._rank + 1) * share - 1
        if positions[-1] == last_of_share:
            self._done += self._global_batch
        if clips.dtype != np.uint8:
            clips = clips.astype(np.int64)  # by torch's threads it would take turns with the processes that read
        actions = None if self._actions is None else self._actions.of(findings.clips, self._clip_frames)
        return Batch(torch.from_numpy(clips), torch.arange(positions.start, positions.stop), actions)

    def close(self) -> None:
        """Ends what reads ahead; iterating again goes on after the last complete global batch."""
        if self._stream is not None:
            self._stream.close()
            self._restarts += self._stream.restarts
        self._stream = None

    def __enter__(self) -> "ClipLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _micro_batches(self, start: int) -> Iterator[range]:
        """Yields the positions of this rank's micro-batches from the global batch at `start` on."""
        share = self._global_batch // self._world_size
        while True:
            first = start + self._rank * share
            for offset in range(0, share, self._micro_batch):
                yield range(first + offset, first + offset + self._micro_batch)
            start += self._global_batch


def _shard_cache(config: DataConfig, space: ClipSpace, node_share: float) -> ShardCache | None:
    """Returns the cache of shards in a store, unless it is off or this node needs less than half of their samples."""
    in_store = any("://" in shard.url for shard in space.shards)
    if not config.shard_cache or _samples_share(space, node_share) < 0.5 or not in_store:
        return None
    limit_bytes = int(config.shard_cache_gib * 2**30)
    return temporary_cache(limit_bytes) if config.shard_cache == "auto" else ShardCache(config.shard_cache, limit_bytes)


def _fetcher(config: DataConfig, space: ClipSpace, data: Mixture, world_size: int) -> Fetcher:
    """Returns who reads without copies; it keeps what it fetched, unless a process meets few samples a second time.

    Where it can keep all that a window holds, it fetches in blocks.
    """
    if _samples_share(space, 1 / (world_size * max(config.num_processes, 1))) < 0.5:
        return Fetcher(space, data.content)
    largest = sorted(shard.size_bytes for shard in space.shards)[-config.window_shards * len(data.manifests) :]
    limit_bytes = config.fetch_cache_mib * 2**20
    return Fetcher(space, data.content, limit_bytes=limit_bytes, in_blocks=sum(largest) <= limit_bytes)


def _samples_share(space: ClipSpace, clips_share: float) -> float:
    """Returns the share of all samples that are met by whoever reads a random share of the clips."""
    clips_a_sample = space.num_clips / sum(len(shard) for shard in space.shards)
    return 1 - (1 - min(clips_share, 1)) ** clips_a_sample


class Quarantine:
    """Keeps the damaged samples a rank has met, and ends the run when there are too many.

    Args:
        space: the clips.
        max_bad_fraction: share of the samples this rank reads that may turn out damaged; not 0, it lets one pass.
        world_size: ranks that share the samples (count).

    Attributes:
        bad_samples: shard and key of each, with what is wrong with it.
    """

    def __init__(self, space: ClipSpace, max_bad_fraction: float, world_size: int) -> None:
        self.bad_samples: dict[str, str] = {}
        self._space = space
        self._max_bad_fraction = max_bad_fraction
        self._share = sum(len(shard) for shard in space.shards) / world_size  # of an epoch; later ones bring others
        self._tried: dict[int, bytearray] = {}
        self._num_tried = 0

    def note(self, findings: Findings) -> None:
        """Takes up what a reader met; raises DataError where too many samples are damaged."""
        for shard, sample in findings.tried:
            marks = self._tried.setdefault(shard, bytearray(len(self._space.shards[shard])))
            self._num_tried += not marks[sample]
            marks[sample] = 1
        for sample_id, reason in findings.bad.items():
            self._add(sample_id, reason)

    def _add(self, sample_id: SampleId, reason: str) -> None:
        shard, sample = sample_id
        key = f"{self._space.shards[shard].url}/{self._space.samples(shard).key(sample)}"
        if key in self.bad_samples:  # another process of this rank met it too
            return
        self.bad_samples[key] = reason
        _LOG.warning("Leaving out %s.", reason)
        expected = max(self._share, self._num_tried)
        if len(self.bad_samples) > max(self._max_bad_fraction * expected, self._max_bad_fraction > 0):
            raise DataError(
                f"{len(self.bad_samples)} of {expected:.0f} samples are damaged, more than the allowed share of "
                f"{self._max_bad_fraction}, the latest being {reason}; make or copy these shards anew, or raise "
                f"data.max-bad-fraction."
            )
