"""Nodes that will be taken away: Ray's drain notices in; a call, once one is for a node that this run is on, out.

`ray drain-node` and autoscalers whose cloud reclaims a machine mark a node as draining, with a deadline; Ray places
nothing on it any more. Ray Train tells its workers by `ray.train.get_preemption_info`, but that is a collective through
an actor, and what it does next, waiting for the deadline and starting as many workers anew, is not what an elastic run
needs. So the driver asks Ray's own source of it, and tells the workers as it does of a signal.
"""

import threading
from collections.abc import Callable
from types import TracebackType

import ray
from ray.exceptions import RayError
from ray.util import placement_group_table

_POLL_S = 2.0


class DrainWatch:
    """Looks for drain notices while its `with` block runs a group of workers, in a thread of its own.

    Args:
        world_size: workers of the group (count).
        notify: called once, when a node of theirs is being drained.
    """

    def __init__(self, world_size: int, notify: Callable[[], None]) -> None:
        self._world_size = world_size
        self._notify = notify
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.found = False
        """Whether `notify` was called."""

    def __enter__(self) -> "DrainWatch":
        self._known = set(placement_group_table())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._ended.wait(_POLL_S):
                if draining_nodes() & self._nodes():
                    self.found = True
                    print("a node is to be taken away: saving a checkpoint", flush=True)
                    self._notify()
                    return
        except RayError as error:
            print(f"no longer looking for nodes that will be taken away: {error}", flush=True)

    def _nodes(self) -> set[str]:
        """Returns the ids of the nodes of the group that was started after this watch."""
        new = [table for name, table in placement_group_table().items() if name not in self._known]
        groups = [table for table in new if len(table["bundles"]) == self._world_size and table["state"] == "CREATED"]
        return {node for table in groups for node in table["bundles_to_node_id"].values()}


def draining_nodes() -> set[str]:
    """Returns the ids of the nodes that are being drained; none where Ray does not tell, which it does not publicly."""
    ask = getattr(ray._private.state.state, "get_draining_nodes", dict)
    return set(ask())
