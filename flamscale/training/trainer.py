"""The training loop of both stages: engine, loader and validation in; a trained engine, records and checkpoints out.

The loop does not know what it trains, on how many processes, or where the clips come from. It waits for the device
only where it writes a record, and goes on from the newest checkpoint, at any world size: at the same one, on a CPU in
fp32, every later loss equals the uninterrupted run's bit for bit.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
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


def train(
    *,
    stage: str,
    engine: Engine,
    loader: Loader,
    prepare: Callable[[Batch, int], dict[str, Tensor]],
    config: StageConfig,
    checkpoints: CheckpointStore,
    recorder: MetricsRecorder,
    validate: Callable[[], dict[str, float]] | None = None,
    compute: Compute | None = None,
    profiler: StepProfiler | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = _print_now,
    beat: Callable[[], None] = _do_nothing,
    shall_leave: Callable[[], bool] = _never,
) -> None:
    """Trains up to step `config.num_steps`, from the newest checkpoint or from the start.

    Args:
        stage: Name of the stage in records, progress lines and checkpoints.
        engine: Holds objective and optimiser; all its processes call `train` with the same arguments.
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

    Raises:
        LeaveError: `shall_leave` was true.
        FlamError: A loss or gradient norm is not finite or jumps, and going back has not helped.
        CheckpointError: The newest checkpoint is damaged, or of another run.
    """
    check_batch_split(config, engine.world_size, stage)
    accumulation = config.global_batch // (config.micro_batch * engine.world_size)
    identity = {"stage": stage, "seed": seed}
    batch_filter = BatchFilter(config)
    report = progress if progress and engine.rank == 0 else _say_nothing

    def go_back() -> int | None:
        """Goes on from the newest checkpoint, if there is one; returns its step."""
        resumed = checkpoints.load(engine, loader.state(), identity)
        if resumed is None:
            return None
        loader.load_state(resumed.loader_state)
        batch_filter.load_state(resumed.filter_state)
        recorder.resume(stage, resumed.step)
        return resumed.step

    step = go_back()
    if step is None:
        step = 0
        recorder.resume(stage, step)
    else:
        report(f"{stage}: going on from step {step} of {config.num_steps}")
    batches = iter(loader)
    meter = Meter(engine.device)
    while step < config.num_steps:
        beat()
        for _ in range(accumulation * (batch_filter.batch_of(step) - batch_filter.batch_of(step - 1) - 1)):
            next(batches)
        rate = learning_rate(step, config)
        with profiler.watch(step + 1) if profiler else nullcontext():
            _optimizer_step(engine, batches, prepare, step, accumulation, rate, meter)
        step = done = step + 1
        leaves = done % _NOTICE_EVERY == 0 and engine.mean({"leave": float(shall_leave())})["leave"] > 0
        saves = leaves or done % config.checkpoint_every == 0 or done == config.num_steps
        if saves or done % config.log_every == 0:
            head = {"stage": stage, "step": done, "kind": "train", "learning_rate": rate}
            counts = {"skipped_samples": loader.skipped_samples, "reader_restarts": loader.restarts}
            record: dict[str, Any] = head | meter.flush(engine, config, counts)
            bad = batch_filter.first_bad(record["losses"], record["grad_norms"])
            if bad is not None:
                bad_step, reason = done - len(record["losses"]) + bad[0], bad[1]
                step = _rewind(stage, bad_step, reason, config, batch_filter, go_back, recorder, report)
                batches = iter(loader)
                continue
            record["left_out_batches"] = len(batch_filter.left_out)
            if compute:
                record |= compute.rates(record["clips_per_s"], engine.world_size)
            recorder.write(record)
            report(_progress_line(record, config))
        if validate and config.validate_every and (done % config.validate_every == 0 or done == config.num_steps):
            with meter.phase("validation_s"):
                result = validate()
            recorder.write({"stage": stage, "step": done, "kind": "validation"} | result)
        if saves:
            with meter.phase("checkpoint_s"):
                checkpoints.save(done, engine, loader.state(), identity, batch_filter.state())
        if leaves:
            raise LeaveError(
                f"Told to leave, stage {stage} saved step {done}; submit the job again to go on from there."
            )


def _rewind(
    stage: str,
    bad_step: int,
    reason: str,
    config: StageConfig,
    batch_filter: BatchFilter,
    go_back: Callable[[], int | None],
    recorder: MetricsRecorder,
    report: Callable[[str], None],
) -> int:
    """Goes back to the newest checkpoint, to leave out what came before the bad step; returns the step to go on from.

    Raises:
        FlamError: There is none, or it has been done too often.
    """
    found = f"found {reason} at step {bad_step + 1} of stage {stage}"
    step = go_back() if batch_filter.rewinds < config.max_rewinds else None
    if step is None:
        raise FlamError(
            f"Expected a finite loss that does not jump, {found}, after going back {batch_filter.rewinds} times; start "
            "a new --out with a lower learning rate."
        )
    left_out = batch_filter.leave_out(bad_step, step)
    recorder.write(
        {"stage": stage, "step": step, "kind": "rewind", "bad_step": bad_step + 1, "why": reason, "left_out": left_out}
    )
    report(f"{stage}: {found}; going back to step {step}, to leave out global batches {left_out}")
    return step


def _optimizer_step(
    engine: Engine,
    batches: Iterator[Batch],
    prepare: Callable[[Batch, int], dict[str, Tensor]],
    step: int,
    accumulation: int,
    rate: float,
    meter: Meter,
) -> None:
    metrics = []
    for _ in range(accumulation):
        with meter.phase("data_wait_s"):
            batch = next(batches)
        with meter.phase("forward_backward_s"):
            metrics.append(engine.forward_backward(prepare(batch, step), accumulation))
    with meter.phase("optimizer_s"):
        grad_norm = engine.step(rate)
    meter.add_step(metrics, grad_norm)


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


def _say_nothing(line: str) -> None:
    pass
