"""Runs a scaling study on a Ray cluster: its runs in; their run directories, each finished once, out.

Each run is a Ray task with a process of its own and a share of a device. All that a run has learned lies in its run
directory, so a study that was killed goes on where it was, and finished or stopped runs are skipped.
"""

import fcntl
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from flamscale.data.make_config import MakeShards
from flamscale.errors import ClusterError, ConfigError, FlamError
from flamscale.run_directory import RunDirectory
from flamscale.scaling.board import Board
from flamscale.scaling.execution import make_shards, prepare, shared_config, train
from flamscale.scaling.records import RunRecord, Timing, current_commit
from flamscale.scaling.study import Run, Study
from flamscale_cluster.head import HOST, find_cluster
from flamscale_cluster.sweep_config import SweepConfig
from flamscale_cluster.tasks import runtime_env

if TYPE_CHECKING:
    from flamscale_cluster.early_stopping import EarlyStopping

_REFRESH_S = 2.0
_OBJECT_STORE_BYTES = 100 * 2**20  # tasks hand over next to nothing


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
    needs = {"GPU" if study.base.cluster.accelerator == "gpu" else "CPU": config.device_share}
    _check_share(needs)
    with _only_driver(Path(study.base.out)), _cluster(config.ray):
        if not config.ray:
            _check_room(needs, ray.cluster_resources())
        _Task(make_shards, {"CPU": 1.0}).run_all((job,) for job in shards)
        runs = study.runs()
        _check(runs)
        board = Board(runs)
        waiting = [run for run in runs if board.states[run.name] == "waiting"]
        shared = {run.config.data.url: shared_config(study.base, run.config) for run in waiting}
        _Task(prepare, needs).run_all((base,) for base in shared.values())
        with board.shown():
            errors = _Work(_Task(train, needs), waiting, board, config, _early_stopping(runs, config), entities).run()
    if errors:
        name, error = next(iter(errors.items()))
        raise FailedRunsError(
            f"{len(errors)} of {len(runs)} runs failed for good, {name} with: {error}; start the study again to try "
            "them once more."
        )


def _check_share(needs: Mapping[str, float]) -> None:
    if needs.get("GPU", 0.0) > 1:
        raise ConfigError(
            f"device-share must be at most 1 for runs on GPUs, as a run works on one, got {needs['GPU']:g}."
        )


def _check_room(needs: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Raises ConfigError where a run would wait for ever: this machine gets no more nodes."""
    for name, count in needs.items():
        if found.get(name, 0.0) < count:
            raise ConfigError(
                f"A run needs {count:g} {name}, and this machine has {found.get(name, 0.0):g}; lower device-share, or "
                "name a cluster with --ray."
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


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.config.cluster.num_workers != 1:
            raise ConfigError(
                f"A study's run works in one process, and {run.name} asks for cluster.num-workers "
                f"{run.config.cluster.num_workers}; pass 1, and another micro-batch if memory is short."
            )


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
        ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False,
                 object_store_memory=_OBJECT_STORE_BYTES, _node_ip_address=HOST)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class _Task:
    """A function that works in a process of its own, with a share of a device."""

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
            _, error = _outcome(reference)
            if isinstance(error, FlamError):
                raise error
            if error is not None:
                raise ClusterError(
                    f"The study's shared data could not be made ({_first_line(error)}); start the study again to go on."
                ) from error

    @property
    def room(self) -> int:
        """How many the cluster can work on at once; one at least, which then waits for a node."""
        found = ray.cluster_resources()
        return max(1, min(int(found.get(name, 0) / count) for name, count in self.needs.items()))


def _early_stopping(runs: Sequence[Run], config: SweepConfig) -> "EarlyStopping | None":
    if not config.early_stop:
        return None
    from flamscale_cluster.early_stopping import EarlyStopping  # seconds to import

    return EarlyStopping(runs, config.early_stop)


@dataclass
class _Work:
    """Works until every run is finished, given up or has failed too often."""

    task: _Task
    runs: Sequence[Run]
    board: Board
    config: SweepConfig
    early_stopping: "EarlyStopping | None"
    entities: bool

    def __post_init__(self) -> None:
        self._waiting = deque(self.runs)
        self._running: dict[Any, Run] = {}
        self._given_up: set[str] = set()
        self._failures = Counter[str]()
        self._errors: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Returns the last error of each run that has failed too often."""
        commit = current_commit()
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self.task.room:
                run = self._waiting.popleft()
                RunRecord(run).begin(commit)
                self.board.tell(run, "running")
                self._running[self.task.start(run.config, self.entities)] = run
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=_REFRESH_S)
            for reference in done:
                self._end(self._running.pop(reference), *_outcome(reference))
            self._give_up_hopeless()
            self.board.refresh()
        return self._errors

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
                self._errors[run.name] = _first_line(error)
                self.board.tell(run, f"failed: {_first_line(error)}")
            else:
                self._waiting.append(run)
                self.board.tell(run, f"to be tried again after: {_first_line(error)}")

    def _give_up_hopeless(self) -> None:
        """Ends the processes of hopeless runs; their end is recorded when it is seen, as they may finish before."""
        for reference, run in self._running.items():
            if self.early_stopping and self.early_stopping.is_hopeless(run):
                self._given_up.add(run.name)
                ray.cancel(reference, force=True)


def _outcome(reference: Any) -> tuple[Any, Exception | None]:
    """Returns a task's result, or why there is none."""
    try:
        return ray.get(reference), None
    except ray.exceptions.RayTaskError as error:
        return None, error.cause if isinstance(error.cause, Exception) else error
    except ray.exceptions.RayError as error:  # its process or node died
        return None, error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
