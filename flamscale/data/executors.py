"""Who does the work: a function and its items in; results out as they come, in any order.

`serial` works here and now, `Processes` in processes of this machine, flamscale_cluster.tasks on a Ray cluster. The
function must be pure and importable, its items independent: an item may be worked on twice.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flamscale.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_POOLS = 4  # a pool is replaced when one of its processes was killed


class Executor(Protocol):
    """Maps a function over items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yields the results as they come; an error of the function ends the work."""


def serial(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Works in this process, one item after the other."""
    return map(function, items)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Works in processes of their own, started fresh, since object-store clients do not survive a fork."""

    num_workers: int
    """Processes (count)."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yields the results as they come; what a killed process was at is done again.

        Raises:
            DataError: processes were killed again and again.
        """
        todo = dict(enumerate(items))
        for _ in range(_MAX_POOLS):
            try:
                yield from self._work(function, todo)
            except BrokenProcessPool:
                continue
            return
        raise DataError(
            f"A worker process was killed {_MAX_POOLS} times, the last time while {self.num_workers} worked on these: "
            f"{', '.join(map(str, list(todo.values())[: self.num_workers]))}; with little memory choose fewer "
            f"--workers, and take out a file that kills its reader."
        )

    def _work(self, function: Callable[[Item], Result], todo: dict[int, Item]) -> Iterator[Result]:
        """Yields results until all are there or a process is killed; takes finished items out of `todo`."""
        waiting = iter(list(todo.items()))
        running: dict[Future[Result], int] = {}
        spawn = multiprocessing.get_context("spawn")
        num_workers = max(1, min(self.num_workers, len(todo)))
        pool = ProcessPoolExecutor(num_workers, mp_context=spawn, initializer=_begin_worker)
        try:
            while True:
                for number, item in waiting:
                    running[pool.submit(function, item)] = number
                    if len(running) >= 2 * num_workers:
                        break
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    result = done.result()
                    del todo[running.pop(done)]
                    yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends the process when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
