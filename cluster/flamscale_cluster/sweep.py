"""Runs a scaling study on a Ray cluster: its runs in; their run directories, each finished once, out.

All that a run has learned lies in its run directory, so a study that was killed goes on where it was, and finished or
stopped runs are skipped.
"""

import fcntl
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import ray_constants

from flamscale.data.make_config import MakeShards
from flamscale.errors import ClusterError, ConfigError
from flamscale.run_directory import RunDirectory
from flamscale.scaling.board import Board
from flamscale.scaling.execution import make_shards, prepare, shared_config
from flamscale.scaling.records import RunRecord, Timing, current_commit
from flamscale.scaling.study import Run, Study
from flamscale.scaling.usage import Meter
from flamscale_cluster.head import HOST, find_cluster
from flamscale_cluster.sweep_config import SweepConfig
from flamscale_cluster.sweep_tasks import Task, first_line, outcome, run_needs, start_run
from flamscale_cluster.tasks import runtime_env

if TYPE_CHECKING:
    from flamscale_cluster.early_stopping import EarlyStopping

_REFRESH_S = 2.0
_OBJECT_STORE_BYTES = 100 * 2**20  # tasks hand over next to nothing
_ROUNDING = 1e-6  # of sums of shares of devices


class FailedRunsError(ClusterError):
    """Runs of a study failed for good."""


def run_study(study: Study, config: SweepConfig, shards: Sequence[MakeShards] = (), *, entities: bool = False) -> None:
    """Runs what of a study is not finished.

    Args:
        study: the grid.
        config: where it works.
        shards: data sets to make before, unless they are there.
        entities: also measure each model's slots against the entities, which needs a simulator's data.

    Raises:
        FlamError: data, settings, cluster or run directories are not as needed; nothing has run.
        FailedRunsError: runs kept failing; all others are finished.
    """
    runs = study.runs()
    device = "GPU" if study.base.cluster.accelerator == "gpu" else "CPU"
    _check(runs, device, config)
    with _only_driver(Path(study.base.out)), _cluster(config.ray):
        if not config.ray:
            _check_room(runs, config, ray.cluster_resources())
        meter = Meter(Path(study.base.out), device)
        Task(make_shards, {"CPU": 1.0}).run_all((job,) for job in shards)
        board = Board(runs)
        waiting = [run for run in runs if board.states[run.name] == "waiting"]
        shared = {run.config.data.url: shared_config(study.base, run.config) for run in waiting}
        Task(prepare, {device: config.device_share}).run_all((base,) for base in shared.values())
        with board.shown():
            errors = _Work(waiting, board, config, _early_stopping(runs, config), entities, meter).run()
    print(f"the study took {meter.usage}", flush=True)
    if errors:
        name, error = next(iter(errors.items()))
        raise FailedRunsError(
            f"{len(errors)} of {len(runs)} runs failed for good, {name} with: {error}; start the study again to try "
            "them once more."
        )


def _check(runs: Sequence[Run], device: str, config: SweepConfig) -> None:
    if device == "GPU" and config.device_share > 1:
        raise ConfigError(
            f"device-share must be at most 1 for runs on GPUs, as a run of one worker works on one, got "
            f"{config.device_share:g}; give its config more workers."
        )
    for run in runs:
        if run.config.cluster.min_workers:
            raise ConfigError(
                f"A study's runs have fixed numbers of workers, and {run.name} asks for cluster.min-workers "
                f"{run.config.cluster.min_workers}; leave it out."
            )


def _check_room(runs: Sequence[Run], config: SweepConfig, found: Mapping[str, float]) -> None:
    """Raises ConfigError where a run would wait for ever: this machine gets no more nodes."""
    for run in runs:
        num_workers = run.config.cluster.num_workers
        for name, count in run_needs(run.config, config.device_share).items():
            if found.get(name, 0.0) < count:
                workers, remedy = "", "device-share"
                if num_workers > 1:
                    workers, remedy = f" for its {num_workers} workers", "num-workers or cluster.cpus-per-worker"
                raise ConfigError(
                    f"The run {run.name} needs {count:g} {name}{workers}, and this machine has "
                    f"{found.get(name, 0.0):g}; lower {remedy}, or name a cluster with --ray."
                )


@contextmanager
def _only_driver(out: Path) -> Iterator[None]:
    """Keeps other drivers out of a study's folder; raises ConfigError if one is there, or it cannot be written."""
    RunDirectory(out).create()
    with (out / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process gives it up
        except BlockingIOError as error:
            raise ConfigError(
                f"Another process runs the study in {out}; wait for it, or choose another --out."
            ) from error
        yield


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Joins a Ray cluster, or starts one of this machine that ends with the block."""
    if address:
        place = find_cluster(address, flag="--ray")
        try:
            ray.init(address=place, logging_level=logging.WARNING, log_to_driver=False, runtime_env=runtime_env())
        except ConnectionError as error:
            raise ClusterError(
                f"The Ray cluster at {place} takes no driver from here; check --ray and, if it asks for a token, "
                "RAY_AUTH_MODE and RAY_AUTH_TOKEN."
            ) from error
    else:
        spans_machines, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:  # by Ray's switch for clusters on loopback alone (see LocalHead); else the address is the machine's own
            ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False,
                     object_store_memory=_OBJECT_STORE_BYTES, _node_ip_address=HOST)  # fmt: skip
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = spans_machines
    try:
        yield
    finally:
        ray.shutdown()


def _early_stopping(runs: Sequence[Run], config: SweepConfig) -> "EarlyStopping | None":
    if not config.early_stop:
        return None
    from flamscale_cluster.early_stopping import EarlyStopping  # seconds to import

    return EarlyStopping(runs, config.early_stop)


@dataclass
class _Work:
    """Works until every run is finished, given up or has failed too often.

    Runs start in the study's order: one that finds no room yet holds back those behind it, or small runs would keep a
    large one waiting for as long as there are any.
    """

    runs: Sequence[Run]
    board: Board
    config: SweepConfig
    early_stopping: "EarlyStopping | None"
    entities: bool
    meter: Meter

    def __post_init__(self) -> None:
        self._waiting = deque(self.runs)
        self._running: dict[Any, Run] = {}
        self._given_up: set[str] = set()
        self._failures = Counter[str]()
        self._errors: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Returns the last error of each run that has failed too often."""
        commit = current_commit()
        self._count_time()  # of what was made before
        while self._waiting or self._running:
            while self._waiting and self._has_room(self._waiting[0]):
                run = self._waiting.popleft()
                RunRecord(run).begin(commit)
                self.board.tell(run, "running")
                self._running[start_run(run.config, self.entities, self.config.device_share)] = run
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=_REFRESH_S)
            self._count_time()
            for reference in done:
                self._end(self._running.pop(reference), *outcome(reference))
            self._give_up_hopeless()
            self.board.refresh()
        return self._errors

    def _count_time(self) -> None:
        device = self.meter.usage.device
        held = self._needs(self._running.values())
        self.meter.count(held.get(device, 0.0), ray.cluster_resources().get(device, 0.0))

    def _has_room(self, run: Run) -> bool:
        """Whether the cluster has room for a run beside those at work; alone, it waits for nodes that may join."""
        found = ray.cluster_resources()
        needs = self._needs([*self._running.values(), run])
        return not self._running or all(count <= found.get(name, 0.0) + _ROUNDING for name, count in needs.items())

    def _needs(self, runs: Iterable[Run]) -> dict[str, float]:
        """Returns what runs need together."""
        total: dict[str, float] = defaultdict(float)
        for run in runs:
            for name, count in run_needs(run.config, self.config.device_share).items():
                total[name] += count
        return total

    def _end(self, run: Run, timing: Timing, error: Exception | None) -> None:
        """Records how an attempt ended, and lines the run up again if it may be tried again."""
        if error is None:
            RunRecord(run).finish(timing)
            self.board.tell(run, "finished")
        elif run.name in self._given_up:
            RunRecord(run).stop()
            self.board.tell(run, "stopped")
        else:
            self._failures[run.name] += 1
            if isinstance(error, ConfigError) or self._failures[run.name] > self.config.max_retries:
                self._errors[run.name] = first_line(error)
                self.board.tell(run, f"failed: {first_line(error)}")
            else:
                self._waiting.append(run)
                self.board.tell(run, f"to be tried again after: {first_line(error)}")

    def _give_up_hopeless(self) -> None:
        """Ends the processes of hopeless runs; their end is recorded when it is seen, as they may finish before."""
        for reference, run in self._running.items():
            if self.early_stopping and self.early_stopping.is_hopeless(run):
                self._given_up.add(run.name)
                ray.cancel(reference, force=True)
