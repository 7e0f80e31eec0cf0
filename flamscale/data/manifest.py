"""The one file that describes a data set: every shard with size and checksum, every sample's frames and byte ranges.

In: manifest.json under the data URL, or rows from the shard writer. Out: `Manifest`, from which the clip space, the
order and all reads follow without opening a shard.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flamscale.data import storage
from flamscale.data.episode import SPLITS
from flamscale.errors import DataError

FILE_NAME = "manifest.json"
FORMAT = "flamscale-manifest-1"
_DESCRIPTION = ("name", "source", "fps", "height", "width", "arguments")


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """Where one kind of member file lies in a shard: columns over its samples, in shard order; size 0 means none."""

    offsets: np.ndarray
    """int64 [samples], first byte of the file's content in the tar."""
    sizes: np.ndarray
    """int64 [samples], bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One tar, and a row for each of its samples, kept as columns."""

    path: str
    """Relative to the manifest's URL."""
    split: str
    """train, validation or test."""
    size_bytes: int
    """Size of the tar (bytes)."""
    sha256: str
    """Checksum of the tar (hex)."""
    keys: tuple[str, ...]
    """Name of each sample."""
    frames: np.ndarray
    """int64 [samples], video frames of each sample (count)."""
    video_sha256: tuple[str, ...]
    """Checksum of each sample's mp4 (hex)."""
    members: dict[str, Members]
    """By file extension (mp4, json, npz)."""

    def __post_init__(self) -> None:
        lengths = {len(self.keys), len(self.frames), len(self.video_sha256)}
        for columns in self.members.values():
            lengths |= {len(columns.offsets), len(columns.sizes)}
        if len(lengths) != 1 or "mp4" not in self.members:
            raise ValueError(f"shard {self.path} needs an mp4 column, and all its columns equally long")

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """A data set: what it is, and its shards."""

    name: str
    source: str
    """multigrid or video."""
    fps: float
    """Frames a second of the first sample; every sample's json holds its own."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    arguments: dict[str, Any]
    """What the data set was made with; the same arguments make the same bytes."""
    shards: tuple[Shard, ...]
    url: str = ""
    """Folder or URL the data set lies at; no part of the hash, so a copy elsewhere is the same data set."""

    @classmethod
    def find(cls, url: str) -> "Manifest | None":
        """Reads URL/manifest.json if there is one.

        Raises:
            DataError: it cannot be read or understood.
        """
        address = storage.join(url, FILE_NAME)
        try:
            text = storage.read_bytes(address, storage.FIRST_CONTACT_TIMEOUT_S)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return cls._parse(json.loads(text), url)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{address} should be a {FORMAT} file and cannot be understood ({type(error).__name__}: {error}): make "
                f"the shards anew with this version's recipes/make_shards.py."
            ) from error

    @classmethod
    def load(cls, url: str) -> "Manifest":
        """Reads URL/manifest.json.

        Raises:
            DataError: the URL is empty, holds no manifest, or one that cannot be read or understood.
        """
        if not url:
            raise DataError(
                "No data URL was given: pass the folder or s3:// URL of shards (recipes/make_shards.py makes them)."
            )
        manifest = cls.find(url)
        if manifest is None:
            raise DataError(
                f"Expected a data set at {url}, but there is no {FILE_NAME}: check the URL, or make shards there with "
                f"recipes/make_shards.py."
            )
        return manifest

    @classmethod
    def _parse(cls, content: dict[str, Any], url: str) -> "Manifest":
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        shards = []
        for row in content["shards"]:
            members = {
                extension: Members(**{name: np.asarray(column, dtype=np.int64) for name, column in columns.items()})
                for extension, columns in row["members"].items()
            }
            columns = {name: tuple(row[name]) for name in ("keys", "video_sha256")}
            frames = np.asarray(row["frames"], dtype=np.int64)
            shards.append(Shard(**{**row, **columns, "frames": frames, "members": members}))
        return cls(**{name: content[name] for name in _DESCRIPTION}, shards=tuple(shards), url=url)

    def save(self, url: str) -> None:
        """Writes URL/manifest.json in one atomic step; call it last, when all shards are in place."""
        storage.write_bytes(storage.join(url, FILE_NAME), self._to_json())

    def _to_json(self) -> bytes:
        content: dict[str, Any] = {"format": FORMAT} | {name: getattr(self, name) for name in _DESCRIPTION}
        content["shards"] = [
            {**vars(shard), "members": {extension: vars(item) for extension, item in shard.members.items()}}
            for shard in self.shards
        ]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), default=lambda array: array.tolist()).encode()

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of everything but the URL: the identity of the data set."""
        return hashlib.sha256(self._to_json()).hexdigest()

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """Returns the shards of one split, in order.

        Raises:
            DataError: the data set has no such split.
        """
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise DataError(
                f"Expected a {split} split in {self.url or self.name}, which has only "
                f"{sorted({shard.split for shard in self.shards})}: make shards from more episodes (three or more give "
                f"all of {', '.join(SPLITS)})."
            )
        return shards
