"""Ends a process that has stopped making progress, and leaves behind where each of its threads stood.

A collective that one process never enters hangs all the others for ever; ended, they can be started anew.
"""

import faulthandler
import os
from pathlib import Path
from types import TracebackType
from typing import TextIO


class Watchdog:
    """Watches while its `with` block runs; exit code 1 once `beat` has not been called for too long.

    Args:
        folder: where the stack traces go, a file a process; a process that does not hang leaves none.
        rank: this process, for the file's name.
        timeout_s: longest time between two calls of `beat` (seconds); 0 for any.
    """

    def __init__(self, folder: Path, rank: int, timeout_s: float) -> None:
        self._path = folder / f"rank-{rank:05d}-{os.getpid()}.txt"
        self._timeout_s = timeout_s
        self._file: TextIO | None = None

    def __enter__(self) -> "Watchdog":
        if self._timeout_s:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
            print(f"No step was finished for {self._timeout_s:g} s. Where the threads stood:", file=self._file)
            self._file.flush()
            self.beat()
        return self

    def beat(self) -> None:
        """Says that there was progress."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink()
