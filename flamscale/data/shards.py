"""Episodes in; WebDataset tars and their rows in the manifest out, at a local folder or any object store.

Each sample is key.mp4 (H.264), key.json and, where there are labels, key.npz. Tars carry no times or owners, so the
same episodes make the same bytes. A sample is packed into tar blocks once; a tar is such blocks, one after the other.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from flamscale.data import storage
from flamscale.data.encode import encode_frames
from flamscale.data.episode import SPLITS, Episode
from flamscale.data.manifest import Manifest, Members, Samples, Shard
from flamscale.errors import DataError

_Row = TypeVar("_Row", bound="Sample")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A row of a tar in the making; its tar blocks lie elsewhere."""

    key: str
    split: str
    frames: int
    """Frames of its video (count)."""
    video_sha256: str
    """Checksum of its mp4 (hex)."""
    size_bytes: int
    """Size of its tar blocks, headers and padding included."""
    members: dict[str, tuple[int, int]]
    """By file extension: first byte of the content in these blocks, and size (bytes)."""


def pack(episode: Episode, crf: int) -> tuple[Sample, bytes]:
    """Encodes an episode; returns its row and its tar blocks. `crf` is as in `encode_frames`."""
    video = encode_frames(episode.frames, episode.fps, crf)
    num_frames, height, width = episode.frames.shape[:3]
    sha256 = hashlib.sha256(video).hexdigest()
    info = {"fps": episode.fps, "frames": num_frames, "height": height, "width": width} | episode.info
    contents = {"mp4": video, "json": json.dumps(info | {"sha256": sha256}).encode()}
    if episode.labels:
        labels = io.BytesIO()
        np.savez_compressed(labels, **episode.labels)  # type: ignore[arg-type]
        contents["npz"] = labels.getvalue()
    blocks = io.BytesIO()
    members = {}
    with tarfile.open(fileobj=blocks, mode="w") as tar:
        for extension, content in contents.items():
            item = tarfile.TarInfo(f"{episode.key}.{extension}")
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
            padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            members[extension] = (tar.offset - padded, len(content))
        size_bytes = tar.offset
    sample = Sample(
        key=episode.key,
        split=episode.split,
        frames=num_frames,
        video_sha256=sha256,
        size_bytes=size_bytes,
        members=members,
    )
    return sample, blocks.getvalue()[:size_bytes]


def join(path: str, samples: Sequence[Sample], blocks: Sequence[bytes]) -> tuple[bytes, Shard]:
    """Returns the tar made of `blocks`, those of `samples` in their order, and its row in the manifest.

    Args:
        path: where the tar will lie, relative to the manifest.
        samples: samples of one split, at least one.
        blocks: for each sample its tar blocks.
    """
    content = b"".join(blocks)
    content += bytes(2 * tarfile.BLOCKSIZE)
    content += bytes(-len(content) % tarfile.RECORDSIZE)
    starts = np.cumsum([0] + [sample.size_bytes for sample in samples[:-1]])
    members: dict[str, Members] = {}
    for row, sample in enumerate(samples):
        for extension, (offset, size) in sample.members.items():
            if extension not in members:
                empty = np.zeros(len(samples), dtype=np.int64)
                members[extension] = Members(offsets=empty, sizes=empty.copy())
            members[extension].offsets[row] = starts[row] + offset
            members[extension].sizes[row] = size
    return content, Shard.of(
        path=path,
        split=samples[0].split,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        samples=Samples.of(
            keys=[sample.key for sample in samples],
            frames=[sample.frames for sample in samples],
            sha256=[sample.video_sha256 for sample in samples],
            members=members,
        ),
    )


def assign(samples: Sequence[_Row], shard_bytes: int) -> dict[str, list[_Row]]:
    """Returns the samples of every tar by the tar's path, split by split, each in the order given.

    A tar is closed once it holds `shard_bytes`, so it is larger by less than one sample.
    """
    tars: dict[str, list[_Row]] = {}
    for split in SPLITS:
        number, size_bytes = 0, 0
        for sample in samples:
            if sample.split == split:
                tars.setdefault(f"{split}/{number:06d}.tar", []).append(sample)
                size_bytes += sample.size_bytes
                if size_bytes >= shard_bytes:
                    number, size_bytes = number + 1, 0
    return tars


class ShardWriter:
    """Writes a data set of episodes at hand, one after the other; `flamscale.data.ingest` does it in parallel.

    Use it as a context, which saves the manifest at its end and removes the tars on an error. One open tar for each
    split is held in memory.

    Args:
        url: folder or URL of the data set.
        name, source, arguments: as in `Manifest`.
        crf: how strongly frames are compressed; see `encode_frames`.
        shard_bytes: size at which a tar is closed (bytes).

    Raises:
        DataError: nothing can be written there.
    """

    def __init__(
        self, url: str, *, name: str, source: str, arguments: dict[str, Any], crf: int, shard_bytes: int
    ) -> None:
        storage.check_writable(url)
        self.url = url
        self.crf = crf
        self.shard_bytes = shard_bytes
        self.manifest: Manifest | None = None
        self._description: dict[str, Any] = {"name": name, "source": source, "arguments": arguments}
        self._open: dict[str, list[tuple[Sample, bytes]]] = {}
        self._shards: list[Shard] = []

    def write(self, episode: Episode) -> None:
        """Encodes one episode and adds it to the open tar of its split."""
        height, width = episode.frames.shape[1:3]
        self._description = {"fps": episode.fps, "height": height, "width": width} | self._description
        if (height, width) != (self._description["height"], self._description["width"]):
            raise DataError(
                f"Expected frames of {self._description['height']}x{self._description['width']} pixels as before, got "
                f"{height}x{width} in sample {episode.key}: a data set has one frame size."
            )
        packed = self._open.setdefault(episode.split, [])
        packed.append(pack(episode, self.crf))
        if sum(sample.size_bytes for sample, _ in packed) >= self.shard_bytes:
            self._close(episode.split)

    def _close(self, split: str) -> None:
        samples, blocks = zip(*self._open.pop(split), strict=True)
        number = sum(done.split == split for done in self._shards)
        content, shard = join(f"{split}/{number:06d}.tar", samples, blocks)
        storage.write_bytes(storage.join(self.url, shard.path), content)
        self._shards.append(shard)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._remove_shards()
            raise
        if kind is not None:
            self._remove_shards()

    def _finish(self) -> None:
        for split in list(self._open):
            self._close(split)
        if not self._shards:
            raise DataError(f"Not one episode came from the source, so there is nothing to write to {self.url}.")
        order = sorted(self._shards, key=lambda shard: (SPLITS.index(shard.split), shard.path))
        self.manifest = Manifest(**self._description, shards=tuple(order), url=self.url)
        self.manifest.save(self.url)

    def _remove_shards(self) -> None:
        for shard in self._shards:
            with contextlib.suppress(DataError):  # the error that led here says more
                storage.remove(storage.join(self.url, shard.path))
