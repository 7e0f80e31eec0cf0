#!/usr/bin/env python
"""How does a run that is not finished do so far? Any of its checkpoints, in Hugging Face form.

Command: python recipes/export_model.py --run runs/large --out runs/large/model-so-far
Hardware and hours: any machine with memory for the weights; seconds.
Expected: a folder that AutoModel.from_pretrained loads and recipes/evaluate.py takes as --model, whatever the number of
workers, the ZeRO stage and the devices that trained it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flamscale import command_line
from flamscale.config import PretrainConfig, from_dict
from flamscale.errors import CheckpointError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which checkpoint, and where the model goes."""

    run: str
    """Run directory: the one that holds config.json and checkpoints/."""
    out: str
    """Folder for the model; it must not exist yet."""
    step: int | None = None
    """Step of stage 2 whose checkpoint is taken (count); the newest if not given."""


def main(arguments: Sequence[str]) -> None:
    """Exports the checkpoint."""
    chosen = command_line.parse(Arguments, arguments, description=__doc__ or "")
    from flamscale.models.build import build_world_model
    from flamscale.models.huggingface import FlamForWorldModeling, write_model_card
    from flamscale.run_directory import RunDirectory
    from flamscale.training.checkpoint import CheckpointStore, read_objective
    from flamscale.training.retention import step_of

    directory = RunDirectory(Path(chosen.run))
    if Path(chosen.out).exists():
        raise ConfigError(f"--out {chosen.out} exists already; choose another folder, or delete it.")
    if not directory.config.exists():
        raise ConfigError(f"Expected a run directory at {chosen.run}, found no config.json there; check --run.")
    config = from_dict(PretrainConfig, json.loads(directory.config.read_text()))
    checkpoints = CheckpointStore(directory.checkpoints("flam"), keep=1)
    path = checkpoints.latest() if chosen.step is None else checkpoints.folder / f"step-{chosen.step:06d}"
    untrained = path is not None and chosen.step is None and step_of(path.name) == 0
    if path is None or untrained or not path.exists():
        there = ", ".join(sorted(found.name for found in checkpoints.folder.glob("step-*"))) or "none"
        raise CheckpointError(f"Expected a checkpoint of stage 2 in {checkpoints.folder}, found {there}; check --step.")
    flam = build_world_model(config.flam, config.tokenizer)
    state = read_objective(path)
    flam.load_state_dict({name: state[f"flam.{name}"] for name in flam.state_dict()})
    model = FlamForWorldModeling.from_modules(directory.read_tokenizer(), flam)
    model.save_pretrained(chosen.out)
    write_model_card(Path(chosen.out), model)
    print(f"{path} exported to {chosen.out}")


if __name__ == "__main__":
    command_line.run(main)
