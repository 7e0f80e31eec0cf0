"""The main job as one worker runs it: a config and an engine factory in, a finished run directory and its result out.

Flow: shards -> stage 1 (tokenizer, or one trained elsewhere) -> stage 2 (FLAM on the frozen tokenizer's features) ->
export in Hugging Face form -> rollouts on held-out clips. Every finished part lies on disk, so that the same job,
submitted again, goes on from there. Knows no cluster: the same function runs in one process with a TorchEngine and
under Ray with a ZeroEngine.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from flamscale_kernels.dispatch import obstacle
from torch import Tensor, nn

from flamscale.config import PretrainConfig, StageConfig
from flamscale.data import storage
from flamscale.data.actions import load_true_actions
from flamscale.data.latents import load_latents
from flamscale.data.loader import ClipLoader
from flamscale.data.mixture import Mixture
from flamscale.data.reader import Transform
from flamscale.data.sampling import median_frame
from flamscale.errors import ConfigError, LeaveError
from flamscale.models.build import build_world_model
from flamscale.models.tokenizer import Tokenizer, frame_encoder, to_images
from flamscale.models.world_model import WorldModel
from flamscale.preflight import check_inputs, load_perceptual
from flamscale.run_directory import STAGES, RunDirectory, find_tokenizer
from flamscale.training.checkpoint import CheckpointStore
from flamscale.training.engine import Engine
from flamscale.training.flops import ClipFlops, Compute, count_clip_flops, device_peak_flops
from flamscale.training.metrics import MetricsRecorder, Observer
from flamscale.training.mirror import Mirror
from flamscale.training.objectives import FlamInputs, FlamObjective, TokenizerInputs, TokenizerObjective
from flamscale.training.out_of_memory import naming_what_fits
from flamscale.training.profiling import StepProfiler
from flamscale.training.trainer import Trainer, average_over
from flamscale.training.watchdog import Watchdog
from flamscale.types import Batch

MakeEngine = Callable[[nn.Module, StageConfig], Engine]
Prepare = Callable[[Batch, int], dict[str, Tensor]]
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


def pretrain(
    config: PretrainConfig,
    make_engine: MakeEngine,
    rank: int,
    world_size: int,
    device: torch.device,
    command: str = "",
    observers: Sequence[Observer] = (),
) -> dict[str, Any] | None:
    """Runs or resumes a whole pretraining run; all workers of one group call it with their own rank.

    Args:
        config: the run.
        make_engine: builds this worker's engine around an objective; a collective where there are many workers.
        rank: this worker among world_size.
        world_size: workers.
        device: what this worker computes on.
        command: what started the run, for the report.
        observers: see every record of training and validation, on rank 0.

    Returns:
        The content of result.json on rank 0, None elsewhere.

    Raises:
        FlamError: the settings, the data, a checkpoint or the run directory are not as needed.
    """
    with _worker(config, make_engine, rank, world_size, device, command, observers) as worker:
        tokenizer = _tokenizer(worker)
        with worker.timed("flam_stage_s"), naming_what_fits(config, "flam", world_size, device):
            flam = train_flam(worker, tokenizer)
        return None if flam is None else finish(worker, tokenizer, flam)


def pretrain_tokenizer(
    config: PretrainConfig, make_engine: MakeEngine, rank: int, world_size: int, device: torch.device
) -> None:
    """Runs or resumes stage 1 alone, as `pretrain` does; other runs take its tokenizer from the run directory."""
    with _worker(config, make_engine, rank, world_size, device, "", ()) as worker:
        _tokenizer(worker)


@contextmanager
def _worker(
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


def _tokenizer(worker: Worker) -> Tokenizer:
    """Trains the tokenizer, or takes it from elsewhere, unless it is there; returns it frozen."""
    config, directory = worker.config, worker.directory
    with worker.timed("tokenizer_stage_s"), naming_what_fits(config, "tokenizer", worker.world_size, worker.device):
        if not directory.has_tokenizer:
            if config.tokenizer_from:
                take_tokenizer(worker)
            else:
                train_tokenizer(worker)
        return directory.load_tokenizer(config.tokenizer, worker.data.hash)


@contextmanager
def _copying(worker: Worker) -> Iterator[None]:
    """Has the run's copy begin with what is there already, and waits for it to be complete, for a time."""
    mirror, directory = worker.mirror, worker.directory
    if mirror is None:
        yield
        return
    mirror.send(directory.config)
    if directory.has_tokenizer:
        _copy_tokenizer(worker)
    for stage in STAGES:
        _store(worker, stage).copy_latest()
    timeout_s = _COPIES_OF_A_FAILED_RUN_S
    try:
        yield
        timeout_s = storage.RETRY_TIMEOUT_S
    finally:
        left = mirror.close(timeout_s)
        if left:
            worker.say(f"not copied to {mirror.url}: {', '.join(left)}; submit the job again to copy them")


def _store(worker: Worker, stage: str) -> CheckpointStore:
    """Returns the checkpoints of a stage."""
    config: StageConfig = getattr(worker.config, f"{stage}_stage")
    return CheckpointStore(
        worker.directory.checkpoints(stage), config.keep_checkpoints, config.keep_every, worker.mirror
    )


def take_tokenizer(worker: Worker) -> None:
    """In place of stage 1: takes a trained tokenizer into the run directory.

    Every worker that finds none there writes the same bytes, so that no worker waits for another.
    """
    config, directory = worker.config, worker.directory
    found = find_tokenizer(config.tokenizer_from)
    directory.save_median_frame(median_frame(worker.data))
    directory.save_tokenizer(found.tokenizer, worker.data.hash, found)
    _copy_tokenizer(worker)
    worker.say(f"tokenizer: taken from {config.tokenizer_from}, stage 1 is left out")


def train_tokenizer(worker: Worker) -> None:
    """Stage 1: trains the tokenizer on frames, and writes it into the run directory (Eq. 1)."""
    config, stage, directory = worker.config, worker.config.tokenizer_stage, worker.directory
    torch.manual_seed(config.seed)
    tokenizer = Tokenizer(config.tokenizer)
    perceptual = load_perceptual(config)
    if perceptual is not None:
        perceptual.to(worker.device)
    engine = worker.make_engine(TokenizerObjective(tokenizer, stage, perceptual), stage)
    if worker.rank == 0:  # always: one that is there may be of a first try on other data
        directory.save_median_frame(median_frame(worker.data))
    engine.barrier()
    prepare = TokenizerInputs(directory.load_median_frame(), stage, worker.device)
    flops = count_clip_flops(config, "tokenizer", lpips=perceptual.network if perceptual else "vgg16")
    state = _train(worker, "tokenizer", engine, stage, prepare, worker.data, None, flops)
    if worker.rank == 0:
        trained = Tokenizer(config.tokenizer)
        _load_part(trained, state, "tokenizer.")
        directory.save_tokenizer(trained, worker.data.hash)
        _copy_tokenizer(worker)
    engine.barrier()
    engine.close()


def _copy_tokenizer(worker: Worker) -> None:
    if worker.mirror is not None:
        worker.mirror.send(worker.directory.median_frame, worker.directory.tokenizer)


def train_flam(worker: Worker, tokenizer: Tokenizer) -> WorldModel | None:
    """Stage 2: trains FLAM or a baseline on the frozen tokenizer's features (Eq. 2-6); returns it on rank 0."""
    config, stage = worker.config, worker.config.flam_stage
    torch.manual_seed(config.seed + 1)
    flam = build_world_model(config.flam, config.tokenizer)
    median_indices = tokenizer.encode(to_images(worker.directory.load_median_frame()[None]))
    flam.set_static_features(tokenizer.lookup(median_indices)[0])
    prepare = FlamInputs(tokenizer, flam, stage, config.seed, worker.device)
    engine = worker.make_engine(FlamObjective(flam, stage), stage)

    data, transform = worker.data, None
    if config.data.latents:
        data = load_latents(config.data.latents, data, tokenizer.hash)
        worker.say(f"flam: reading latents from {' '.join(config.data.latents)}")
    elif config.data.encodes_ahead:
        transform = frame_encoder(tokenizer)
    flops = count_clip_flops(config, "flam", encodes_video=config.data.encodes_each_clip)
    state = _train(worker, "flam", engine, stage, prepare, data, transform, flops)
    engine.close()
    if worker.rank != 0:
        return None
    trained = build_world_model(config.flam, config.tokenizer)
    _load_part(trained, state, "flam.")
    return trained


def finish(worker: Worker, tokenizer: Tokenizer, flam: WorldModel) -> dict[str, Any]:
    """Exports the model, rolls it out on held-out clips as exported, and writes result.json, report and pictures."""
    # Seconds to import, and only rank 0 comes here.
    from flamscale.eval.loading import load_held_out
    from flamscale.eval.report import write_report
    from flamscale.eval.rollout import evaluate_rollouts
    from flamscale.models.huggingface import FlamForWorldModeling, write_model_card

    config, directory = worker.config, worker.directory
    with worker.timed("export_s"):
        FlamForWorldModeling.from_modules(tokenizer.cpu(), flam).save_pretrained(directory.model)
        for weights in directory.model.glob("*.safetensors"):  # safetensors lets none but the owner read its files
            shutil.copymode(directory.model / "config.json", weights)
    worker.say(f"evaluating {config.evaluation.rollout_steps}-step rollouts")
    with worker.timed("evaluation_s"):
        model = FlamForWorldModeling.from_pretrained(directory.model).to(worker.device)
        clips, actions = load_held_out(worker.data, "test", config.evaluation, config.flam)
        evaluation = evaluate_rollouts(
            model.tokenizer, model.flam, clips, directory.load_median_frame(), config.evaluation, actions
        )
    evaluation.result["timings"] = worker.seconds
    write_model_card(directory.model, model, evaluation.result)
    write_report(directory.root, evaluation.result, evaluation.pictures, settings=vars(config), command=worker.command)
    if worker.mirror is not None:
        worker.mirror.send(directory.model, *(path for path in directory.root.iterdir() if path.is_file()))
    return evaluation.result


def _train(
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
            checkpoints=_store(worker, name),
            recorder=worker.recorder,
            validate=_validator(engine, held_out, stage, prepare) if stage.validate_every else None,
            compute=compute,
            profiler=StepProfiler(directory.root / "profile", name, steps, worker.device, worker.say),
            seed=config.seed,
            progress=worker.say,
            beat=watchdog.beat,
            shall_leave=directory.leave_notice.exists,
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
        config=config if split == "train" else replace(config, num_processes=0, prefetch_batches=0),
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


def _load_part(module: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Loads the weights of one part of an objective."""
    module.load_state_dict({name: state[prefix + name] for name in module.state_dict()})


def summary(config: PretrainConfig, result: dict[str, Any]) -> list[str]:
    """Returns the last lines for the terminal: the main numbers, and where everything is."""
    from flamscale.eval.report import headline

    root = Path(config.out)
    return [
        *headline(result),
        f"run directory {root}: report.md, result.json, rollout.gif, curves.png, model/, metrics.jsonl, tensorboard/",
    ]
