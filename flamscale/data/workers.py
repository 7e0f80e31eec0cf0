"""Micro-batches read ahead of training, by a thread of this process or by processes of their own.

In: the positions of each micro-batch, in order. Out: their clips, in the same order. Processes come from a fork server,
which has never touched an object store's client, and write into shared memory that the caller gets as it is, to be used
again once the caller has dropped it; a killed process is replaced, and what was in its hands is read again. They start
behind the first micro-batch, and until they are up, the thread reads: nothing ever waits for a process to start. They
take micro-batches in turn, so that each knows which it will read later, and has them sent by an object store meanwhile.
"""

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from flamscale.data.fetch import Contents
from flamscale.data.order import MixtureOrder
from flamscale.data.reader import ClipReader, Findings
from flamscale.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
_MAX_LOSSES = 3  # times that processes may die before another micro-batch comes through
_MAX_LENT = 2  # micro-batches in the caller's hands that stay in shared memory; those beyond are copied out of it
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class PositionReader:
    """Reads the clips at positions of the endless order; for a damaged one, the next sound one in that order."""

    order: MixtureOrder
    reader: ClipReader
    _requested: dict[int, Contents] = field(default_factory=dict, init=False)  # by the first position

    def __call__(
        self, positions: Sequence[int], later: Sequence[int] = (), memory: memoryview | None = None
    ) -> tuple[np.ndarray, Findings]:
        """Returns the clips [B, T, ...] and what was met on the way; raises as `ClipReader.read`.

        Args:
            positions: of the endless order.
            later: positions that will be read after some others, and are asked of an object store now.
            memory: where video is decoded to, if given.
        """
        self.reader.want(self.order.shards_near(positions[0]))
        batch = self.reader.batch(len(positions), memory)
        requested = self._requested.pop(positions[0], None)
        if later and self.reader.in_store:
            if requested is None:  # these first
                requested = self._request(positions)
            self._requested[later[0]] = self._request(later)
        candidates = [self.order.candidates(position) for position in positions]
        clips, findings = self.reader.read(candidates, batch, requested)
        return np.stack(clips) if batch is None else batch, findings

    def _request(self, positions: Sequence[int]) -> Contents:
        return self.reader.request(next(self.order.candidates(position)) for position in positions)

    def close(self) -> None:
        """Forgets what was asked for, closes files and ends threads; reading again opens them anew."""
        self._requested.clear()
        self.reader.close()


@dataclass
class _Task:
    """A micro-batch under way."""

    positions: list[int]
    future: Future
    slot: SharedMemory | None
    """Where a process puts it; None where the thread reads it."""


class ReadAhead:
    """Iterates over micro-batches: positions, clips [B, T, ...], findings.

    Args:
        read: reads one of them.
        tasks: positions of each, without end.
        depth: micro-batches under way for each process (count); 0 reads in the caller, when it asks.
        num_processes: processes that read; 0 leaves it to one thread.
        batch_bytes: size of a micro-batch (bytes).

    Attributes:
        restarts: how often processes died and were replaced (count).

    Raises:
        ConfigError: the shared memory does not hold what is read ahead.
    """

    def __init__(
        self, read: PositionReader, tasks: Iterator[list[int]], *, depth: int, num_processes: int, batch_bytes: int
    ) -> None:
        self.restarts = 0
        self._read = read
        self._tasks = tasks
        self._coming: deque[list[int]] = deque()  # taken from the tasks, and not handed out yet
        self._turn = 0
        self._depth = depth * max(num_processes, 1)
        self._num_processes = num_processes
        self._pending: deque[_Task] = deque()
        self._thread = ThreadPoolExecutor(1, "read-ahead") if depth else None
        self._slots: list[SharedMemory] = []
        self._lent: set[SharedMemory] = set()
        self._closed = False
        self._processes: list[ProcessPoolExecutor] = []
        self._starting: threading.Thread | None = None
        self._losses = 0
        if num_processes:
            self._slots = _allocate(self._depth + _MAX_LENT, batch_bytes)

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> tuple[list[int], np.ndarray, Findings]:
        if self._thread is None:
            positions = next(self._tasks)
            return positions, *self._read(positions)
        while True:
            self._fill()
            task = self._pending[0]
            try:
                clips, findings = task.future.result()
            except BrokenProcessPool as error:
                self._replace_processes(error)
                continue
            self._pending.popleft()
            if self._num_processes and self._starting is None:
                self._start_processes()
            if task.slot is not None:
                clips = self._lend(task.slot, *clips)
                self._losses = 0
            return task.positions, clips, findings

    def _lend(self, slot: SharedMemory, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        clips = np.ndarray(shape, dtype, buffer=slot.buf)
        if len(self._lent) == _MAX_LENT:
            return clips.copy()
        self._lent.add(slot)
        weakref.finalize(clips, self._take_back, slot).atexit = False
        return clips

    def _take_back(self, slot: SharedMemory) -> None:
        """Called by whichever thread drops the last view of what was lent."""
        self._lent.discard(slot)
        if self._closed:
            slot.close()

    def _fill(self) -> None:
        """Hands out micro-batches, to the processes once they are up."""
        processes = self._processes
        limit = self._depth if processes or not self._num_processes else 1
        while len(self._pending) < limit:
            positions, later = self._next_task()
            if not processes:
                assert self._thread is not None
                later = [] if self._num_processes else later  # it only stands in for processes
                self._pending.append(_Task(positions, self._thread.submit(self._read, positions, later), None))
                continue
            busy = self._lent | {task.slot for task in self._pending}
            slot = next(slot for slot in self._slots if slot not in busy)
            process = processes[self._turn % self._num_processes]
            self._turn += 1
            try:
                future = process.submit(_read_into, slot.name, positions, later)
            except BrokenProcessPool as error:
                future = Future()
                future.set_exception(error)
            self._pending.append(_Task(positions, future, slot))

    def _next_task(self) -> tuple[list[int], list[int]]:
        """Returns the positions of the next micro-batch, and of one that whoever reads it will be handed later."""
        while len(self._coming) <= self._depth:
            self._coming.append(next(self._tasks))
        return self._coming.popleft(), self._coming[self._depth - 1]

    def _start_processes(self) -> None:
        def start() -> None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            closing, self._open = context.Pipe(duplex=False)
            arguments = (self._read, dict(os.environ), closing)
            processes = [ProcessPoolExecutor(1, context, _be_worker, arguments) for _ in range(self._num_processes)]
            with contextlib.suppress(BrokenProcessPool):  # the first micro-batch handed out will tell
                for started in [process.submit(os.getpid) for process in processes]:
                    started.result()
            self._processes = processes

        self._starting = threading.Thread(target=start, name="start-readers", daemon=True)
        self._starting.start()

    def _replace_processes(self, error: BrokenProcessPool) -> None:
        self.restarts += 1
        self._losses += 1
        _LOG.warning("A process that reads data was killed; starting %d new ones.", self._num_processes)
        if self._losses > _MAX_LOSSES:
            raise DataError(
                f"The processes that read data died {self._losses} times in a row, the last time at positions from "
                f"{self._pending[0].positions[0]} on, perhaps for want of memory: lower data.num-processes, "
                f"data.prefetch-batches, data.cache-mib or data.fetch-cache-mib."
            ) from error
        self._stop_processes()
        self._coming.extendleft(task.positions for task in reversed(self._pending))
        self._pending.clear()
        self._start_processes()

    def _stop_processes(self) -> None:
        if self._starting is not None:
            self._starting.join()
        if self._processes:
            self._open.close()
            for process in self._processes:
                process.shutdown(cancel_futures=True)
            self._processes = []

    def close(self) -> None:
        """Ends thread and processes, after the micro-batches they have begun."""
        self._read.reader.cancel()
        for task in self._pending:
            task.future.cancel()
        self._pending.clear()
        self._stop_processes()
        if self._thread is not None:
            self._thread.shutdown()
        self._read.close()
        self._closed = True
        for slot in self._slots:
            slot.unlink()
            if slot not in self._lent:
                slot.close()
        self._slots = []


def _allocate(count: int, size_bytes: int) -> list[SharedMemory]:
    free_bytes = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.exists() else None
    if free_bytes is not None and count * size_bytes > free_bytes:
        raise ConfigError(
            f"Reading ahead {count} micro-batches takes {count * size_bytes / 2**20:,.0f} MiB of shared memory, and "
            f"{_SHARED_MEMORY} has {free_bytes / 2**20:,.0f} MiB free: lower data.num-processes, data.prefetch-batches "
            f"or the micro-batch, or enlarge it (docker run --shm-size)."
        )
    return [SharedMemory(create=True, size=size_bytes) for _ in range(count)]


_worker_read: PositionReader
_worker_slots: dict[str, SharedMemory]


def _be_worker(read: PositionReader, environment: dict[str, str], closing: Connection) -> None:
    """Sets up a process that reads, and has it end with the one it reads for.

    Args:
        read: reads micro-batches.
        environment: of that process; the fork server's is as old as its first use.
        closing: ends when what is being read is no longer wanted.
    """
    global _worker_read, _worker_slots
    _worker_read, _worker_slots = read, {}
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        if closing in wait([parent.sentinel, closing]):
            read.reader.cancel()
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_into(slot_name: str, positions: list[int], later: list[int]) -> tuple[tuple[tuple[int, ...], str], Findings]:
    """Reads a micro-batch into shared memory; returns its shape and dtype, and the findings."""
    if slot_name not in _worker_slots:
        _worker_slots[slot_name] = SharedMemory(slot_name)
    memory = _worker_slots[slot_name].buf
    clips, findings = _worker_read(positions, later, memory)
    place = np.ndarray(clips.shape, clips.dtype, memory)
    if not np.may_share_memory(place, clips):
        np.copyto(place, clips)
    return (clips.shape, clips.dtype.str), findings
