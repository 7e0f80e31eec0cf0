"""Runs the main job on a Ray cluster: a config in; a group of workers trains; the run's result and last lines out.

Ray places the workers and starts them anew when one dies. What a run has learned lies in the checkpoints of its run
directory alone, so starting anew, here or by submitting the job again, goes on from the newest one.
"""

import dataclasses
import logging
import os
import shlex
import shutil
import sys
from typing import Any

from flamscale.config import ClusterConfig, PretrainConfig
from flamscale.errors import ClusterError, ConfigError, FlamError, LeaveError
from flamscale.preflight import check_inputs
from flamscale.run_directory import RunDirectory
from flamscale.training.out_of_memory import remedy
from flamscale.training.sizes import Stage

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # progress lines resemble each other: none of them is to be swallowed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line of a worker comes twice
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # a busy machine needs more than Ray's 60 s for all the imports
}
os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})  # read on import of ray

import ray  # noqa: E402
import ray.train.torch  # noqa: E402

from flamscale_cluster.draining import DrainWatch  # noqa: E402
from flamscale_cluster.elastic import (  # noqa: E402
    GrowthWatch,
    Room,
    find_world_size,
    group_resources,
    worker_resources,
)
from flamscale_cluster.head import find_cluster  # noqa: E402
from flamscale_cluster.leaving import LeaveNotice, view_from_here  # noqa: E402
from flamscale_cluster.process_group import ProcessGroupConfig  # noqa: E402
from flamscale_cluster.worker import run_worker  # noqa: E402

_RAY_FOLDER = "ray"  # Ray Train wants a folder that all workers share, and keeps next to nothing in it
train: Any = ray.train  # typed as Ray Train's first version, though the second is what comes


def launch(config: PretrainConfig) -> dict[str, Any]:
    """Runs or resumes a pretraining run on the Ray cluster that this process can reach.

    Returns:
        The content of result.json.

    Raises:
        FlamError: settings, data, checkpoints or run directory are not as needed.
        ClusterError: there is no cluster, the workers found no place on it, or kept failing.
    """
    address = find_cluster(config.cluster.address)
    check_inputs(config)
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
    try:
        result, last_lines = run_group(config, shlex.join(["python", *sys.argv]))
    finally:
        ray.shutdown()
    print("\n".join(last_lines), flush=True)
    return result


def run_group(config: PretrainConfig, command: str = "") -> tuple[dict[str, Any], list[str]]:
    """Runs or resumes a pretraining run by workers of the Ray cluster that this process belongs to.

    Args:
        config: the run.
        command: what started it, for the report.

    Returns:
        The content of result.json, and the last lines for the terminal.

    Raises:
        FlamError: as `launch` does.
    """
    try:
        with LeaveNotice(RunDirectory.of(config).leave_notice) as notice:
            return _fit(config, notice, command)
    finally:
        shutil.rmtree(RunDirectory.of(config).root / _RAY_FOLDER, ignore_errors=True)


def _announce(cluster: ClusterConfig, world_size: int) -> None:
    needed, found = group_resources(cluster, world_size), ray.cluster_resources()
    if any(found.get(name, 0) < count for name, count in needed.items()):
        here = {name: found.get(name, 0) for name in needed}
        print(f"waiting for workers: they need {needed}, the cluster has {here} so far", flush=True)
    fewer = f" of at most {cluster.num_workers}" if world_size < cluster.num_workers else ""
    print(f"starting {world_size} workers{fewer}", flush=True)


def _fit(config: PretrainConfig, notice: LeaveNotice, command: str = "") -> tuple[dict[str, Any], list[str]]:
    """Runs worker groups until one comes to the end; errors that would only happen again end the run at once."""
    cluster, failures = config.cluster, 0
    while True:
        notice.check()
        world_size = _world_size(config, notice)
        _announce(cluster, world_size)
        room = Room(config.world_sizes, worker_resources(cluster), world_size)
        with (
            GrowthWatch(room, cluster.grow_after_s, notice.give) as growth,
            DrainWatch(world_size, notice.give) as drain,
        ):
            try:
                return _trainer(config, world_size, command).fit().return_value
            except train.ControllerError as error:
                if not cluster.min_workers:
                    raise _no_place(cluster, error) from error
                last, causes = error, {}
                reason = f"the workers could not start ({_first_line(error.controller_failure)})"
            except train.WorkerGroupError as error:
                last, causes = error, {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
                rank, cause = next(iter(causes.items()))
                reason = f"worker {rank} failed ({type(cause).__name__}: {_first_line(cause)})"
        if growth.found or drain.found:
            notice.withdraw()
        final = next((cause for cause in causes.values() if isinstance(cause, FlamError)), None)
        if isinstance(final, LeaveError) and (growth.found or drain.found) and not notice.told:
            if not drain.found:
                print("there is room for more workers", flush=True)
            continue
        if final is not None:
            raise final from None
        if any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in causes.values()):
            raise _low_memory(config, world_size) from last
        if drain.found:  # they did not leave in time
            print(reason, flush=True)
            continue
        failures += 1
        print(f"{reason}, failure {failures}", flush=True)
        if failures > cluster.max_failures:
            print(last, file=sys.stderr, flush=True)
            raise ClusterError(
                f"The workers failed {failures} times, the last time as shown above; submit the job again to go on "
                "from the newest checkpoint."
            )


def _world_size(config: PretrainConfig, notice: LeaveNotice) -> int:
    """Returns how many workers to start; a number that is fixed waits for its place in Ray Train."""
    sizes = config.world_sizes
    return sizes[0] if len(sizes) == 1 else find_world_size(sizes, worker_resources(config.cluster), notice.check)


def _trainer(config: PretrainConfig, world_size: int, command: str) -> Any:
    cluster = config.cluster
    gpu, directory = cluster.accelerator == "gpu", RunDirectory.of(config)
    return train.torch.TorchTrainer(
        run_worker,
        train_loop_config={
            "config": dataclasses.asdict(config),
            "command": command,
            "leave_notice": view_from_here(directory.leave_notice) if cluster.local_out else None,
        },
        torch_config=ProcessGroupConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=world_size, use_gpu=gpu, resources_per_worker=worker_resources(cluster)
        ),
        run_config=train.RunConfig(
            name=_RAY_FOLDER,
            storage_path=str(directory.root),  # of the driver's node, which the controller of the run shares
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=1),
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _no_place(cluster: ClusterConfig, error: Any) -> ClusterError:
    needed = group_resources(cluster, cluster.num_workers)
    found = {name: ray.cluster_resources().get(name, 0) for name in needed}
    return ClusterError(
        f"{cluster.num_workers} workers could not start: they need {needed}, the cluster has {found} "
        f"({_first_line(error.controller_failure)}); add nodes, or lower --cluster.num-workers or "
        "--cluster.cpus-per-worker."
    )


def _low_memory(config: PretrainConfig, world_size: int) -> FlamError:
    """What ends a run where Ray killed a worker before its node ran out of memory."""
    if config.cluster.accelerator == "gpu":
        return ClusterError(
            "Ray killed a worker, since its node ran low on memory, which beside a GPU the readers of clips take; "
            "lower --data.num-processes, --data.prefetch-batches, --data.cache-mib or --data.fetch-cache-mib, or "
            "choose nodes with more."
        )
    stage: Stage = "flam" if RunDirectory.of(config).has_tokenizer else "tokenizer"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = [int(node.get("CPU", 0)) // config.cluster.cpus_per_worker for node in nodes]
    each = min(
        (
            int(node["memory"]) // min(held, world_size)
            for node, held in zip(nodes, places, strict=True)
            if held and "memory" in node
        ),
        default=0,  # the node is gone
    )
    return ConfigError(
        f"Ray killed a worker in stage {stage}, since its node ran low on memory, with {each / 2**30:.2f} GiB for each "
        f"worker it has a place for; {remedy(config, stage, world_size, each)}."
    )


def _cause(failure: Any) -> BaseException:
    """Returns what became of a worker; Ray hands it over in wrappers that show only its traceback."""
    return getattr(failure, "health_check_failure", getattr(failure, "_base_exc", failure))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
