"""Byte ranges of shards: neighbours joined into one request, and local files read at any place."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from flamscale.data import storage

SampleId = tuple[int, int]
"""Number of the shard in the clip space, number of the sample in the shard."""

_MERGE_GAP_BYTES = 128 * 2**10  # ranges of one shard closer than this are read by one request
_OPEN_FILES = 64
_LOCAL = LocalFileSystem()


def merge(ranges: list[tuple[int, int, SampleId]]) -> Iterator[tuple[int, int, list[tuple[int, int, SampleId]]]]:
    """Joins ranges (offset, size, sample) that lie close together; yields start, end, and the ranges inside."""
    start = end = 0
    inside: list[tuple[int, int, SampleId]] = []
    for item in sorted(ranges):
        if inside and item[0] - end > _MERGE_GAP_BYTES:
            yield start, end, inside
            inside = []
        if not inside:
            start = end = item[0]
        end = max(end, item[0] + item[1])
        inside.append(item)
    yield start, end, inside


def part_of(reply: Future[bytes], start: int, size_bytes: int) -> bytes:
    """Waits for a reply, and returns a range of it."""
    return reply.result()[start : start + size_bytes]


class OpenFiles:
    """Reads ranges of local files, some of which it keeps open."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path | str, int] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, path: Path | str) -> bool:
        return path in self._files

    def read(self, path: Path | str, offset: int, size_bytes: int) -> bytes:
        """Returns `size_bytes` bytes from `offset` on, or fewer where the file ends early.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: it may not be read.
        """
        try:
            with self._lock:
                file = self._files.get(path)
                if file is None:
                    file = self._files[path] = os.open(path, os.O_RDONLY)
                    if len(self._files) > _OPEN_FILES:
                        os.close(self._files.popitem(last=False)[1])
                else:
                    self._files.move_to_end(path)
                return os.pread(file, size_bytes, offset)
        except OSError:
            with storage.explained("read", str(path), _LOCAL):  # a tenth of the time to read latents, if around it all
                raise

    def close(self) -> None:
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])
