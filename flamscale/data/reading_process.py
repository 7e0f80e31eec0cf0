"""A process that reads micro-batches into shared memory, one after the other as it is asked.

It comes from a fork server, which has never touched an object store's client, and is asked over a pipe of its own: no
thread of the caller's stands between, as in an executor, to take processor time from those that decode.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection, wait
from multiprocessing.shared_memory import SharedMemory
from typing import NamedTuple

import numpy as np

from flamscale.data.position_reader import PositionReader
from flamscale.data.reader import Findings


class ProcessDiedError(Exception):
    """The process has been killed, or could not start."""


class _Task(NamedTuple):
    slot_name: str
    positions: range
    later: range


class _Answer(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    findings: Findings


class ReadingProcess:
    """Reads what it is asked for, in that order, as `PositionReader` does.

    Args:
        read: reads a micro-batch; the process has a copy of it.
    """

    def __init__(self, read: PositionReader) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        closing, self._open = context.Pipe(duplex=False)
        arguments = (read, dict(os.environ), theirs, closing)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        closing.close()

    def wait_until_up(self) -> None:
        """Waits until it can read; one that dies before is told of by `receive`."""
        with contextlib.suppress(EOFError, OSError):
            self._connection.recv()

    def ask(self, slot: SharedMemory, positions: range, later: range) -> None:
        """Asks for a micro-batch in `slot`, and names one that it will be asked for later."""
        with contextlib.suppress(OSError):  # `receive` will tell
            self._connection.send(_Task(slot.name, positions, later))

    def receive(self, slot: SharedMemory) -> tuple[np.ndarray, Findings]:
        """Returns the clips [B, T, ...] of the oldest task, which lie in its `slot`, and what was met on the way.

        Raises:
            ProcessDiedError: the process has died.
            DataError: as `ClipReader.read`.
        """
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ProcessDiedError from error
        if isinstance(answer, Exception):
            raise answer
        return np.ndarray(answer.shape, answer.dtype, slot.buf), answer.findings

    def close(self) -> None:
        """Ends it after the micro-batch it has begun, whose reads give up at their next failure."""
        self._open.close()
        self._connection.close()
        self._process.join()


def _serve(read: PositionReader, environment: dict[str, str], connection: Connection, closing: Connection) -> None:
    """Does tasks until the connection is closed, or the process that it reads for has died.

    Args:
        read: reads micro-batches.
        environment: of that process; the fork server's is as old as its first use.
        connection: tasks come in, answers go out.
        closing: ends when what is being read is no longer wanted.
    """
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
    slots: dict[str, SharedMemory] = {}
    with contextlib.suppress(EOFError, OSError):  # nobody asks any more, or wants the answer
        connection.send("up")
        while True:
            connection.send(_answer(read, slots, connection.recv()))


def _answer(read: PositionReader, slots: dict[str, SharedMemory], task: _Task) -> _Answer | Exception:
    """Reads a micro-batch into its slot; returns what came of it."""
    try:
        if task.slot_name not in slots:
            slots[task.slot_name] = SharedMemory(task.slot_name)
        memory = slots[task.slot_name].buf
        clips, findings = read(task.positions, task.later, memory)
        place = np.ndarray(clips.shape, clips.dtype, memory)
        if not np.may_share_memory(place, clips):
            np.copyto(place, clips)
    except Exception as error:  # noqa: BLE001 - raised again where the micro-batch was asked for
        error.add_note(f"In a process that reads:\n{traceback.format_exc()}")
        return error
    return _Answer(clips.shape, clips.dtype.str, findings)
