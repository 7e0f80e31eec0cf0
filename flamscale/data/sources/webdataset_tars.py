"""WebDataset tars that others made, indexed where they lie: their samples' videos, checked, become a manifest.

Each tar is read once; nothing is copied or unpacked. What cannot be used is left out and counted.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from flamscale.data import storage
from flamscale.data.episode import SPLITS, split_of
from flamscale.data.manifest import VIDEO, Manifest, Members, Samples, Shard
from flamscale.data.sources.video import VIDEO_SUFFIXES
from flamscale.data.sources.webdataset_index import LeftOut, TarIndex, index_tar
from flamscale.errors import ConfigError, DataError

_SPLIT_WORD = re.compile(r"(?<![a-z])(?:(train(?:ing)?)|(val(?:id(?:ation)?)?)|(test(?:ing)?))(?:s|set)?(?![a-z])")
_MIN_SPLIT_TARS = 10  # fewer tars are split by samples
_NUM_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class WebdatasetSource:
    """Tars to index in place."""

    input: str = ""
    """A folder of .tar files (local path or URL), searched through its subfolders, one tar, or a {000..123} pattern."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ConfigError("--source webdataset needs --input: a folder of tars, one tar, or a {000..123} pattern.")

    @cached_property
    def _files(self) -> tuple[fsspec.AbstractFileSystem, str, list[str]]:
        """The file system, the folder that holds all tars, and the tars in order of name."""
        fs, path = storage.locate(self.input)
        with storage.explained("read", self.input, fs):
            if "{" not in self.input and not fs.isfile(path):
                return fs, path, self._search(fs, path)
            tars = self._expand(fs)
        return fs, os.path.commonpath([os.path.dirname(tar) for tar in tars]), tars

    def _expand(self, fs: fsspec.AbstractFileSystem) -> list[str]:
        try:
            tars = sorted({storage.locate(url)[1] for url in braceexpand(self.input)})
        except ValueError:
            raise ConfigError(f"input must close every brace, as in tars/{{000..123}}.tar, got {self.input}.") from None
        present = {name for folder in {os.path.dirname(tar) for tar in tars} for name in fs.find(folder, maxdepth=1)}
        if missing := [tar for tar in tars if tar not in present]:
            raise DataError(
                f"Expected {len(tars)} tars as {self.input} says, and {len(missing)} are missing, the first being "
                f"{missing[0]}: copy them there, or change --input."
            )
        return tars

    def _search(self, fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
        found = fs.find(folder)
        tars = sorted(name for name in found if name.endswith(".tar"))
        if not tars:
            packed = sum(name.endswith((".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")) for name in found)
            what = f"{len(found)} other files ({packed} of them compressed tars)" if found else "nothing"
            raise DataError(
                f"Expected WebDataset tars (.tar) in {self.input}, found {what}: point --input at a folder of "
                f"uncompressed tars."
            )
        return tars

    def __len__(self) -> int:
        return len(self._files[2])

    def __iter__(self) -> Iterator[TarIndex]:
        """Reads the tars, several at a time, and yields what each holds, in order of name."""
        fs, _, tars = self._files
        with ThreadPoolExecutor(min(_NUM_THREADS, os.cpu_count() or 1)) as pool:
            yield from pool.map(lambda path: index_tar(fs, path), tars)

    def manifest(
        self, indices: Sequence[TarIndex], url: str, name: str, arguments: dict[str, Any]
    ) -> tuple[Manifest, LeftOut]:
        """Puts together what iterating gave; tars that do not lie under `url` are named by their full address.

        Returns:
            The manifest, not saved yet, and all that is left out of it, which includes the samples of another frame
            size than the most common.

        Raises:
            DataError: not one sample can be used.
        """
        left_out = LeftOut()
        for tar in indices:
            left_out.update(tar.left_out)
        sizes = Counter((sample.height, sample.width) for tar in indices for sample in tar.samples)
        if not sizes:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.counts.items()) or "all are empty"
            raise DataError(
                f"Not one sample of the {len(indices)} tars in {self.input} can be used ({reasons}): point --input at "
                f"tars with a video in each sample ({', '.join(VIDEO_SUFFIXES)})."
            )
        (height, width), _ = sizes.most_common(1)[0]
        kept = [_of_size(tar, height, width, left_out) for tar in indices]
        shards: list[Shard] = []
        for tar, splits in zip(kept, self._splits(kept), strict=True):
            shards += self._shards(tar, splits, url)
        shards.sort(key=lambda shard: (SPLITS.index(shard.split), shard.path))
        fps = next(sample.fps for tar in kept for sample in tar.samples)
        description: dict[str, Any] = {"name": name, "source": "webdataset", "arguments": arguments}
        return Manifest(**description, fps=fps, height=height, width=width, shards=tuple(shards), url=url), left_out

    def _splits(self, tars: Sequence[TarIndex]) -> list[list[str]]:
        """Returns each sample's split: as its tar's path says, else 80/10/10 by tars, or by samples of few tars."""
        root = self._files[1]
        named = [_named_split(os.path.relpath(tar.path, root)) for tar in tars]
        unnamed = [number for number, split in enumerate(named) if split is None]
        num_samples = sum(len(tars[number].samples) for number in unnamed)
        splits = [[split or ""] * len(tar.samples) for tar, split in zip(tars, named, strict=True)]
        position = 0
        for place, number in enumerate(unnamed):
            count = len(tars[number].samples)
            if len(unnamed) >= _MIN_SPLIT_TARS:
                splits[number] = [split_of(place, len(unnamed))] * count
            else:
                splits[number] = [split_of(position + index, num_samples) for index in range(count)]
            position += count
        return splits

    def _shards(self, tar: TarIndex, splits: list[str], url: str) -> Iterator[Shard]:
        """Yields a shard for each split that the tar has samples of."""
        path = _address(self._files[0], tar.path, url)
        for split in SPLITS:
            samples = [sample for sample, of in zip(tar.samples, splits, strict=True) if of == split]
            if samples:
                videos = Members(
                    offsets=np.asarray([sample.offset for sample in samples], dtype=np.int64),
                    sizes=np.asarray([sample.size for sample in samples], dtype=np.int64),
                )
                rows = Samples.of(
                    keys=[sample.key for sample in samples],
                    frames=[sample.frames for sample in samples],
                    sha256=[sample.sha256 for sample in samples],
                    members={VIDEO: videos},
                )
                yield Shard.of(path=path, split=split, size_bytes=tar.size_bytes, sha256=tar.sha256, samples=rows)


def _address(fs: fsspec.AbstractFileSystem, path: str, url: str) -> str:
    """Returns the tar's path relative to `url` where it lies under it, else its full path or URL."""
    other, folder = storage.locate(url)
    if type(other) is type(fs) and path.startswith(folder.rstrip("/") + "/"):
        return path[len(folder.rstrip("/")) + 1 :]
    return path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)


def _named_split(path: str) -> str | None:
    """Returns the split that the last such word in a path names, if any."""
    words = list(_SPLIT_WORD.finditer(path.lower()))
    return SPLITS[(words[-1].lastindex or 0) - 1] if words else None


def _of_size(tar: TarIndex, height: int, width: int, left_out: LeftOut) -> TarIndex:
    kept = []
    for sample in tar.samples:
        if (sample.height, sample.width) == (height, width):
            kept.append(sample)
        else:
            left_out.add(f"frames of another size than {height}x{width}, the most common", f"{tar.path}: {sample.key}")
    return replace(tar, samples=tuple(kept))
