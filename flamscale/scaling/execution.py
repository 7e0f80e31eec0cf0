"""What one process does for a study: data sets, a tokenizer and latents made once; runs trained and measured.

Each function does nothing over that is done already, and goes on where a killed process stopped.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from flamscale.config import FlamConfig, PretrainConfig, StageConfig
from flamscale.data.executors import serial
from flamscale.data.ingest import Ingest
from flamscale.data.labels import labelled_clips
from flamscale.data.latents import LatentsWriter
from flamscale.data.make_config import MakeShards
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError
from flamscale.eval.entities import evaluate_entities
from flamscale.eval.report import write_result
from flamscale.models.huggingface import FlamForWorldModeling
from flamscale.models.tokenizer import frame_encoder
from flamscale.pretrain import pretrain, pretrain_tokenizer
from flamscale.run_directory import RunDirectory
from flamscale.scaling.records import ENTITIES, Timing
from flamscale.training.engine import TorchEngine
from flamscale.worker import MakeEngine

_LABELLED_CLIPS = 256  # that probes of slots are fitted on, and as many held-out ones


def make_shards(wanted: MakeShards) -> None:
    """Makes a simulated data set, unless it is there; raises ConfigError where another one is."""
    existing = Manifest.find(wanted.out)
    if existing is not None:
        if not wanted.is_same(existing.arguments):
            raise ConfigError(
                f"{wanted.out} should hold a data set made with {wanted.arguments}, and holds one made with "
                f"{existing.arguments}; choose another --data, or delete that one."
            )
        return
    source: Any = wanted.build()

    def progress(stage: str, results: Iterable[Any], num_done: int, num_pieces: int) -> Iterable[Any]:
        return results

    Ingest(
        job=wanted.job(source),
        name=wanted.out.rstrip("/").rpartition("/")[2],
        kind=wanted.source,
        arguments=wanted.arguments,
        executor=serial,
        max_bad_fraction=wanted.max_bad_fraction,
        progress=progress,
    ).run(lambda outcome: None)


def shared_config(base: PretrainConfig, config: PretrainConfig) -> PretrainConfig:
    """Returns the run whose stage 1 makes the tokenizer of a run's data set, unless the base names a trained one."""
    return replace(
        base,
        out=config.tokenizer_from,
        data=replace(config.data, latents=(), train_samples=0),
    )


def prepare(config: PretrainConfig) -> None:
    """Makes the tokenizer of a data set, and the latents of all its frames; `config` is `shared_config`'s."""
    device, make_engine = _device(config)
    pretrain_tokenizer(config, make_engine, 0, 1, device)
    (url,) = config.data.url
    tokenizer = RunDirectory(Path(config.out)).read_tokenizer()
    side = tokenizer.config.image_size // tokenizer.config.downsample
    writer = LatentsWriter(
        data=Manifest.load(url),
        url=str(Path(config.out).with_name("latents")),
        tokenizer_hash=tokenizer.hash,
        encode=frame_encoder(tokenizer.to(device)),
        grid=(side, side),
        codebook_size=tokenizer.fsq.codebook_size,
    )
    if Manifest.find(writer.url) is None:
        for _ in writer.write():
            pass


def train(config: PretrainConfig, entities: bool) -> Timing:
    """Trains or resumes a run to its end, and measures its slots where asked; returns when it did what."""
    began = time.time()
    device, make_engine = _device(config)
    pretrain(config, make_engine, 0, 1, device)
    if entities:
        measure_entities(config)
    return Timing(process_started=psutil.Process().create_time(), began=began, ended=time.time())


def measure_entities(config: PretrainConfig) -> None:
    """Measures a finished run's slots, if it has any, against the entities of its data.

    Clips are as long as a rollout looks back: slots of longer ones are untrained.
    """
    if not isinstance(config.flam, FlamConfig):
        return
    device, _ = _device(config)
    model = FlamForWorldModeling.from_pretrained(RunDirectory(Path(config.out)).model).to(device)
    select = partial(
        labelled_clips,
        Mixture.load(config.data.url),
        clip_frames=config.flam.history_frames + 1,
        frame_stride=config.evaluation.frame_stride,
        num_clips=_LABELLED_CLIPS,
    )
    found = evaluate_entities(model.tokenizer, model.flam, select("train"), select("test"), config.evaluation)
    write_result(Path(config.out) / ENTITIES, found)


def _device(config: PretrainConfig) -> tuple[torch.device, MakeEngine]:
    """Returns what this process computes on, and its engine; Ray shows it only the GPU it was given."""
    torch.set_num_threads(config.cluster.cpus_per_worker)
    device = torch.device("cuda:0" if config.cluster.accelerator == "gpu" else "cpu")

    def make_engine(objective: nn.Module, stage: StageConfig) -> TorchEngine:
        return TorchEngine(objective, stage, device, config.seed)

    return device, make_engine
