"""Clip numbers in, frames out: byte ranges are fetched, checked against the manifest, decoded and cut.

A damaged sample costs only itself: the next candidate takes its place, and what was wrong is handed on. Reads a local
shard by its open file, a shard of an object store from its local copy if there is one, and else by range requests.
Knows no torch, so that worker processes start quickly.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flamscale.data import storage
from flamscale.data.clips import Clip, ClipSpace
from flamscale.data.decode import Backend, decode_frames
from flamscale.data.decode_latents import decode_latents
from flamscale.data.fetch import Contents, Fetcher
from flamscale.data.manifest import VIDEO
from flamscale.data.ranges import OpenFiles, SampleId
from flamscale.data.shard_cache import ShardCache
from flamscale.errors import DataError

Transform = Callable[[np.ndarray], np.ndarray]
"""Maps uint8 [F, H, W, 3] frames to [F, ...], each frame for itself (for example to codebook indices [F, N])."""

_AHEAD_BYTES = 2**25  # of samples requested ahead for a micro-batch; the others have to wait until it is read


class BadSampleError(DataError):
    """One sample is damaged or missing; the data set around it may be fine."""


@dataclass(frozen=True)
class Findings:
    """What a reader met on its way."""

    tried: set[SampleId] = field(default_factory=set)
    """Samples read, good or bad."""
    bad: dict[SampleId, str] = field(default_factory=dict)
    """Damaged ones, with what is wrong."""
    clips: list[Clip] = field(default_factory=list)
    """Where each clip that came of it lies."""


class ClipReader:
    """Reads clips of a clip space.

    Args:
        space: the clips.
        content: extension of the files read: videos, or pre-tokenised latents.
        cache_mib: memory for whole decoded and transformed samples (MiB), least recently used out first; 0 decodes the
            frames of each clip alone.
        transform: applied to the decoded frames; None keeps uint8 [T, H, W, 3].
        frame_shape: what a frame must be like, (H, W, 3) or (N,).
        decode_backend: see `decode_frames`.
        decode_threads: clips decoded at once (count).
        shard_cache: local copies of whole shards, used where there are any.
        fetcher: asks an object store for what there is no copy of; None for one that keeps nothing.
    """

    def __init__(
        self,
        space: ClipSpace,
        *,
        content: str = VIDEO,
        frame_shape: tuple[int, ...],
        cache_mib: int = 0,
        transform: Transform | None = None,
        decode_backend: Backend | Literal["auto"] = "auto",
        decode_threads: int = 1,
        shard_cache: ShardCache | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._space = space
        self._content = content
        self._frame_shape = frame_shape
        self._transform = transform
        self._decode_backend: Backend | Literal["auto"] = decode_backend
        self._decode_threads = decode_threads
        self._shard_cache = shard_cache
        self._fetcher = fetcher or Fetcher(space, content)
        self._cache: OrderedDict[SampleId, np.ndarray] = OrderedDict()
        self._cache_limit_bytes = cache_mib * 2**20
        self.cache_bytes = 0
        self._bad: set[SampleId] = set()
        self._sound: dict[int, bytearray] = {}  # marks of the samples of each local shard whose checksum was right
        self._local = {}  # path of every shard on local disk
        for number, shard in enumerate(space.shards):
            path = storage.local_path(shard.url)
            if path is not None:
                self._local[number] = path
        self._start()

    def _start(self) -> None:
        self._files = OpenFiles()
        self._cache_lock = threading.Lock()
        self._decoders = ThreadPoolExecutor(self._decode_threads, "decode") if self._decode_threads > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_files", "_cache_lock", "_decoders")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def batch(self, count: int, memory: memoryview | None = None) -> np.ndarray | None:
        """Returns an empty batch [count, T, H, W, 3], in `memory` if given, or None where clips are not decoded alone.

        To decode straight into it saves a copy, and pages that the system has to clear first.
        """
        if self._content != VIDEO or self._transform is not None or self._cache_limit_bytes:
            return None
        return np.ndarray((count, self._space.clip_frames, *self._frame_shape), np.uint8, memory)

    @property
    def in_store(self) -> bool:
        """Whether any shard lies in an object store."""
        return len(self._local) < len(self._space.shards)

    def request(self, numbers: Iterable[int]) -> Contents:
        """Sends the range requests for clips that will be read, as far as memory allows; returns what `read` takes."""
        samples: set[SampleId] = set()
        size_bytes = 0
        for clip in map(self._space.clip, numbers):
            sample_id = clip.shard, clip.sample
            if clip.shard in self._local or sample_id in self._bad:
                continue
            size_bytes += int(self._space.samples(clip.shard).members[self._content].sizes[clip.sample])
            if size_bytes > _AHEAD_BYTES:
                break
            samples.add(sample_id)
        return self._contents(samples)

    def read(
        self, wanted: Sequence[Iterable[int]], out: np.ndarray | None = None, requested: Contents | None = None
    ) -> tuple[list[np.ndarray], Findings]:
        """Reads a clip [T, ...] for each entry of `wanted`: the first of its clip numbers whose sample is sound.

        Args:
            wanted: clip numbers.
            out: decoded into and returned clip by clip, if given; made by `batch`.
            requested: what `request` returned for these clips, if it was asked.

        Raises:
            DataError: an entry has none, or the storage cannot be reached.
        """
        findings, requested = Findings(), requested or {}
        candidates = [iter(entry) for entry in wanted]
        read: dict[int, tuple[Clip, np.ndarray]] = {}
        while len(read) < len(wanted):
            chosen = {i: self._next_sound(candidates[i], findings) for i in range(len(wanted)) if i not in read}
            samples = {(clip.shard, clip.sample) for clip in chosen.values()}
            findings.tried.update(samples)
            contents = requested | self._contents(samples - requested.keys())
            run_each = map if self._decoders is None else self._decoders.map
            places = [None if out is None else out[i] for i in chosen]
            results = run_each(partial(self._read_clip, contents), chosen.values(), places)
            for (i, clip), result in zip(chosen.items(), results, strict=True):
                if isinstance(result, BadSampleError):
                    self._bad.add((clip.shard, clip.sample))
                    findings.bad[clip.shard, clip.sample] = str(result)
                else:
                    read[i] = clip, result
        findings.clips.extend(read[i][0] for i in range(len(wanted)))
        return [read[i][1] for i in range(len(wanted))], findings

    def want(self, shards: Iterable[int]) -> None:
        """Names the shards read next, so that the shard cache, if any, gets copies of those in an object store."""
        if self._shard_cache is not None:
            self._shard_cache.want(self._space.shards[shard] for shard in shards if shard not in self._local)

    def cancel(self) -> None:
        """Has reads under way in other threads give up at their next failure, until `close`."""
        self._fetcher.cancel()

    def close(self) -> None:
        """Closes files and ends threads; reading again opens them anew."""
        if self._decoders is not None:
            self._decoders.shutdown(cancel_futures=True)
        self._fetcher.close()
        if self._shard_cache is not None:
            self._shard_cache.close()
        self._files.close()
        self._start()

    def _next_sound(self, candidates: Iterator[int], findings: Findings) -> Clip:
        for number in candidates:
            clip = self._space.clip(number)
            if (clip.shard, clip.sample) not in self._bad:
                return clip
        num_samples = sum(len(shard) for shard in self._space.shards)
        latest = next(reversed(findings.bad.values()), "unknown")
        raise DataError(
            f"Not one of the {num_samples} samples of this split can be read, the latest being {latest}; make or copy "
            f"these shards anew."
        )

    def _contents(self, samples: Iterable[SampleId]) -> Contents:
        """Returns how to get the bytes of samples that are not decoded yet; sends the range requests this takes."""
        contents: Contents = {}
        remote: list[SampleId] = []
        for shard, sample in samples:
            if (shard, sample) in self._cache:
                continue
            member = self._space.samples(shard).members[self._content]
            offset, size_bytes = int(member.offsets[sample]), int(member.sizes[sample])
            if not size_bytes:
                contents[shard, sample] = bytes  # told as what it is when it is decoded
            elif shard in self._local:
                contents[shard, sample] = partial(self._files.read, self._local[shard], offset, size_bytes)
            elif (copy := self._copy_of(shard)) is not None:
                contents[shard, sample] = partial(self._read_copy, copy, offset, size_bytes)
            else:
                remote.append((shard, sample))
        return contents | self._fetcher.request(remote) if remote else contents

    def _copy_of(self, shard: int) -> Path | None:
        if self._shard_cache is None:
            return None
        copy = self._shard_cache.copy_of(self._space.shards[shard])
        return copy if copy in self._files or copy.exists() else None

    def _read_clip(self, contents: Contents, clip: Clip, out: np.ndarray | None) -> np.ndarray | BadSampleError:
        """Returns the clip's frames [T, ...], in `out` if given, or what is wrong with its sample."""
        shard, sample_id, space = self._space.shards[clip.shard], (clip.shard, clip.sample), self._space
        samples = space.samples(clip.shard)
        try:
            if not self._cache_limit_bytes:
                content = self._content_of(clip, contents)
                return self._decode(content, clip.first, space.clip_frames, space.frame_stride, out)
            frames = self._cached(sample_id)
            if frames is None:
                content = self._content_of(clip, contents)
                frames = self._decode(content, 0, int(samples.frames[clip.sample]), 1)
                self._keep(sample_id, frames)
            return frames[clip.first : clip.first + space.span : space.frame_stride]
        except FileNotFoundError:
            return BadSampleError(f"sample {samples.key(clip.sample)}, whose shard {shard.url} is missing")
        except BadSampleError as error:
            return BadSampleError(f"sample {samples.key(clip.sample)} of {shard.url}, {error}")

    def _content_of(self, clip: Clip, contents: Contents) -> bytes:
        """Returns the sample's file as the manifest knows it; what comes damaged from elsewhere is asked for again.

        What lies on local disk is checked the first time, and from then on by its length alone.
        """
        samples = self._space.samples(clip.shard)
        expected = samples.sha256(clip.sample)
        sample_id = clip.shard, clip.sample
        sound = self._sound.get(clip.shard)
        if sound is None:
            sound = self._sound[clip.shard] = bytearray(len(samples))
        get = contents.get(sample_id) or self._contents({sample_id})[sample_id]  # it fell out of the cache meanwhile
        content = get()
        if self._content != VIDEO and not samples.members[self._content].sizes[clip.sample]:
            raise BadSampleError("whose video was damaged when latents were made of it")
        if sound[clip.sample] and len(content) == samples.members[self._content].sizes[clip.sample]:
            return content
        if hashlib.sha256(content).digest() == expected:
            sound[clip.sample] = clip.shard in self._local
            return content
        if clip.shard not in self._local:
            content = self._fetcher.again(sample_id)
            if hashlib.sha256(content).digest() == expected:
                return content
        raise BadSampleError("whose checksum is not the manifest's")

    def _read_copy(self, copy: Path, offset: int, size_bytes: int) -> bytes:
        """Reads from a local copy; nothing, if it has gone meanwhile."""
        try:
            return self._files.read(copy, offset, size_bytes)
        except FileNotFoundError:
            return b""

    def _decode(self, content: bytes, first: int, count: int, stride: int, out: np.ndarray | None = None) -> np.ndarray:
        try:
            if self._content == VIDEO:
                frames = decode_frames(content, first, count, stride, backend=self._decode_backend, out=out)
            else:
                frames = decode_latents(content, first, count, stride)
        except DataError as error:
            raise BadSampleError(f"of which the decoder says: {error}") from error
        if frames.shape[1:] != self._frame_shape:
            raise BadSampleError(f"whose frames have the shape {frames.shape[1:]} and not {self._frame_shape}")
        return frames if self._transform is None else self._transform(frames)

    def _cached(self, sample_id: SampleId) -> np.ndarray | None:
        with self._cache_lock:
            frames = self._cache.get(sample_id)
            if frames is not None:
                self._cache.move_to_end(sample_id)
            return frames

    def _keep(self, sample_id: SampleId, frames: np.ndarray) -> None:
        with self._cache_lock:
            self.cache_bytes += frames.nbytes - getattr(self._cache.get(sample_id), "nbytes", 0)
            self._cache[sample_id] = frames
            while self.cache_bytes > self._cache_limit_bytes:
                _, dropped = self._cache.popitem(last=False)
                self.cache_bytes -= dropped.nbytes
