"""The training loop of both stages: engine, loader and validation in; a trained engine, records and checkpoints out.

The loop does not know what it trains, on how many processes, or where the clips come from. It waits for the device
only where it writes a record, and goes on from the newest checkpoint, at any world size: at the same one, on a CPU in
fp32, every later loss equals the uninterrupted run's bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from flamscale.config import StageConfig, check_batch_split
from flamscale.errors import FlamError, LeaveError
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import Engine
from flamscale.training.flops import Compute
from flamscale.training.metrics import Meter, MetricsRecorder
from flamscale.training.optimizer import learning_rate
from flamscale.training.profiling import StepProfiler
from flamscale.training.rewind import BatchFilter
from flamscale.types import Batch

TOLD_DATA_WAIT = 0.05
"""Share of a step spent waiting for data above which the progress lines tell it."""
_NOTICE_EVERY = 5  # steps; to ask makes the host wait for the device


class Loader(Protocol):
    """What the loop asks of a loader; `flamscale.data.loader.ClipLoader` is one."""

    @property
    def skipped_samples(self) -> int:
        """Damaged samples this process replaced (count)."""

    @property
    def restarts(self) -> int:
        """Processes that read for this one, died and were replaced (count)."""

    def __iter__(self) -> Iterator[Batch]:
        """Yields this process's micro-batches without end."""

    def state(self) -> Any:
        """Returns the position after the last complete global batch, a dataclass of a few values."""

    def load_state(self, state: Any) -> None:
        """Goes on from a position that `state` returned."""


def _print_now(line: str) -> None:
    print(line, flush=True)


def _do_nothing() -> None:
    pass


def _never() -> bool:
    return False


@dataclass(kw_only=True)
class Trainer:
    """Trains one stage up to step `config.num_steps`, from the newest checkpoint or from the start, which is one too.

    Attributes:
        stage: Name of the stage in records, progress lines and checkpoints.
        engine: Holds objective and optimiser; all its processes have a trainer with the same settings.
        loader: Yields this process's micro-batches.
        prepare: Turns a micro-batch and the step, counted from 0, into the objective's inputs on the device.
        config: Batches, optimiser, and how often to log, validate and save.
        checkpoints: Where to save, and to go on from.
        recorder: Takes the records.
        validate: Returns validation metrics, averaged over processes; called on all of them.
        compute: What a clip costs, for the FLOP rates in the records; None leaves them out.
        profiler: Watches every step; None where none is profiled.
        seed: Of initial weights, data order and sampling; part of what a checkpoint must agree on.
        progress: Takes one line a record, on rank 0; None for silence.
        beat: Called before every step.
        shall_leave: Whether to save a checkpoint and end; asked every few steps, and true for all if for one process.
    """

    stage: str
    engine: Engine
    loader: Loader
    prepare: Callable[[Batch, int], dict[str, Tensor]]
    config: StageConfig
    checkpoints: CheckpointStore
    recorder: MetricsRecorder
    validate: Callable[[], dict[str, float]] | None = None
    compute: Compute | None = None
    profiler: StepProfiler | None = None
    seed: int = 0
    progress: Callable[[str], None] | None = _print_now
    beat: Callable[[], None] = _do_nothing
    shall_leave: Callable[[], bool] = _never

    def __post_init__(self) -> None:
        check_batch_split(self.config, self.engine.world_size, self.stage)
        self._accumulation = self.config.global_batch // (self.config.micro_batch * self.engine.world_size)
        self._filter = BatchFilter(self.config)
        self._meter = Meter(self.engine.device)
        self._batches: Iterator[Batch] = iter(())
        self._done = 0  # steps

    def run(self) -> None:
        """Trains.

        Raises:
            LeaveError: `shall_leave` was true.
            FlamError: A loss or gradient norm is not finite or jumps, and going back has not helped.
            CheckpointError: The newest checkpoint is damaged, or of another run.
        """
        if self._go_back():
            self._say(f"{self.stage}: going on from step {self._done} of {self.config.num_steps}")
        else:
            self.recorder.resume(self.stage, 0)
            self._batches = iter(self.loader)
            self._save()  # to go back to, and to find out now whether it can be written
        while self._done < self.config.num_steps:
            self.beat()
            self._train_step()
            leaves = self._done % _NOTICE_EVERY == 0 and self._any(self.shall_leave())
            saves = leaves or self._is_due(self.config.checkpoint_every)
            if (saves or self._is_due(self.config.log_every)) and not self._record():
                continue
            if self.validate and self.config.validate_every and self._is_due(self.config.validate_every):
                with self._meter.phase("validation_s"):
                    result = self.validate()
                self.recorder.write({"stage": self.stage, "step": self._done, "kind": "validation"} | result)
            if saves:
                self._save()
            if leaves:
                raise LeaveError(
                    f"Told to leave, stage {self.stage} saved step {self._done}; submit the job again to go on from "
                    "there."
                )

    def _save(self) -> None:
        with self._meter.phase("checkpoint_s"):
            state, identity = self.loader.state(), {"stage": self.stage, "seed": self.seed}
            self.checkpoints.save(self._done, self.engine, state, identity, self._filter.state())

    def _is_due(self, every: int) -> bool:
        return self._done % every == 0 or self._done == self.config.num_steps

    def _any(self, condition: bool) -> bool:
        """Whether a condition holds on any process."""
        return self.engine.mean({"condition": float(condition)})["condition"] > 0

    def _say(self, line: str) -> None:
        if self.progress and self.engine.rank == 0:
            self.progress(line)

    def _go_back(self) -> bool:
        """Goes on from the newest checkpoint; False if there is none."""
        resumed = self.checkpoints.load(self.engine, self.loader.state(), {"stage": self.stage, "seed": self.seed})
        if resumed is None:
            return False
        self.loader.load_state(resumed.loader_state)
        self._filter.load_state(resumed.filter_state)
        self.recorder.resume(self.stage, resumed.step)
        self._batches = iter(self.loader)
        self._done = resumed.step
        return True

    def _train_step(self) -> None:
        step = self._done
        num_left_out = self._filter.batch_of(step) - self._filter.batch_of(step - 1) - 1
        for _ in range(self._accumulation * num_left_out):
            next(self._batches)
        with self.profiler.watch(step + 1) if self.profiler else nullcontext():
            metrics = []
            for _ in range(self._accumulation):
                with self._meter.phase("data_wait_s"):
                    batch = next(self._batches)
                with self._meter.phase("forward_backward_s"):
                    metrics.append(self.engine.forward_backward(self.prepare(batch, step), self._accumulation))
            with self._meter.phase("optimizer_s"):
                grad_norm = self.engine.step(learning_rate(step, self.config))
        self._meter.add_step(metrics, grad_norm)
        self._done += 1

    def _record(self) -> bool:
        """Records the steps since the last record; False if one of them was bad, and training went back instead."""
        rate = learning_rate(self._done - 1, self.config)
        head = {"stage": self.stage, "step": self._done, "kind": "train", "learning_rate": rate}
        counts = {"skipped_samples": self.loader.skipped_samples, "reader_restarts": self.loader.restarts}
        record: dict[str, Any] = head | self._meter.flush(self.engine, self.config, counts)
        bad = self._filter.first_bad(record["losses"], record["grad_norms"])
        if bad is not None:
            self._rewind(self._done - len(record["losses"]) + bad[0], bad[1])
            return False
        record["left_out_batches"] = len(self._filter.left_out)
        if self.compute:
            record |= self.compute.rates(record["clips_per_s"], self.engine.world_size)
        self.recorder.write(record)
        self._say(_progress_line(record, self.config))
        return True

    def _rewind(self, bad_step: int, why: str) -> None:
        """Goes back to the newest checkpoint, to leave out what came before the bad step, counted from 0.

        Raises:
            FlamError: It has been done too often, or there is none any more.
        """
        found = f"found {why} at step {bad_step + 1} of stage {self.stage}"
        if self._filter.rewinds >= self.config.max_rewinds or not self._go_back():
            raise FlamError(
                f"Expected a finite loss that does not jump, {found}, after going back {self._filter.rewinds} times; "
                "start a new --out with a lower learning rate."
            )
        left_out = self._filter.leave_out(bad_step, self._done)
        head = {"stage": self.stage, "step": self._done, "kind": "rewind"}
        self.recorder.write(head | {"bad_step": bad_step + 1, "why": why, "left_out": left_out})
        self._say(f"{self.stage}: {found}; going back to step {self._done}, to leave out global batches {left_out}")


def average_over(engine: Engine, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Evaluates the objective on prepared batches and averages its loss terms over batches and processes.

    Every process brings as many batches as the others: with ZeRO-3 each forward is a collective.
    """
    results = [engine.evaluate(inputs) for inputs in batches]
    means = {name: sum(result[name] for result in results) / len(results) for name in results[0]}
    return engine.mean(means)


def _progress_line(record: dict[str, Any], config: StageConfig) -> str:
    left_s = round((config.num_steps - record["step"]) * record["step_s"])
    left = f"{left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"
    line = (
        f"{record['stage']} {record['step']}/{config.num_steps}  loss {record['loss']:.5g}  "
        f"{record['clips_per_s']:.1f} clips/s  {left} left"
    )
    if "mfu" in record:
        line += f"  MFU {record['mfu']:.1%}"
    if record["data_wait_share"] > TOLD_DATA_WAIT:
        line += f"  data wait {record['data_wait_share']:.0%}"
    return line
