"""Runs an iterator ahead of its consumer in one background thread; its errors surface in the consumer."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Prefetcher(Generic[_Item]):
    """Iterates over `source`, up to `depth` items ahead, until `close`, an error, or the end of the source."""

    def __init__(self, source: Iterator[_Item], depth: int) -> None:
        self._queue: queue.Queue[tuple[_Item | None, BaseException | None]] = queue.Queue(maxsize=depth)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, source: Iterator[_Item]) -> None:
        try:
            for item in source:
                self._put(item, None)
                if self._closing.is_set():
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # noqa: BLE001 - handed on, whatever it is, and raised in the consumer
            self._put(None, error)

    def _put(self, item: _Item | None, error: BaseException | None) -> None:
        while not self._closing.is_set():
            try:
                self._queue.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def __iter__(self) -> "Prefetcher[_Item]":
        return self

    def __next__(self) -> _Item:
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Ends the thread and waits for it."""
        self._closing.set()
        self._thread.join()
