"""One worker's part in a run: a config and an engine factory in; run directory, data, records and copies, open, out."""

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
from flamscale.preflight import check_inputs
from flamscale.run_directory import STAGES, RunDirectory
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import Engine
from flamscale.training.metrics import MetricsRecorder, Observer
from flamscale.training.mirror import Mirror

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
    """The run directory's copy in an object store; rank 0 alone has it."""
    command: str
    """What started the run, for the report."""
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
        return CheckpointStore(
            self.directory.checkpoints(stage), config.keep_checkpoints, config.keep_every, self.mirror
        )

    def copy(self, *paths: Path) -> None:
        """Has files and folders of the run directory copied, where the run has a copy."""
        if self.mirror is not None:
            self.mirror.send(*paths)


@contextmanager
def open_worker(
    config: PretrainConfig,
    make_engine: MakeEngine,
    rank: int,
    world_size: int,
    device: torch.device,
    command: str,
    observers: Sequence[Observer],
) -> Iterator[Worker]:
    """Opens the run directory and the data; ends records and copies behind the block."""
    reason = obstacle(device)
    if config.flam.kernels == "triton" and reason:
        raise ConfigError(f"flam.kernels asks for Triton kernels, but {reason}.")
    data = check_inputs(config, write=rank == 0)
    directory = RunDirectory(Path(config.out))
    recorder = MetricsRecorder(directory.root, enabled=rank == 0, observers=observers)
    mirror = None
    if config.copy_to and rank == 0:
        mirror = Mirror(directory.root, config.copy_to, [directory.metrics, directory.tensorboard])
    worker = Worker(config, make_engine, rank, world_size, device, data, directory, recorder, mirror, command)
    with closing(recorder), _copying(worker):
        try:
            yield worker
        except LeaveError:
            if rank == 0:  # all have heeded it: it is not for the next start
                directory.leave_notice.unlink(missing_ok=True)
            raise


@contextmanager
def _copying(worker: Worker) -> Iterator[None]:
    """Has the run's copy begin with what is there already, and waits for it to be complete, for a time."""
    mirror, directory = worker.mirror, worker.directory
    if mirror is None:
        yield
        return
    mirror.send(directory.config)
    if directory.has_tokenizer:
        mirror.send(directory.median_frame, directory.tokenizer)
    for stage in STAGES:
        worker.checkpoints(stage).copy_latest()
    timeout_s = _COPIES_OF_A_FAILED_RUN_S
    try:
        yield
        timeout_s = storage.RETRY_TIMEOUT_S
    finally:
        left = mirror.close(timeout_s)
        if left:
            worker.say(f"not copied to {mirror.url}: {', '.join(left)}; submit the job again to copy them")
