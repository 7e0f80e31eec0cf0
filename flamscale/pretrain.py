"""The main job as one worker runs it: a config and an engine factory in, a finished run directory and its result out.

Flow: shards -> stage 1 (tokenizer, or one trained elsewhere) -> stage 2 (FLAM on the frozen tokenizer's features) ->
export in Hugging Face form -> rollouts on held-out clips. Every finished part lies on disk, so that the same job,
submitted again, goes on from there. Knows no cluster: the same function runs in one process with a TorchEngine and
under Ray with a ZeroEngine.
"""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flamscale.config import PretrainConfig
from flamscale.data.latents import load_latents
from flamscale.data.sampling import median_frame
from flamscale.models.build import build_world_model
from flamscale.models.tokenizer import Tokenizer, frame_encoder, to_images
from flamscale.models.world_model import WorldModel
from flamscale.preflight import load_perceptual
from flamscale.run_directory import RunDirectory, find_tokenizer
from flamscale.stage import train_stage
from flamscale.training.flops import count_clip_flops
from flamscale.training.metrics import Observer
from flamscale.training.objectives import FlamInputs, FlamObjective, TokenizerInputs, TokenizerObjective
from flamscale.training.out_of_memory import naming_batch_clips, naming_what_fits
from flamscale.worker import MakeEngine, Worker, open_worker


def pretrain(
    config: PretrainConfig,
    make_engine: MakeEngine,
    rank: int,
    world_size: int,
    device: torch.device,
    command: str = "",
    observers: Sequence[Observer] = (),
    shall_leave: Callable[[], bool] | None = None,
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
        shall_leave: whether to save a checkpoint and end; None for whether the run directory has a file `leave`.

    Returns:
        The content of result.json on rank 0, None elsewhere.

    Raises:
        FlamError: the settings, the data, a checkpoint or the run directory are not as needed.
    """
    with open_worker(config, make_engine, rank, world_size, device, command, observers, shall_leave) as worker:
        tokenizer = _tokenizer(worker)
        with worker.timed("flam_stage_s"), naming_what_fits(config, "flam", world_size, device):
            flam = train_flam(worker, tokenizer)
        return None if flam is None else finish(worker, tokenizer, flam)


def pretrain_tokenizer(
    config: PretrainConfig, make_engine: MakeEngine, rank: int, world_size: int, device: torch.device
) -> None:
    """Runs or resumes stage 1 alone, as `pretrain` does; other runs take its tokenizer from the run directory."""
    with open_worker(config, make_engine, rank, world_size, device, "", ()) as worker:
        _tokenizer(worker)


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


def take_tokenizer(worker: Worker) -> None:
    """In place of stage 1: takes a trained tokenizer into the run directory.

    Every worker that finds none there writes the same bytes, so that no worker waits for another.
    """
    config, directory = worker.config, worker.directory
    found = find_tokenizer(config.tokenizer_from)
    directory.save_median_frame(median_frame(worker.data))
    directory.save_tokenizer(found.tokenizer, worker.data.hash, found)
    worker.copy(directory.median_frame, directory.tokenizer)
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
    if worker.leads:  # always: one that is there may be of a first try on other data
        directory.save_median_frame(median_frame(worker.data))
    engine.barrier()
    flow_seed = config.seed if config.tokenizer.decoder == "flow" else None
    prepare = TokenizerInputs(directory.load_median_frame(), stage, worker.device, flow_seed)
    flops = count_clip_flops(config, "tokenizer", lpips=perceptual.network if perceptual else "vgg16")
    state = train_stage(worker, "tokenizer", engine, stage, prepare, worker.data, None, flops)
    if worker.rank == 0:
        trained = Tokenizer(config.tokenizer)
        _load_part(trained, state, "tokenizer.")
        directory.save_tokenizer(trained, worker.data.hash)
        worker.copy(directory.median_frame, directory.tokenizer)
    worker.hand_over(directory.tokenizer)
    engine.barrier()
    engine.close()


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
    state = train_stage(worker, "flam", engine, stage, prepare, data, transform, flops)
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
    with worker.timed("evaluation_s"), naming_batch_clips(config, worker.device):
        model = FlamForWorldModeling.from_pretrained(directory.model).to(worker.device)
        clips, actions = load_held_out(worker.data, "test", config.evaluation, config.flam)
        evaluation = evaluate_rollouts(
            model.tokenizer, model.flam, clips, directory.load_median_frame(), config.evaluation, actions
        )
    evaluation.result["timings"] = worker.seconds
    write_model_card(directory.model, model, evaluation.result)
    write_report(directory.root, evaluation.result, evaluation.pictures, settings=vars(config), command=worker.command)
    worker.copy(directory.model, *(path for path in directory.root.iterdir() if path.is_file()))
    return evaluation.result


def _load_part(module: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Loads the weights of one part of an objective."""
    module.load_state_dict({name: state[prefix + name] for name in module.state_dict()})


def summary(config: PretrainConfig, result: dict[str, Any]) -> list[str]:
    """Returns the last lines for the terminal: the main numbers, and where everything is."""
    from flamscale.eval.report import headline

    root = RunDirectory.of(config).root
    return [
        *headline(result),
        f"run directory {root}: report.md, result.json, rollout.gif, curves.png, model/, metrics.jsonl, tensorboard/",
    ]
