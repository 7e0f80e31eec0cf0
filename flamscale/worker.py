"""One worker's part in a run: a config and an engine factory in; run directory, data, records and copies, open, out."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flamscale_kernels.dispatch import obstacle
from torch import nn

from flamscale.config import PretrainConfig, StageConfig
from flamscale.data import storage
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError, LeaveError
from flamscale.meeting import check_shared, meet
from flamscale.preflight import check_inputs
from flamscale.run_directory import STAGES, RunDirectory
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import Engine
from flamscale.training.metrics import MetricsRecorder, Observer
from flamscale.training.mirror import Mirror
from flamscale.training.node_checkpoints import NodeCheckpoints, NodeMirror

MakeEngine = Callable[[nn.Module, StageConfig], Engine]
_COPIES_OF_A_FAILED_RUN_S = 30.0  # waited for before the run is started anew


@dataclass(frozen=True)
class Worker:
    """One worker's part in a run."""

    config: PretrainConfig
    make_engine: MakeEngine
    rank: int
    world_size: int
    device: torch.device
    data: Mixture
    directory: RunDirectory
    recorder: MetricsRecorder
    mirror: Mirror | None
    """The run directory's copy in an object store; only workers that lead have it."""
    command: str
    """What started the run, for the report."""
    leads: bool
    """Whether it writes what its run directory has once: rank 0 or, where nodes share no disk, one worker a node."""
    shall_leave: Callable[[], bool]
    """Whether to save a checkpoint and end."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time each part took in this submission (s)."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `seconds`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def say(self, message: str) -> None:
        """Prints a line of progress, once for all workers."""
        if self.rank == 0:
            print(message, flush=True)

    def checkpoints(self, stage: str) -> CheckpointStore:
        """Returns the checkpoints of a stage."""
        config: StageConfig = getattr(self.config, f"{stage}_stage")
        folder = self.directory.checkpoints(stage)
        if not self.config.cluster.local_out:
            return CheckpointStore(folder, config.keep_checkpoints, config.keep_every, self.mirror)
        assert self.mirror is None or isinstance(self.mirror, NodeMirror)
        return NodeCheckpoints(
            folder,
            config.keep_checkpoints,
            config.keep_every,
            parts=self.mirror,
            local_rank=local_rank(),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )

    def copy(self, *paths: Path) -> None:
        """Has files and folders of rank 0's run directory copied, where the run has a copy."""
        if self.mirror is not None and self.rank == 0:
            self.mirror.send(*paths)

    def hand_over(self, path: Path) -> None:
        """Brings what rank 0 has had copied to all nodes that lack it; all workers must call it."""
        if not self.config.cluster.local_out:
            return
        if self.mirror is not None and self.rank == 0:
            self.mirror.wait()
        meet(self.device)
        if self.mirror is not None and self.rank != 0:
            self.mirror.fetch(path.name, self.mirror.files())


@contextmanager
def open_worker(
    config: PretrainConfig,
    make_engine: MakeEngine,
    rank: int,
    world_size: int,
    device: torch.device,
    command: str,
    observers: Sequence[Observer],
    shall_leave: Callable[[], bool] | None = None,
) -> Iterator[Worker]:
    """Opens the run directory and the data; ends records and copies behind the block."""
    reason = obstacle(device)
    if config.flam.kernels == "triton" and reason:
        raise ConfigError(f"flam.kernels asks for Triton kernels, but {reason}.")
    directory = RunDirectory.of(config)
    leads = local_rank() == 0 if config.cluster.local_out else rank == 0
    data = _open_data(config, leads, device)
    mirror = None
    if config.copy_to and leads:
        kind = NodeMirror if config.cluster.local_out else Mirror
        mirror = kind(directory.root, config.copy_to, [directory.metrics, directory.tensorboard])
    worker = Worker(
        config=config,
        make_engine=make_engine,
        rank=rank,
        world_size=world_size,
        device=device,
        data=data,
        directory=directory,
        recorder=MetricsRecorder(directory.root, enabled=rank == 0, observers=observers),
        mirror=mirror,
        command=command,
        leads=leads,
        shall_leave=shall_leave or directory.leave_notice.exists,
    )
    with closing(worker.recorder):
        try:
            with _copying(worker):
                yield worker
        except LeaveError:
            meet(device)  # the first to end may take the others along: not before all is copied
            if rank == 0:  # all have heeded it: it is not for the next start
                directory.leave_notice.unlink(missing_ok=True)
            raise


def local_rank() -> int:
    """Returns the number of this worker among those of its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _open_data(config: PretrainConfig, leads: bool, device: torch.device) -> Mixture:
    """Checks the run's inputs and directory, which the workers that lead bring up to date, and returns the data set."""
    if not config.cluster.local_out:
        data = check_inputs(config, write=leads)
        check_shared(RunDirectory.of(config).root)
        return data
    if not leads:
        meet(device)  # the node may lack what the others have
    data = check_inputs(config, write=leads)
    if leads:
        meet(device)
    return data


@contextmanager
def _copying(worker: Worker) -> Iterator[None]:
    """Has the run's copy begin with what is there already, and waits for it to be complete, for a time."""
    mirror, directory = worker.mirror, worker.directory
    if mirror is None:
        yield
        return
    worker.copy(directory.config)
    if directory.has_tokenizer:
        worker.copy(directory.median_frame, directory.tokenizer)
    for stage in STAGES:
        worker.checkpoints(stage).copy_latest()
    timeout_s = _COPIES_OF_A_FAILED_RUN_S
    try:
        yield
        timeout_s = storage.RETRY_TIMEOUT_S
    except LeaveError:
        if worker.config.cluster.local_out:  # what was saved lies nowhere else
            timeout_s = storage.RETRY_TIMEOUT_S
        raise
    finally:
        left = mirror.close(timeout_s)
        if left:
            worker.say(f"not copied to {mirror.url}: {', '.join(left)}; submit the job again to copy them")
