"""One or several data sets as one: their clips, the order over them, and what identifies them together."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flamscale.data.clips import ClipSpace
from flamscale.data.manifest import VIDEO, Manifest, Shard
from flamscale.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data sets that are trained on together.

    Raises:
        ConfigError: there is none, their frames differ in size, or weights do not fit.
    """

    manifests: tuple[Manifest, ...]
    weights: tuple[float, ...] = ()
    """How often each is drawn from, in any unit; empty: by its number of clips."""

    def __post_init__(self) -> None:
        first, *others = self.manifests
        for other in others:
            if (other.height, other.width, other.content) != (first.height, first.width, first.content):
                raise ConfigError(
                    f"Data sets that are mixed must have frames of one size; those of {first.url} are {first.width} x "
                    f"{first.height} pixels, those of {other.url} {other.width} x {other.height}; make shards of one "
                    "--size."
                )

    @classmethod
    def load(cls, urls: Sequence[str], weights: Sequence[float] = ()) -> "Mixture":
        """Reads the manifests of data sets; raises as `Manifest.load`."""
        return cls(tuple(Manifest.load(url) for url in (urls or [""])), tuple(weights))

    @property
    def height(self) -> int:
        """Pixels."""
        return self.manifests[0].height

    @property
    def width(self) -> int:
        """Pixels."""
        return self.manifests[0].width

    @property
    def content(self) -> str:
        """Extension of the files read for training: videos, or pre-tokenised latents."""
        return self.manifests[0].content

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """What the reader gives for a frame: (H, W, 3) pixels or (N,) tokens."""
        return (self.height, self.width, 3) if self.content == VIDEO else (self.height * self.width,)

    @property
    def frame_bytes(self) -> int:
        """Memory of a frame (bytes); latents are integers of 4 bytes at most."""
        return math.prod(self.frame_shape) * (1 if self.content == VIDEO else 4)

    @property
    def hash(self) -> str:
        """SHA-256 (hex): the manifest's own hash for one data set, else one of all and their weights."""
        hashes = [manifest.identity for manifest in self.manifests]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256(json.dumps([hashes, self.weights]).encode()).hexdigest()

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """Returns the shards of one split, data set by data set; raises DataError where one has no such split."""
        return tuple(shard for manifest in self.manifests for shard in manifest.of_split(split))

    def train_shards(self, num_samples: int) -> tuple[Shard, ...]:
        """Returns the training shards up to the first so many samples, 0 for all.

        Raises:
            ConfigError: there are not as many.
        """
        shards = self.of_split("train")
        if not num_samples:
            return shards
        total = sum(map(len, shards))
        if num_samples > total:
            raise ConfigError(
                f"data.train-samples must be at most the {total} training samples of {self.manifests[0].url}, got "
                f"{num_samples}."
            )
        starts = np.cumsum([0, *map(len, shards)])
        return tuple(
            shard.first(num_samples - int(start))
            for shard, start in zip(shards, starts, strict=False)
            if start < num_samples
        )

    def clips_of_parts(self, space: ClipSpace, split: str) -> list[np.ndarray]:
        """Returns shard_clips of each data set, of a clip space made of `of_split(split)`."""
        ends = np.cumsum([len(manifest.of_split(split)) for manifest in self.manifests])
        return np.split(space.shard_clips, ends[:-1])
