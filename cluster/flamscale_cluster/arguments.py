"""Flags of the main job: command-line arguments in, a preset with the model and settings they change out.

The recipe and its local launcher both read flags here, so that what is wrong with them is told before anything starts.
"""

import os
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flamscale import command_line
from flamscale.baselines import MODELS
from flamscale.config import PretrainConfig
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS

Preset = Literal["quickstart", "multigrid", "procgen", "large"]
Model = Literal["flam", "adaworld", "genie", "true-actions", "slotformer", "playslot"]
SHORT_FLAGS = {"--data": "--data.url", "--kernels": "--flam.kernels"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A preset, the model to train in it, then every setting that shall differ."""

    preset: Preset = "quickstart"
    """Settings to start from; --help shows the values of the preset named beside it."""
    model: Model = "flam"
    """What stage 2 trains: FLAM, or a baseline in its place; the flags --flam.* are those of the model named."""
    dry_run: bool = False
    """Print the resolved settings, sizes, memory and steps, and train nothing."""
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
    """Settings of the run."""


def parse_arguments(arguments: Sequence[str], *, description: str) -> Arguments:
    """Returns the preset with the settings that the flags change; `description` heads their --help.

    Raises:
        ConfigError: a setting that the config refuses.
        SystemExit: --help (code 0), or an unknown flag or unreadable value (code 2), explained on stderr.
    """
    preset, model, config = choose_preset(arguments)
    default = Arguments(preset=preset, model=model, config=config)
    flags = expand_short_flags(arguments)
    return command_line.parse(Arguments, flags, default=default, description=description)


def choose_preset(arguments: Sequence[str], default: Preset = "quickstart") -> tuple[Preset, Model, PretrainConfig]:
    """Returns the preset and the model that the flags name, and their settings.

    In place of an unknown name stands the default; the parser refuses it.
    """
    chooser = ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default=default)
    chooser.add_argument("--model", default="flam")
    named = chooser.parse_known_args(arguments)[0]
    preset: Preset = named.preset if named.preset in PRESETS else default
    model: Model = named.model if named.model in MODELS else "flam"
    return preset, model, MODELS[model](PRESETS[preset]())


def expand_short_flags(arguments: Sequence[str]) -> list[str]:
    """Returns the flags with those of SHORT_FLAGS written out."""
    flags = []
    for flag in arguments:
        name, equals, value = flag.partition("=")
        flags.append(SHORT_FLAGS.get(name, name) + equals + value)
    return flags


def check_places(run: PretrainConfig) -> None:
    """Raises ConfigError where the workers would look for data or write results in the wrong place."""
    if not run.data.url:
        raise ConfigError("No data URL was given; pass --data FOLDER_OR_URL, the one that holds manifest.arrow.")
    if "://" in run.out:
        raise ConfigError(
            f"--out must be a folder, got {run.out}; pass the URL as --copy-to, and as --out a folder that all workers "
            "share, or one of each node with --cluster.local-out."
        )
    check_absolute(places(run))


def check_absolute(found: Iterable[tuple[str, str]]) -> None:
    """Raises ConfigError where a flag names a place that depends on the working folder of a Ray job."""
    for flag, place in found:
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and place and is_relative(place):
            raise ConfigError(
                f"{flag} must be an absolute path in a Ray job, which runs in a copy of the working folder, got "
                f"{place}; pass the whole path."
            )


def places(run: PretrainConfig) -> list[tuple[str, str]]:
    """Returns the flags that name files and folders, each with what this run has there."""
    found = [("--out", run.out), *(("--data.url", url) for url in run.data.url)]
    found += [("--data.latents", url) for url in run.data.latents]
    if run.tokenizer_from:
        found.append(("--tokenizer-from", run.tokenizer_from))
    if run.copy_to:
        found.append(("--copy-to", run.copy_to))
    if run.data.shard_cache not in ("", "auto"):
        found.append(("--data.shard-cache", run.data.shard_cache))
    if run.tokenizer_stage.lpips_weights:
        found.append(("--tokenizer-stage.lpips-weights", run.tokenizer_stage.lpips_weights))
    found += [
        (f"--evaluation.{name.replace('_', '-')}", getattr(run.evaluation, name))
        for name in ("lpips_weights", "fvd_weights")
        if getattr(run.evaluation, name)
    ]
    return found


def is_relative(place: str) -> bool:
    """Whether a place depends on the working folder: no URL, absolute path or variable of each node."""
    return "://" not in place and not place.startswith("$") and not Path(place).is_absolute()
