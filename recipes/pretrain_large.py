#!/usr/bin/env python
"""Does a factored latent action model, pretrained on video alone, predict what the entities of a scene do?

Trains the tokenizer (stage 1), then FLAM on its frozen features (stage 2), on Ray workers with DeepSpeed ZeRO; exports
the model in Hugging Face form and rolls it out on held-out clips. Submitting the same command again resumes the run.

--data is short for --data.url.

Command: ray job submit --runtime-env cluster/runtime_env.yaml --working-dir . -- \\
    python recipes/pretrain_large.py --preset large --data s3://bucket/shards --out /shared/runs/large

Hardware and hours: quickstart 2 CPU cores, 0.2 h; multigrid and procgen 1 GPU, about a day; large 64 GPUs, days.

Expected: ten-step rollouts of quickstart at least 2 dB PSNR over the better of copy-last and median frame.
"""

import os
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flamscale import command_line
from flamscale.config import PretrainConfig
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A preset, then every setting of it that shall differ."""

    preset: Literal["quickstart", "multigrid", "procgen", "large"] = "quickstart"
    """Settings to start from; --help shows the values of the preset named beside it."""
    dry_run: bool = False
    """Print the resolved settings, sizes, memory and steps, and train nothing."""
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    """Settings of the run."""


def config(arguments: Sequence[str]) -> Arguments:
    """Returns the preset with the settings that the flags change."""
    chooser = ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="quickstart")
    preset = chooser.parse_known_args(arguments)[0].preset
    preset = preset if preset in PRESETS else "quickstart"  # the parser below refuses an unknown one
    default = Arguments(preset=preset, config=PRESETS[preset]())
    flags = [
        f"--data.url{flag.removeprefix('--data')}" if flag.split("=")[0] == "--data" else flag for flag in arguments
    ]
    return command_line.parse(Arguments, flags, default=default, description=__doc__ or "")


def main(arguments: Sequence[str]) -> None:
    """Runs the job, or describes it."""
    chosen = config(arguments)
    if chosen.dry_run:
        from flamscale.dry_run import print_dry_run  # imports torch, which --help shall not wait for

        print_dry_run(chosen.config)
        return
    check_places(chosen.config)
    from flamscale_cluster.launch import launch  # imports ray

    launch(chosen.config)


def check_places(run: PretrainConfig) -> None:
    """Raises ConfigError where the workers would look for data or write results in the wrong place."""
    if not run.data.url:
        raise ConfigError("No data URL was given; pass --data FOLDER_OR_URL, the one that holds manifest.json.")
    if "://" in run.out:
        raise ConfigError(
            f"--out must be a folder that all workers share, got {run.out}; mount the store, or copy after."
        )
    places = {"--out": run.out, "--data": run.data.url}
    if run.tokenizer_stage.lpips_weights:
        places["--tokenizer-stage.lpips-weights"] = run.tokenizer_stage.lpips_weights
    for flag, place in places.items():
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in place and not Path(place).is_absolute():
            raise ConfigError(
                f"{flag} must be an absolute path in a Ray job, which runs in a copy of the working folder, got {place}; "
                "pass the whole path."
            )


if __name__ == "__main__":
    command_line.run(main)
