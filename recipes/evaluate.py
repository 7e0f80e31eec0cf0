#!/usr/bin/env python
"""How well does a trained model predict held-out clips, beside copying the last frame and the median training frame?

Loads a `model/` folder, infers the latent actions of held-out clips, rolls the model out, and writes result.json,
report.md, rollout.gif and rollout.png: the same evaluation that ends a pretraining job, on any data set.

Command: python recipes/evaluate.py --model runs/quickstart/model --data data/quickstart --out runs/evaluation
On a simulator's data, --factors adds DCI, information of latent actions, and segmentation by slots.
Hardware and hours: any; 64 clips of 64x64 take about 20 s on one CPU core.
Expected: the numbers in the run's own result.json, digit for digit, on the same data, split and settings.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flamscale import command_line
from flamscale.config import EvaluationConfig

if TYPE_CHECKING:
    from flamscale.data.labels import LabelledClips
    from flamscale.data.mixture import Mixture
    from flamscale.models.huggingface import FlamForWorldModeling

NUM_LABELLED_CLIPS = 256
"""Clips that probes of slots are fitted on, and held-out ones that they are tried on (count, or all there are)."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to evaluate, on which clips, and where the results go."""

    model: str
    """Folder in Hugging Face form: the model/ of a run directory."""
    data: str
    """Folder or s3:// URL of the data set: the one that holds manifest.arrow."""
    out: str
    """Folder for result.json, report.md and pictures."""
    split: Literal["test", "validation", "train"] = "test"
    """Part of the data set that the clips are taken from; the median frame is always that of train."""
    device: str = "cpu"
    """What to compute on, in torch's words: cpu, cuda, cuda:1."""
    factors: bool = False
    """Also measure how slots and latent actions stand for entities: needs a simulator's data, with labels."""
    evaluation: Annotated[EvaluationConfig, tyro.conf.arg(name="")] = field(default_factory=EvaluationConfig)
    """Clips, context and horizon."""


def main(arguments: Sequence[str]) -> None:
    """Evaluates and writes the results."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    from flamscale.data.sampling import median_frame
    from flamscale.eval.entities import evaluate_entities
    from flamscale.eval.loading import load_held_out, load_model_and_data
    from flamscale.eval.report import headline, write_report
    from flamscale.eval.rollout import evaluate_rollouts

    started = time.perf_counter()
    model, data = load_model_and_data(chosen.model, chosen.data, chosen.device)
    config = chosen.evaluation
    clips, actions = load_held_out(data, chosen.split, config, model.flam.config)
    labelled = _labelled_clips(data, model, chosen) if chosen.factors else None
    evaluation = evaluate_rollouts(model.tokenizer, model.flam, clips, median_frame(data), config, actions)
    if labelled:
        evaluation.result["entities"] = evaluate_entities(model.tokenizer, model.flam, *labelled, config)
    result = {**evaluation.result, "timings": {"evaluation_s": time.perf_counter() - started}}
    settings = vars(chosen) | {"tokenizer": model.tokenizer.config, "flam": model.flam.config}
    command = shlex.join(["python", "recipes/evaluate.py", *sys.argv[1:]])
    write_report(Path(chosen.out), result, evaluation.pictures, settings=settings, command=command)
    print(*headline(result), f"report: {Path(chosen.out) / 'report.md'}", sep="\n")


def _labelled_clips(
    data: "Mixture", model: "FlamForWorldModeling", chosen: Arguments
) -> "tuple[LabelledClips, LabelledClips]":
    """Clips to fit probes on and held-out ones, as long as a rollout looks back: slots of longer ones are untrained."""
    from flamscale.data.labels import labelled_clips
    from flamscale.eval.loading import check_has_slots

    check_has_slots(model, chosen.model, "--factors")
    config, clip_frames = chosen.evaluation, model.flam.config.history_frames + 1
    select = partial(labelled_clips, data, clip_frames=clip_frames, frame_stride=config.frame_stride)
    return select("train", num_clips=NUM_LABELLED_CLIPS), select(chosen.split, num_clips=NUM_LABELLED_CLIPS)


if __name__ == "__main__":
    command_line.run(main)
