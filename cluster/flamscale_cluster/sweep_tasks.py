"""What a study starts on a Ray cluster: a function, or a run, in; a Ray task with what it needs of the devices out.

A run of one worker is a task with a process of its own and a share of a device. A run of several is a task that holds
nothing itself and drives their group as `launch` does that of a single job. Ray sets aside the places of a group all at
once or not at all, by a placement group, so that no two groups each hold a part and wait for the rest.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util import placement_group, remove_placement_group

from flamscale.config import PretrainConfig
from flamscale.errors import ClusterError, FlamError
from flamscale.scaling.execution import measure_entities, train
from flamscale.scaling.records import Timing
from flamscale_cluster.elastic import group_resources, worker_resources

_POLL_S = 60.0


@dataclass(frozen=True)
class Task:
    """A function that works in a process of its own."""

    function: Callable[..., Any]
    needs: dict[str, float]
    """What Ray sets aside for it, CPU or GPU (count)."""

    def start(self, *arguments: Any) -> Any:
        """Returns Ray's reference to its result."""
        options: dict[str, Any] = {
            "num_cpus": self.needs.get("CPU", 0), "num_gpus": self.needs.get("GPU", 0), "max_calls": 1, "max_retries": 0
        }  # fmt: skip
        return ray.remote(**options)(self.function).remote(*arguments)

    def run_all(self, items: Iterable[tuple[Any, ...]]) -> None:
        """Returns when all are done; raises what one of them raised."""
        for reference in [self.start(*arguments) for arguments in items]:
            _, error = outcome(reference)
            if isinstance(error, FlamError):
                raise error
            if error is not None:
                raise ClusterError(
                    f"The study's shared data could not be made ({first_line(error)}); start the study again to go on."
                ) from error


def run_needs(config: PretrainConfig, device_share: float) -> dict[str, float]:
    """Returns what a run needs of the cluster, by Ray's names, all its workers together.

    Args:
        config: the run.
        device_share: share of a GPU, or number of CPU cores, of a run of one worker.
    """
    cluster = config.cluster
    if cluster.num_workers > 1:
        return group_resources(cluster, cluster.num_workers)
    return {"GPU" if cluster.accelerator == "gpu" else "CPU": device_share}


def start_run(config: PretrainConfig, entities: bool, device_share: float) -> Any:
    """Starts to train or resume a run; returns Ray's reference to its Timing."""
    if config.cluster.num_workers > 1:
        return Task(train_group, {}).start(config, entities)
    return Task(train, run_needs(config, device_share)).start(config, entities)


def train_group(config: PretrainConfig, entities: bool) -> Timing:
    """Does what `train` does for a run of several workers, from the driver of their group."""
    from flamscale_cluster.launch import run_group  # seconds to import, which the study's own driver needs not

    _wait_for_places(config)
    began = time.time()
    run_group(config)
    if entities:
        _, error = outcome(Task(measure_entities, worker_resources(config.cluster)).start(config))
        if error is not None:
            raise error
    return Timing(process_started=psutil.Process().create_time(), began=began, ended=time.time())


def _wait_for_places(config: PretrainConfig) -> None:
    """Returns when there are places for all workers at once: Ray Train would give up where other jobs have them."""
    cluster = config.cluster
    places = placement_group([worker_resources(cluster)] * cluster.num_workers)
    try:
        while not places.wait(_POLL_S):
            pass
    finally:
        remove_placement_group(places)  # for Ray Train, which sets aside its own


def outcome(reference: Any) -> tuple[Any, Exception | None]:
    """Returns a task's result, or why there is none."""
    try:
        return ray.get(reference), None
    except ray.exceptions.RayTaskError as error:
        return None, error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:  # its process or node died
        return None, error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
