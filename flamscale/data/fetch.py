"""Samples of an object store by range requests, many of them under way at once.

In: which samples are read now or soon. Out: how to get each one's bytes, which waits for its own request alone. What
comes is kept for later clips of the same samples as long as there is room.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flamscale.data import storage
from flamscale.data.clips import ClipSpace
from flamscale.data.ranges import SampleId, merge, part_of
from flamscale.errors import DataError

Contents = dict[SampleId, Callable[[], bytes]]
"""How to get the bytes of samples."""

_REQUESTS = 16  # under way at once
_BLOCK_BYTES = 2**19
_Key = tuple[int, int]  # shard, and sample in it; or block, where whole blocks are fetched


@dataclass(frozen=True, eq=False)
class _Piece:
    """What one request brings."""

    reply: Future[bytes]
    start: int
    """Where it starts in its shard (bytes)."""
    size_bytes: int
    keys: list[_Key]
    """What it holds."""


class Fetcher:
    """Fetches samples of shards in an object store.

    Args:
        space: the clips that are read.
        content: extension of the files read.
        limit_bytes: memory for what is kept, least recently used out first; 0 keeps nothing.
        in_blocks: whether a sample comes with its neighbours, half a MiB at a time; for where they will be wanted too.

    Attributes:
        kept_bytes: memory of what is kept.
    """

    def __init__(self, space: ClipSpace, content: str, *, limit_bytes: int = 0, in_blocks: bool = False) -> None:
        self._space = space
        self._content = content
        self._limit_bytes = limit_bytes
        self._in_blocks = in_blocks
        self._start()

    def _start(self) -> None:
        self.kept_bytes = 0
        self._pieces: dict[_Key, _Piece] = {}
        self._by_use: OrderedDict[_Piece, None] = OrderedDict()
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._pool: ThreadPoolExecutor | None = None  # made in the process that sends requests

    def __reduce__(self) -> tuple[Any, ...]:
        build = partial(Fetcher, limit_bytes=self._limit_bytes, in_blocks=self._in_blocks)
        return build, (self._space, self._content)

    def request(self, samples: Collection[SampleId]) -> Contents:
        """Sends the range requests for samples that are not kept; returns how to get each one's bytes."""
        keys = {sample_id: self._key(sample_id) for sample_id in samples}
        contents: Contents = {}
        with self._lock:
            self._drop_failed(keys.values())
            self._send({key for key in keys.values() if key not in self._pieces})
            for sample_id, key in keys.items():
                piece = self._pieces[key]
                self._by_use.move_to_end(piece)
                offset, size_bytes = self._place(sample_id)
                contents[sample_id] = partial(part_of, piece.reply, offset - piece.start, size_bytes)
            while self.kept_bytes > self._limit_bytes:
                self._drop(next(iter(self._by_use)))
        return contents

    def again(self, sample_id: SampleId) -> bytes:
        """Returns the bytes of a sample that came damaged, asked for anew; raises as `storage.read_range`."""
        with self._lock:
            piece = self._pieces.get(self._key(sample_id))
            if piece is not None:
                self._drop(piece)
        return storage.read_range(self._space.shards[sample_id[0]].url, *self._place(sample_id), self._cancel)

    def cancel(self) -> None:
        """Has requests under way give up at their next failure, until `close`."""
        self._cancel.set()

    def close(self) -> None:
        """Ends threads and drops what is kept; requesting again starts anew."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._start()

    def _send(self, keys: Iterable[_Key]) -> None:
        ranges: dict[int, list[tuple[int, int, _Key]]] = defaultdict(list)
        for key in keys:
            ranges[key[0]].append((*self._range(key), key))
        if ranges and self._pool is None:
            self._pool = ThreadPoolExecutor(_REQUESTS, "range-requests")
        for shard, wanted in ranges.items():
            for start, end, inside in self._merged(wanted):
                assert self._pool is not None
                url = self._space.shards[shard].url
                reply = self._pool.submit(_read_range, url, start, end - start, self._cancel)
                piece = _Piece(reply, start, end - start, [key for _, _, key in inside])
                self._pieces.update(dict.fromkeys(piece.keys, piece))
                self._by_use[piece] = None
                self.kept_bytes += piece.size_bytes

    def _merged(self, wanted: list[tuple[int, int, _Key]]) -> Iterable[tuple[int, int, list[tuple[int, int, _Key]]]]:
        """Joins what lies close together; blocks are large enough each for itself."""
        return [(item[0], item[0] + item[1], [item]) for item in wanted] if self._in_blocks else merge(wanted)

    def _drop_failed(self, keys: Iterable[_Key]) -> None:
        """Forgets replies that are errors, so that they are asked for anew."""
        for piece in {self._pieces[key] for key in keys if key in self._pieces}:
            if piece.reply.done() and (piece.reply.cancelled() or piece.reply.exception() is not None):
                self._drop(piece)

    def _drop(self, piece: _Piece) -> None:
        for key in piece.keys:
            del self._pieces[key]
        del self._by_use[piece]
        self.kept_bytes -= piece.size_bytes

    def _key(self, sample_id: SampleId) -> _Key:
        return (sample_id[0], self._place(sample_id)[0] // _BLOCK_BYTES) if self._in_blocks else sample_id

    def _place(self, sample_id: SampleId) -> tuple[int, int]:
        """Returns a sample's offset and size (bytes)."""
        shard, sample = sample_id
        member = self._space.samples(shard).members[self._content]
        return int(member.offsets[sample]), int(member.sizes[sample])

    def _range(self, key: _Key) -> tuple[int, int]:
        """Returns offset and size (bytes) of a sample, or of all samples that begin in a block."""
        if not self._in_blocks:
            return self._place(key)
        member = self._space.samples(key[0]).members[self._content]
        inside = np.flatnonzero(member.offsets // _BLOCK_BYTES == key[1])
        start = int(member.offsets[inside].min())
        return start, int((member.offsets[inside] + member.sizes[inside]).max()) - start


def _read_range(url: str, start: int, size_bytes: int, cancel: threading.Event) -> bytes:
    """Reads a range, unless it is of no more use: what still waits for a thread is not to keep a process alive."""
    if cancel.is_set():
        raise DataError(f"Reading {url} was given up.")
    return storage.read_range(url, start, size_bytes, cancel)
