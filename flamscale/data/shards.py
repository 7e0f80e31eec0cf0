"""Episodes in; WebDataset tars and their manifest out, at a local folder or any object store.

Each sample is key.mp4 (H.264), key.json and, where there are labels, key.npz. Tars carry no times or owners, so the
same episodes make the same bytes. The manifest is written last: a data set without one is not there.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from types import TracebackType
from typing import Any

import numpy as np

from flamscale.data import storage
from flamscale.data.encode import encode_frames
from flamscale.data.episode import SPLITS, Episode
from flamscale.data.manifest import Manifest, Members, Samples, Shard
from flamscale.errors import DataError


class ShardWriter:
    """Writes a data set; use it as a context, which saves the manifest at its end and removes the tars on an error.

    Args:
        url: folder or URL of the data set.
        name, source, arguments: as in `Manifest`.
        crf: how strongly frames are compressed; see `encode_frames`.
        shard_bytes: size at which a tar is closed (bytes); one tar for each split is held in memory.

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
        self._open: dict[str, _OpenShard] = {}
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
        shard = self._open.get(episode.split)
        if shard is None:
            number = sum(done.split == episode.split for done in self._shards)
            shard = self._open[episode.split] = _OpenShard(f"{episode.split}/{number:06d}.tar")
        shard.add(episode, encode_frames(episode.frames, episode.fps, self.crf))
        if shard.size_bytes >= self.shard_bytes:
            self._close(episode.split)

    def _close(self, split: str) -> None:
        content, shard = self._open.pop(split).finish(split)
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


class _OpenShard:
    """One tar in the making."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 - closed in finish
        self._keys: list[str] = []
        self._frames: list[int] = []
        self._video_sha256: list[str] = []

    @property
    def size_bytes(self) -> int:
        return self._buffer.tell()

    def add(self, episode: Episode, video: bytes) -> None:
        num_frames, height, width = episode.frames.shape[:3]
        self._keys.append(episode.key)
        self._frames.append(num_frames)
        self._video_sha256.append(hashlib.sha256(video).hexdigest())
        info = {"fps": episode.fps, "frames": num_frames, "height": height, "width": width} | episode.info
        info["sha256"] = self._video_sha256[-1]
        self._add_member(f"{episode.key}.mp4", video)
        self._add_member(f"{episode.key}.json", json.dumps(info).encode())
        if episode.labels:
            labels = io.BytesIO()
            np.savez_compressed(labels, **episode.labels)  # type: ignore[arg-type]
            self._add_member(f"{episode.key}.npz", labels.getvalue())

    def _add_member(self, name: str, content: bytes) -> None:
        item = tarfile.TarInfo(name)
        item.size = len(content)
        self._tar.addfile(item, io.BytesIO(content))

    def finish(self, split: str) -> tuple[bytes, Shard]:
        """Returns the tar's bytes and its row in the manifest, with every member's place read back from the tar."""
        self._tar.close()
        content = self._buffer.getvalue()
        index = {key: position for position, key in enumerate(self._keys)}
        members: dict[str, Members] = {}
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for item in tar:
                key, extension = item.name.split(".", 1)
                if extension not in members:
                    empty = np.zeros(len(index), dtype=np.int64)
                    members[extension] = Members(offsets=empty, sizes=empty.copy())
                members[extension].offsets[index[key]] = item.offset_data
                members[extension].sizes[index[key]] = item.size
        return content, Shard.of(
            path=self.path,
            split=split,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            samples=Samples.of(keys=self._keys, frames=self._frames, sha256=self._video_sha256, members=members),
        )
