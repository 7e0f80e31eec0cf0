"""Micro-batches read ahead of training, by a thread of this process or by processes of their own.

In: the positions of each micro-batch, in order. Out: their clips, in the same order. Processes come from a fork server,
which has never touched an object store's client, and write into shared memory that the caller gets as it is, to be used
again once the caller has dropped it; a killed process is replaced, and what was in its hands is read again. They start
behind the first micro-batch, and until they are up, the thread reads: nothing ever waits for a process to start. They
take micro-batches in turn, so that each knows which it will read later, and has them sent by an object store meanwhile.
"""

import logging
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from flamscale.data.position_reader import PositionReader
from flamscale.data.reader import Findings
from flamscale.data.reading_process import ProcessDiedError, ReadingProcess
from flamscale.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)
_MAX_LOSSES = 3  # times that processes may die before another micro-batch comes through
_MAX_LENT = 2  # micro-batches in the caller's hands that stay in shared memory; those beyond are copied out of it
_SHARED_MEMORY = Path("/dev/shm")


@dataclass
class _Task:
    """A micro-batch under way."""

    positions: range
    result: Callable[[], tuple[np.ndarray, Findings]]
    """Waits for clips and findings."""
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
        self, read: PositionReader, tasks: Iterator[range], *, depth: int, num_processes: int, batch_bytes: int
    ) -> None:
        self.restarts = 0
        self._read = read
        self._tasks = tasks
        self._coming: deque[range] = deque()  # taken from the tasks, and not handed out yet
        self._turn = 0
        self._depth = depth * max(num_processes, 1)
        self._num_processes = num_processes
        self._pending: deque[_Task] = deque()
        self._thread = ThreadPoolExecutor(1, "read-ahead") if depth else None
        self._slots: list[SharedMemory] = []
        self._lent: set[SharedMemory] = set()
        self._closed = False
        self._processes: list[ReadingProcess] = []
        self._starting: threading.Thread | None = None
        self._losses = 0
        if num_processes:
            self._slots = _allocate(self._depth + _MAX_LENT, batch_bytes)

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> tuple[range, np.ndarray, Findings]:
        if self._thread is None:
            positions = next(self._tasks)
            return positions, *self._read(positions)
        while True:
            self._fill()
            task = self._pending[0]
            try:
                clips, findings = task.result()
            except ProcessDiedError as error:
                self._replace_processes(error)
                continue
            self._pending.popleft()
            if self._num_processes and self._starting is None:
                self._start_processes()
            if task.slot is not None:
                clips = self._lend(task.slot, clips)
                self._losses = 0
            return task.positions, clips, findings

    def _lend(self, slot: SharedMemory, clips: np.ndarray) -> np.ndarray:
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
                later = range(0) if self._num_processes else later  # it only stands in for processes
                self._pending.append(_Task(positions, self._thread.submit(self._read, positions, later).result, None))
                continue
            busy = self._lent | {task.slot for task in self._pending}
            slot = next(slot for slot in self._slots if slot not in busy)
            process = processes[self._turn % self._num_processes]
            self._turn += 1
            process.ask(slot, positions, later)
            self._pending.append(_Task(positions, partial(process.receive, slot), slot))

    def _next_task(self) -> tuple[range, range]:
        """Returns the positions of the next micro-batch, and of one that whoever reads it will be handed later."""
        while len(self._coming) <= self._depth:
            self._coming.append(next(self._tasks))
        return self._coming.popleft(), self._coming[self._depth - 1]

    def _start_processes(self) -> None:
        def start() -> None:
            processes = [ReadingProcess(self._read) for _ in range(self._num_processes)]
            for process in processes:
                process.wait_until_up()
            self._processes = processes

        self._starting = threading.Thread(target=start, name="start-readers", daemon=True)
        self._starting.start()

    def _replace_processes(self, error: ProcessDiedError) -> None:
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
        for process in self._processes:
            process.close()
        self._processes = []

    def close(self) -> None:
        """Ends thread and processes, after the micro-batches they have begun."""
        self._read.reader.cancel()
        self._pending.clear()
        self._stop_processes()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
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
