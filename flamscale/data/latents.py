"""Pre-tokenised latents of a data set: its videos and a frozen tokenizer in; tars of codebook indices out, and checked.

Latents are a data set of their own, with the shards, samples and frames of the videos in the same order: clips and
their order are then the same too. Each member is key.latent-<hash>.npy, the indices [F, N] of all frames of a sample;
a damaged video has none. Every finished tar leaves a record, from which a run that was killed goes on; the manifest,
which names the data set and the tokenizer by their hashes, comes last.
"""

import hashlib
import io
import logging
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from flamscale.data import storage
from flamscale.data.decode import decode_frames
from flamscale.data.manifest import VIDEO, Manifest, Members, Samples, Shard
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError, DataError

Encode = Callable[[UInt8[np.ndarray, "M H W 3"]], Int[np.ndarray, "M N"]]
"""Maps frames to codebook indices, each frame for itself."""

_LOG = logging.getLogger(__name__)
_RECORDS = "unfinished"  # folder of the records of finished tars, until all are finished
_REQUEST_BYTES = 32 * 2**20  # videos read by one request


def latents_url(data_url: str, tokenizer_hash: str) -> str:
    """Returns the place of a data set's latents where no other is given."""
    return storage.join(data_url, f"latents-{tokenizer_hash[:12]}")


def load_latents(urls: Sequence[str], data: Mixture, tokenizer_hash: str) -> Mixture:
    """Returns the latents that take the place of videos.

    Args:
        urls: where the latents of each data set lie, in the order of the data sets.
        data: the videos.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer whose indices are wanted.

    Raises:
        ConfigError: there are none, or they were made from other videos or by another tokenizer.
        DataError: a manifest cannot be read.
    """
    pairs = zip(urls, data.manifests, strict=True)
    return Mixture(tuple(_load(url, videos, tokenizer_hash) for url, videos in pairs), data.weights)


def _load(url: str, videos: Manifest, tokenizer_hash: str) -> Manifest:
    latents = Manifest.find(url)
    remedy = f"make latents of {videos.url} by this tokenizer with recipes/tokenize_shards.py, or pass those"
    if latents is None:
        raise ConfigError(f"Expected latents at {url}, but there is no finished set of them: {remedy}.")
    if latents.content == VIDEO:
        raise ConfigError(f"Expected latents at {url}, found a data set of videos: {remedy}.")
    if latents.identity != videos.hash:
        raise ConfigError(
            f"The latents at {url} should be those of {videos.url} (manifest {videos.hash[:12]}), and were made from "
            f"another data set (manifest {latents.identity[:12]}): {remedy}."
        )
    if latents.arguments["tokenizer"] != tokenizer_hash:
        raise ConfigError(
            f"The latents at {url} should be made by this run's tokenizer ({tokenizer_hash[:12]}), and were made by "
            f"another ({latents.arguments['tokenizer'][:12]}): {remedy}."
        )
    for there, here in zip(latents.shards, videos.shards, strict=True):
        if not np.array_equal(there.samples.frames, here.samples.frames):
            raise ConfigError(
                f"The latents in {there.url} should have the {here.samples.frames.sum():,} frames of {here.url}, and "
                f"have {there.samples.frames.sum():,}: {remedy}."
            )
    return latents


class Done(NamedTuple):
    """A piece of the work."""

    frames: int
    """Frames whose latents are there now (count)."""
    encoded: bool
    """Whether this run encoded them, and not one before it."""


@dataclass(frozen=True, kw_only=True)
class LatentsWriter:
    """Writes the latents of a data set.

    Raises:
        ConfigError: the data set holds no videos, or other latents lie at the URL.
    """

    data: Manifest
    """The videos."""
    url: str
    """Folder or URL to write to."""
    encode: Encode
    tokenizer_hash: str
    """`Tokenizer.hash`."""
    grid: tuple[int, int]
    """Rows and columns of a frame's tokens (count)."""
    codebook_size: int
    """Codebook entries (count)."""
    batch_frames: int = 256
    """Frames encoded at once (count)."""
    decode_threads: int = 1
    """Samples decoded at once (count)."""
    max_bad_fraction: float = 0.01
    """Share of samples that may turn out damaged (0 to 1); one always may, unless this is 0."""

    def __post_init__(self) -> None:
        if self.data.content != VIDEO:
            raise ConfigError(f"Expected a data set of videos at {self.data.url}, found latents: pass their data set.")
        existing = Manifest.find(self.url)
        if existing is not None:
            self._check_same(existing)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the latents are made from: the same make the same latents."""
        return {"manifest_hash": self.data.hash, "tokenizer": self.tokenizer_hash}

    @property
    def content(self) -> str:
        """Extension of a sample's member."""
        return f"latent-{self.tokenizer_hash[:12]}.npy"

    def _check_same(self, existing: Manifest) -> None:
        if existing.arguments != self.arguments:
            raise ConfigError(
                f"{existing.url} already holds a data set made from other arguments ({existing.arguments}, now "
                f"{self.arguments}): choose another --out, or delete that one first."
            )

    def write(self) -> Iterator[Done]:
        """Writes all tars that are not there yet, then the manifest; yields the work as it is done.

        Raises:
            ConfigError: an unfinished set of other latents lies there.
            DataError: a shard is missing, too many samples are damaged, or nothing can be written.
        """
        storage.check_writable(self.url)
        records = storage.join(self.url, _RECORDS)
        shards, numbers = [], Counter[str]()
        for videos in self.data.shards:
            path = f"{videos.split}/{numbers[videos.split]:06d}.tar"
            numbers[videos.split] += 1
            record = Manifest.find(storage.join(records, path))
            if record is None:
                shard = yield from self._write_shard(videos, path)
                self._manifest([shard]).save(storage.join(records, path))
            else:
                self._check_same(record)
                (shard,) = record.shards
                yield Done(int(shard.samples.frames.sum()), encoded=False)
            shards.append(shard)
        self._check_damaged(shards)
        self._manifest(shards).save(self.url)
        storage.remove_folder(records)

    def _check_damaged(self, shards: Sequence[Shard]) -> None:
        num_samples = sum(map(len, shards))
        num_bad = sum(int((shard.samples.members[self.content].sizes == 0).sum()) for shard in shards)
        if num_bad > max(self.max_bad_fraction * num_samples, self.max_bad_fraction > 0):
            raise DataError(
                f"{num_bad} of the {num_samples} samples of {self.data.url} are damaged, more than the allowed share "
                f"of {self.max_bad_fraction}; make or copy these shards anew and delete {self.url}, or raise "
                f"--max-bad-fraction."
            )

    def _manifest(self, shards: Sequence[Shard]) -> Manifest:
        return Manifest(
            name=self.data.name,
            source=self.data.source,
            content=self.content,
            fps=self.data.fps,
            height=self.grid[0],
            width=self.grid[1],
            arguments=self.arguments,
            shards=tuple(shards),
        )

    def _write_shard(self, videos: Shard, path: str) -> Generator[Done, None, Shard]:
        """Writes one tar; yields each sample when it is done, and returns its row of the manifest."""
        samples, files = videos.samples, list[bytes]()
        for latents in self._latents(videos):
            files.append(_npy(latents) if len(latents) else b"")
            yield Done(int(samples.frames[len(files) - 1]), encoded=True)
        content, members = _tar(samples.keys, files, self.content)
        storage.write_bytes(storage.join(self.url, path), content)
        return Shard.of(
            path=path,
            split=videos.split,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            samples=Samples.of(
                keys=samples.keys,
                frames=samples.frames,
                sha256=[hashlib.sha256(file).hexdigest() for file in files],
                members={self.content: members},
            ),
        )

    def _latents(self, videos: Shard) -> Iterator[Int[np.ndarray, "F N"]]:
        """Yields the latents of each sample, those of a damaged one with F = 0."""
        group: list[np.ndarray] = []
        for frames in self._frames(videos):
            group.append(frames)
            if sum(map(len, group)) >= self.batch_frames:
                yield from self._encode_group(group)
                group = []
        yield from self._encode_group(group)

    def _encode_group(self, videos: list[np.ndarray]) -> list[Int[np.ndarray, "F N"]]:
        if not videos:
            return []
        frames = np.concatenate(videos)
        dtype = np.uint16 if self.codebook_size <= 2**16 else np.int32  # never uint8, which means pixels
        latents = np.empty((len(frames), self.grid[0] * self.grid[1]), dtype)
        for first in range(0, len(frames), self.batch_frames):
            batch = slice(first, first + self.batch_frames)
            latents[batch] = self.encode(frames[batch])
        return np.split(latents, np.cumsum([len(video) for video in videos])[:-1])

    def _frames(self, videos: Shard) -> Iterator[UInt8[np.ndarray, "F H W 3"]]:
        """Yields all frames of each sample, decoded ahead by threads; none of a damaged one."""
        samples, pending = videos.samples, deque[Future[np.ndarray]]()
        with ThreadPoolExecutor(self.decode_threads, "decode") as pool:
            for sample, video in enumerate(_read(videos)):
                pending.append(pool.submit(self._decode, videos, samples, sample, video))
                if len(pending) > self.decode_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _decode(self, shard: Shard, samples: Samples, sample: int, video: bytes) -> UInt8[np.ndarray, "F H W 3"]:
        shape = (self.data.height, self.data.width, 3)
        try:
            if hashlib.sha256(video).digest() != samples.sha256(sample):
                raise DataError("Its checksum is not the manifest's.")
            frames = decode_frames(video, 0, int(samples.frames[sample]))
            if frames.shape[1:] != shape:
                raise DataError(f"Its frames have the shape {frames.shape[1:]} and not {shape}.")
        except DataError as error:
            _LOG.warning("No latents of sample %s of %s, which is damaged: %s", samples.key(sample), shard.url, error)
            return np.empty((0, *shape), np.uint8)
        return frames


def _read(shard: Shard) -> Iterator[bytes]:
    """Yields the video of each sample, read by few and large requests."""
    offsets, sizes = shard.samples.members[VIDEO].offsets, shard.samples.members[VIDEO].sizes
    ends, first = offsets + sizes, 0
    while first < len(shard):
        start, last = int(offsets[first]), first + 1
        while last < len(shard) and ends[last - 1] <= offsets[last] and ends[last] - start <= _REQUEST_BYTES:
            last += 1
        try:
            content = storage.read_range(shard.url, start, int(ends[last - 1]) - start)
        except FileNotFoundError as error:
            raise DataError(f"The shard {shard.url} is missing: copy it there, or make the data set anew.") from error
        for sample in range(first, last):
            yield content[offsets[sample] - start : ends[sample] - start]
        first = last


def _npy(latents: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, latents, allow_pickle=False)
    return file.getvalue()


def _tar(keys: Sequence[str], files: Sequence[bytes], extension: str) -> tuple[bytes, Members]:
    """Returns a tar of all files that are not empty, and where each lies in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key, file in zip(keys, files, strict=True):
            item = tarfile.TarInfo(f"{key}.{extension}")
            item.size = len(file)
            if file:
                tar.addfile(item, io.BytesIO(file))
    sizes = np.array([len(file) for file in files], dtype=np.int64)
    offsets = np.zeros_like(sizes)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        offsets[sizes > 0] = [item.offset_data for item in tar]
    return buffer.getvalue(), Members(offsets=offsets, sizes=sizes)
