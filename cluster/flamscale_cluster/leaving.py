"""How the driver of a run tells its workers to leave: a signal, or a call, in; a file that they look for out.

It obeys SIGTERM, and Ray's drain notices for the workers' nodes (`draining.py`). Where the nodes share no disk, an
actor beside the driver looks for the file on behalf of the workers.
"""

import os
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flamscale.errors import LeaveError


class LeaveNotice:
    """A file that has workers save a checkpoint and end; inside its `with` block, the first SIGTERM gives it too.

    A second SIGTERM ends this process at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.told = False
        """Whether a signal asked for it."""

    def __enter__(self) -> "LeaveNotice":
        self._path.unlink(missing_ok=True)  # of a driver that was killed
        self._before = signal.signal(signal.SIGTERM, self._leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LeaveError once a signal asked for it."""
        if self.told:
            raise LeaveError("Told to leave while no worker was at work; submit the job again to go on.")

    def give(self) -> None:
        """Tells the workers."""
        self._path.touch()

    def withdraw(self) -> None:
        """Takes back what `give` told, not what a signal did."""
        self._path.unlink(missing_ok=True)
        if self.told:  # also if it came a moment ago
            self.give()

    def _leave(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self.told = True
        self.give()
        os.write(1, b"told to leave: saving a checkpoint\n")  # print may be under way


class FileView:
    """Looks for a file on the node it is on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether the file is there."""
        return self._path.exists()


def view_from_here(path: Path) -> Any:
    """Returns an actor on this node that is a FileView, for workers on others."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(FileView).options(scheduling_strategy=here).remote(path)
