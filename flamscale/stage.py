"""One stage of a run: engine and data in; the trained state of the engine's objective out."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from torch import Tensor

from flamscale.config import StageConfig
from flamscale.data.actions import load_true_actions
from flamscale.data.loader import ClipLoader
from flamscale.data.mixture import Mixture
from flamscale.data.reader import Transform
from flamscale.training.engine import Engine
from flamscale.training.flops import ClipFlops, Compute, device_peak_flops
from flamscale.training.profiling import StepProfiler
from flamscale.training.trainer import Trainer, average_over
from flamscale.training.watchdog import Watchdog
from flamscale.types import Batch
from flamscale.worker import Worker

Prepare = Callable[[Batch, int], dict[str, Tensor]]


def train_stage(
    worker: Worker,
    name: str,
    engine: Engine,
    stage: StageConfig,
    prepare: Prepare,
    data: Mixture,
    transform: Transform | None,
    flops: ClipFlops,
) -> dict[str, Tensor]:
    """Trains or resumes one stage on videos or their latents; returns the objective's trained state on rank 0."""
    config = worker.config
    directory = worker.directory
    compute = Compute(flops.total, device_peak_flops(worker.device, stage.precision, config.cluster.peak_tflops))
    steps = config.profile.step_range if worker.rank == 0 else range(0)
    with (
        _loader(worker, data, "train", stage, transform, config.seed) as loader,
        _loader(worker, data, "validation", stage, transform, seed=0) as held_out,
        Watchdog(directory.stacks, worker.rank, config.cluster.hang_timeout_s) as watchdog,
    ):
        Trainer(
            stage=name,
            engine=engine,
            loader=loader,
            prepare=prepare,
            config=stage,
            checkpoints=worker.checkpoints(name),
            recorder=worker.recorder,
            validate=_validator(engine, held_out, stage, prepare) if stage.validate_every else None,
            compute=compute,
            profiler=StepProfiler(directory.root / "profile", name, steps, worker.device, worker.say),
            seed=config.seed,
            progress=worker.say,
            beat=watchdog.beat,
            shall_leave=worker.shall_leave,
        ).run()
    return engine.full_state_dict()


def _loader(
    worker: Worker, data: Mixture, split: str, stage: StageConfig, transform: Transform | None, seed: int
) -> ClipLoader:
    config = worker.config.data
    wants_actions = stage is worker.config.flam_stage
    return ClipLoader(
        data,
        split,
        clip_frames=stage.clip_frames,
        frame_stride=stage.frame_stride,
        clip_hop=stage.clip_hop,
        global_batch=stage.global_batch,
        micro_batch=stage.micro_batch,
        rank=worker.rank,
        world_size=worker.world_size,
        seed=seed,
        config=config if split == "train" else replace(config, num_processes=0, prefetch_batches=0, fetch_cache_mib=0),
        transform=transform,
        actions=load_true_actions(worker.config.flam, worker.data, split) if wants_actions else None,
        node_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def _validator(
    engine: Engine, loader: ClipLoader, stage: StageConfig, prepare: Prepare
) -> Callable[[], dict[str, float]]:
    """Returns a function that averages the loss terms over the same validation clips every time."""
    start = loader.state()
    num_batches = math.ceil(stage.validation_clips / stage.global_batch)
    num_micro_batches = num_batches * stage.global_batch // (stage.micro_batch * engine.world_size)

    def validate() -> dict[str, float]:
        loader.load_state(start)
        means = average_over(engine, (prepare(batch, stage.num_steps) for batch in islice(loader, num_micro_batches)))
        return means | {"num_clips": num_batches * stage.global_batch}

    return validate
