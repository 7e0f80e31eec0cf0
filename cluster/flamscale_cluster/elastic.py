"""How many workers a run starts with, and when it may have more: world sizes in, what the cluster has room for out.

Ray Train can resize a group between two numbers, but it takes any number between them, also one that cannot share the
global batch, and kills the group in the middle of its work. Here room is asked for as Ray Train asks for it, by
placement groups: they count only what other jobs leave over, and an autoscaler adds nodes for those that wait.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from ray.exceptions import RayError
from ray.util import placement_group, placement_group_table, remove_placement_group

from flamscale.config import ClusterConfig
from flamscale.errors import ClusterError

PATIENCE_S = 10.0
"""How long a start waits for room for the most workers before it takes fewer (seconds)."""
START_TIMEOUT_S = 180.0
"""How long a start waits for room for the fewest workers (seconds)."""
_POLL_S = 1.0


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Returns what Ray sets aside for each worker, by Ray's names."""
    needed: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    return needed | ({"GPU": 1} if cluster.accelerator == "gpu" else {})


def group_resources(cluster: ClusterConfig, world_size: int) -> dict[str, float]:
    """Returns what Ray sets aside for all workers of a group together."""
    return {name: count * world_size for name, count in worker_resources(cluster).items()}


class Room:
    """Places for workers beyond those there are, reserved as they come while its `with` block runs.

    Args:
        world_sizes: sizes to reach, in rising order.
        worker: resources of one worker, by Ray's names.
        present: workers that have their places already (count).
    """

    def __init__(self, world_sizes: Sequence[int], worker: Mapping[str, float], present: int = 0) -> None:
        self.larger = [size for size in world_sizes if size > present]
        self._worker = dict(worker)
        self.present = present
        self._groups: list[Any] = []

    def __enter__(self) -> "Room":
        more = self.larger[-1] - self.present if self.larger else 0
        self._groups = [placement_group([self._worker]) for _ in range(more)]  # places come one by one, in any order
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for group in self._groups:
            remove_placement_group(group)

    def world_size(self) -> int:
        """Returns the largest size there is room for now; `present` where there is none for more."""
        tables = placement_group_table()
        places = sum(tables[group.id.hex()]["state"] == "CREATED" for group in self._groups)
        return max([self.present, *(size for size in self.larger if size <= self.present + places)])


def find_world_size(world_sizes: Sequence[int], worker: Mapping[str, float], check: Callable[[], None]) -> int:
    """Returns the largest of the world sizes, in rising order, that the cluster has room for; waits a little for all.

    Args:
        world_sizes: sizes to choose from.
        worker: resources of one worker, by Ray's names.
        check: called while it waits; ends the wait by an error.

    Raises:
        ClusterError: there was not even room for the smallest.
    """
    started = time.monotonic()
    with Room(world_sizes, worker) as room:
        while (found := room.world_size()) < world_sizes[-1]:
            waited_s = time.monotonic() - started
            if found and waited_s > PATIENCE_S:
                break
            if waited_s > START_TIMEOUT_S:
                raise ClusterError(
                    f"Expected room for at least {world_sizes[0]} workers of {dict(worker)} each, found none in "
                    f"{START_TIMEOUT_S:g} s; add nodes, or lower --cluster.min-workers or --cluster.cpus-per-worker."
                )
            check()
            time.sleep(_POLL_S)
    return found


class GrowthWatch:
    """Looks for room for more workers while its `with` block runs a group of them, in a thread of its own.

    Args:
        room: places beyond those of the group.
        after_s: how long the room must have been there (seconds).
        notify: called once, when it has been.
    """

    def __init__(self, room: Room, after_s: float, notify: Callable[[], None]) -> None:
        self._room = room
        self._after_s = after_s
        self._notify = notify
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.found = False
        """Whether `notify` was called."""

    def __enter__(self) -> "GrowthWatch":
        if self._room.larger:
            self._known = set(placement_group_table())
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        try:
            self._notify_of_room()
        except RayError as error:
            print(f"no longer looking for room for more workers: {error}", flush=True)

    def _notify_of_room(self) -> None:
        while not self._has_places():  # or what is reserved here could be what the group still needs
            if self._ended.wait(_POLL_S):
                return
        with self._room:
            since = time.monotonic()
            while not self._ended.wait(_POLL_S):
                if self._room.world_size() == self._room.present:
                    since = time.monotonic()
                elif time.monotonic() - since >= self._after_s:
                    self.found = True
                    self._notify()
                    self._ended.wait()  # keeps the room until the workers have left

    def _has_places(self) -> bool:
        """Whether the group that was started after this watch is placed."""
        new = [table for name, table in placement_group_table().items() if name not in self._known]
        return any(table["state"] == "CREATED" and len(table["bundles"]) == self._room.present for table in new)
