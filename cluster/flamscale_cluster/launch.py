"""Runs the main job on a Ray cluster: a config in; a group of workers trains; the run's result and last lines out.

Ray places the workers and starts them anew when one dies. What a run has learned lies in the checkpoints of its run
directory alone, so starting anew, here or by submitting the job again, goes on from the newest one.
"""

import contextlib
import dataclasses
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flamscale.config import ClusterConfig, PretrainConfig
from flamscale.errors import ClusterError, FlamError
from flamscale.preflight import check_inputs
from flamscale.run_directory import RunDirectory

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

from flamscale_cluster.head import find_cluster  # noqa: E402
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
        _announce(config.cluster)
        with _leaving_on_sigterm(RunDirectory(Path(config.out)).leave_notice):
            result, last_lines = _fit(config)
    finally:
        ray.shutdown()
        shutil.rmtree(Path(config.out) / _RAY_FOLDER, ignore_errors=True)
    print("\n".join(last_lines), flush=True)
    return result


@contextlib.contextmanager
def _leaving_on_sigterm(notice: Path) -> Iterator[None]:
    """Has the first SIGTERM tell the workers to save a checkpoint and end; a second one ends this process at once."""

    def leave(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        notice.touch()
        os.write(1, b"told to leave: saving a checkpoint\n")  # print may be under way

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _announce(cluster: ClusterConfig) -> None:
    needed, found = _total(cluster), ray.cluster_resources()
    if any(found.get(name, 0) < count for name, count in needed.items()):
        here = {name: found.get(name, 0) for name in needed}
        print(f"waiting for workers: they need {needed}, the cluster has {here} so far", flush=True)
    print(f"starting {cluster.num_workers} workers", flush=True)


def _fit(config: PretrainConfig) -> tuple[dict[str, Any], list[str]]:
    """Runs worker groups until one comes to the end; errors that would only happen again end the run at once."""
    for failures in range(config.cluster.max_failures + 1):
        try:
            return _trainer(config).fit().return_value
        except train.ControllerError as error:
            raise _no_place(config.cluster, error) from error
        except train.WorkerGroupError as error:
            causes = {rank: _cause(failure) for rank, failure in error.worker_failures.items()}
            for cause in causes.values():
                if isinstance(cause, FlamError):
                    raise cause from None
            last = error
            rank, cause = next(iter(causes.items()))
            line = (str(cause).strip().splitlines() or [""])[0]
            print(f"worker {rank} failed ({type(cause).__name__}: {line}), failure {failures + 1}", flush=True)
    print(last, file=sys.stderr, flush=True)
    raise ClusterError(
        f"The workers failed {config.cluster.max_failures + 1} times, the last time as shown above; submit the job "
        "again to go on from the newest checkpoint."
    )


def _trainer(config: PretrainConfig) -> Any:
    cluster = config.cluster
    gpu = cluster.accelerator == "gpu"
    return train.torch.TorchTrainer(
        run_worker,
        train_loop_config={"config": dataclasses.asdict(config), "command": shlex.join(["python", *sys.argv])},
        torch_config=ProcessGroupConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.num_workers, use_gpu=gpu, resources_per_worker=_resources(cluster)
        ),
        run_config=train.RunConfig(
            name=_RAY_FOLDER,
            storage_path=config.out,
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=1),
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _resources(cluster: ClusterConfig) -> dict[str, int]:
    return {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.accelerator == "gpu" else {})


def _total(cluster: ClusterConfig) -> dict[str, int]:
    return {name: count * cluster.num_workers for name, count in _resources(cluster).items()}


def _no_place(cluster: ClusterConfig, error: Any) -> ClusterError:
    found = {name: ray.cluster_resources().get(name, 0) for name in _resources(cluster)}
    return ClusterError(
        f"{cluster.num_workers} workers could not start: they need {_total(cluster)}, the cluster has {found} "
        f"({str(error.controller_failure).splitlines()[0]}); add nodes, or lower --cluster.num-workers or "
        "--cluster.cpus-per-worker."
    )


def _cause(failure: Exception) -> BaseException:
    """Returns the exception a worker raised; Ray hands it over in a wrapper that shows only its traceback."""
    return getattr(failure, "_base_exc", failure)
