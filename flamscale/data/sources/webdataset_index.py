"""One WebDataset tar in; the videos of its samples out: where they lie, and what they are, from packets and one frame.

Members follow webdataset's rule: those in a row whose names agree up to the first dot of the base name are one sample.
"""

import hashlib
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import av
import fsspec

from flamscale.data import storage
from flamscale.data.sources.tar_stream import Member, TarStream
from flamscale.data.sources.video import VIDEO_SUFFIXES
from flamscale.errors import DataError

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_HIDDEN = re.compile(r"__[^/]*__($|/)")  # names that webdataset passes over
_READ_AHEAD_BYTES = 8 << 20


@dataclass(frozen=True)
class Sample:
    """One video in a tar."""

    key: str
    offset: int
    """First byte in the tar."""
    size: int
    """Bytes."""
    sha256: str
    frames: int
    """Count."""
    fps: float
    height: int
    """Pixels."""
    width: int
    """Pixels."""


@dataclass
class LeftOut:
    """What is left out of the manifest: counts by reason, with the first case of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, count: int = 1) -> None:
        """Counts one case, or several."""
        if count:
            self.counts[reason] += count
            self.first.setdefault(reason, where)

    def update(self, other: "LeftOut") -> None:
        """Adds the cases of another."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)


@dataclass(frozen=True)
class TarIndex:
    """What one tar holds."""

    path: str
    """On its file system."""
    size_bytes: int
    sha256: str
    """Checksum of the whole tar (hex)."""
    samples: tuple[Sample, ...]
    left_out: LeftOut


def index_tar(fs: fsspec.AbstractFileSystem, path: str) -> TarIndex:
    """Reads a tar once, front to back.

    Raises:
        DataError: it is gone or may not be read, or the store stayed out of reach.
    """
    left_out = LeftOut()
    samples = _Samples(path, left_out)
    try:
        with storage.explained("read", path, fs), fs.open(path, "rb", block_size=_READ_AHEAD_BYTES) as file:
            stream = TarStream(file, _is_video)
            for member in stream:
                samples.add(member)
            samples.close()
    except FileNotFoundError:
        raise DataError(f"The tar {path} is listed but not there: restore it, or delete the link to it.") from None
    left_out.add("header of the tar damaged, its member not found", path, stream.num_damaged)
    return TarIndex(path, stream.size_bytes, stream.sha256, tuple(samples.found), left_out)


class _Samples:
    """Takes a tar's members in order and makes samples of them."""

    def __init__(self, path: str, left_out: LeftOut) -> None:
        self.found: list[Sample] = []
        self._path = path
        self._left_out = left_out
        self._seen: set[str] = set()
        self._key = ""  # of the sample in hand
        self._suffixes: set[str] = set()
        self._sample: Sample | None = None
        self._fault = ""

    def add(self, member: Member) -> None:
        """Adds a member to the sample in hand, or begins the next."""
        match = _KEY.fullmatch(member.name)
        if match is None or _HIDDEN.match(member.name):
            return
        key, suffix = match.group(1), match.group(2).lower()
        if key != self._key or suffix in self._suffixes:
            self.close()
            self._begin(key)
        self._suffixes.add(suffix)
        if _is_video(member.name) and self._sample is None and not self._fault:
            self._take_video(member)

    def close(self) -> None:
        """Ends the sample in hand."""
        if self._sample is not None:
            self.found.append(self._sample)
        elif self._key:
            self._left_out.add(self._fault or "no video among the members", f"{self._path}: {self._key}")

    def _begin(self, key: str) -> None:
        self._key, self._suffixes, self._sample, self._fault = key, set(), None, ""
        if key in self._seen:
            self._fault = "key used before in the same tar"
        elif key.startswith("/") or ".." in PurePosixPath(key).parts:
            self._fault = "name that leads out of the archive"
        self._seen.add(key)

    def _take_video(self, member: Member) -> None:
        if member.content is None:
            self._fault = "cut off by the end of the tar"
            return
        try:
            frames, fps, height, width = _probe(member.content)
        except (av.FFmpegError, IndexError, ValueError, StopIteration):  # IndexError: no video stream
            self._fault = "video that cannot be decoded, or is no mp4"
            return
        sha256 = hashlib.sha256(member.content).hexdigest()
        self._sample = Sample(self._key, member.offset, member.size, sha256, frames, fps, height, width)


def _probe(video: bytes) -> tuple[int, float, int, int]:
    """Returns frames, frames a second, height and width; decodes the first frame and counts the packets of the rest."""
    with av.open(io.BytesIO(video), "r", format="mp4") as container:  # the only container that clips are read from
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if not stream.average_rate:
            raise ValueError("it states no frame rate")
        frames = sum(packet.size > 0 for packet in container.demux(stream))
        container.seek(0)
        first = next(container.decode(stream))
        return frames, float(stream.average_rate), first.height, first.width


def _is_video(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES
