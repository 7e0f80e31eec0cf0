"""Video bytes in, checked; frames out. Damaged samples are counted and remembered, and good ones take their place."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from flamscale.data import storage
from flamscale.data.clips import ClipSpace
from flamscale.data.decode import decode_frames
from flamscale.data.manifest import Manifest, Shard
from flamscale.errors import DataError

_LOG = logging.getLogger(__name__)

Transform = Callable[[Tensor], Tensor]
"""Maps uint8 [F, H, W, 3] frames to [F, ...], each frame for itself (for example to codebook indices [F, N])."""


class BadSampleError(DataError):
    """One sample is damaged or missing; the data set around it may be fine."""


def read_video(manifest: Manifest, shard: Shard, sample: int) -> bytes:
    """Returns the mp4 of one sample by a range read.

    Raises:
        BadSampleError: it is missing, cut short, or its checksum is wrong.
        DataError: the storage cannot be reached or refuses access.
    """
    url, key = storage.join(manifest.url, shard.path), shard.keys[sample]
    column = shard.members["mp4"]
    try:
        video = storage.read_range(url, int(column.offsets[sample]), int(column.sizes[sample]))
    except FileNotFoundError:
        raise BadSampleError(f"sample {key}, whose shard {url} is missing") from None
    if hashlib.sha256(video).hexdigest() != shard.video_sha256[sample]:
        raise BadSampleError(f"sample {key} of {url}, whose checksum is not the manifest's")
    return video


class SampleReader:
    """Reads, checks, decodes and transforms clips.

    Args:
        manifest: the data set.
        transform: applied to the decoded frames; None keeps uint8 [T, H, W, 3].
        cache_mib: memory for whole decoded and transformed samples (MiB), least recently used out first; 0 decodes the
            frames of each clip alone.
    """

    def __init__(self, manifest: Manifest, transform: Transform | None = None, cache_mib: int = 0) -> None:
        self._manifest = manifest
        self._transform = transform
        self._cache: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._cache_limit_bytes = cache_mib * 2**20
        self.cache_bytes = 0

    def read(self, shard: Shard, sample: int, first: int, count: int, stride: int) -> Tensor:
        """Returns `count` frames of a sample, [T, ...]. Raises as `read_video`, and BadSampleError if undecodable."""
        if not self._cache_limit_bytes:
            return self._decode(shard, sample, first, count, stride)
        key = (shard.path, sample)
        frames = self._cache.get(key)
        if frames is None:
            frames = self._decode(shard, sample, 0, int(shard.frames[sample]), 1)
            self._keep(key, frames)
        else:
            self._cache.move_to_end(key)
        return frames[first : first + (count - 1) * stride + 1 : stride]

    def _decode(self, shard: Shard, sample: int, first: int, count: int, stride: int) -> Tensor:
        video = read_video(self._manifest, shard, sample)
        try:
            frames = torch.from_numpy(decode_frames(video, first, count, stride))
        except DataError as error:
            url = storage.join(self._manifest.url, shard.path)
            raise BadSampleError(f"sample {shard.keys[sample]} of {url}, of which the decoder says: {error}") from error
        if self._transform is None:
            return frames
        with torch.no_grad():
            return self._transform(frames)

    def _keep(self, key: tuple[str, int], frames: Tensor) -> None:
        self._cache[key] = frames
        self.cache_bytes += frames.nbytes
        while self.cache_bytes > self._cache_limit_bytes:
            _, dropped = self._cache.popitem(last=False)
            self.cache_bytes -= dropped.nbytes


class GoodClips:
    """Reads the first good one of a series of clips; keeps damaged samples in quarantine.

    Args:
        space: the clips.
        reader: reads one of them.
        max_bad_fraction: share of the samples this worker reads that may turn out damaged; not 0, it lets one pass.
        world_size: workers that share the samples (count).

    Attributes:
        bad_samples: key of each damaged sample met, with what is wrong with it.
    """

    def __init__(self, space: ClipSpace, reader: SampleReader, max_bad_fraction: float, world_size: int = 1) -> None:
        self.bad_samples: dict[str, str] = {}
        self._space = space
        self._reader = reader
        self._num_samples = sum(len(shard) for shard in space.shards)
        self._max_bad_fraction = max_bad_fraction
        self._share = self._num_samples / world_size  # of an epoch; later epochs bring other samples to this worker
        self._tried = [bytearray(len(shard)) for shard in space.shards]

    def first(self, candidates: Iterable[int]) -> Tensor:
        """Returns the first clip [T, ...] among the numbers `candidates` whose sample is sound.

        Raises:
            DataError: none is, or too many samples are damaged, or the storage cannot be reached.
        """
        for number in candidates:
            clip = self._space.clip(number)
            shard = self._space.shards[clip.shard]
            key = shard.keys[clip.sample]
            if key in self.bad_samples:
                continue
            self._tried[clip.shard][clip.sample] = 1
            try:
                return self._reader.read(
                    shard, clip.sample, clip.first, self._space.clip_frames, self._space.frame_stride
                )
            except BadSampleError as error:
                self._quarantine(key, error)
        raise DataError(
            f"Not one of the {self._num_samples} samples of this split can be read, the latest being "
            f"{self._latest()}; make or copy these shards anew."
        )

    def _quarantine(self, key: str, error: BadSampleError) -> None:
        self.bad_samples[key] = str(error)
        _LOG.warning("Leaving out %s.", error)
        expected = max(self._share, sum(map(sum, self._tried)))
        if len(self.bad_samples) > max(self._max_bad_fraction * expected, self._max_bad_fraction > 0):
            raise DataError(
                f"{len(self.bad_samples)} of {expected:.0f} samples are damaged, more than the allowed share of "
                f"{self._max_bad_fraction}, the latest being {self._latest()}; make or copy these shards anew, or "
                f"raise data.max-bad-fraction."
            ) from error

    def _latest(self) -> str:
        return next(reversed(self.bad_samples.values()), "unknown")
