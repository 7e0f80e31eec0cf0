"""Axes of a study: a config in; each value of one axis, and the config changed to it, out.

What follows from a value (the width of an action from K, the learning rate from the width, the number of steps from a
budget) is the axis's rule.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from flamscale.config import ClusterConfig, FlamConfig, FlamStageConfig, PretrainConfig, WorldModelConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError
from flamscale.training.flops import count_clip_flops

Value = int | float | str


@runtime_checkable
class Axis(Protocol):
    """One direction of the grid."""

    @property
    def name(self) -> str:
        """Short and lower-case: part of a run's name."""
        ...

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        """Yields each value with the config changed to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The number of slots K; the action widths of all slots together, K*A, stay what they are."""

    values: tuple[int, ...]
    """K (count)."""
    total_action_width: int = 0
    """K*A (channels); 0 for the model's width, as in the paper."""
    name: str = "k"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        """Yields K with A = K*A / K.

        Raises:
            ConfigError: K does not divide K*A, or the model has no slots.
        """
        if not isinstance(config.flam, FlamConfig):
            raise ConfigError(f"A study over K needs a model with slots, got a {config.flam.model} one.")
        total = self.total_action_width or config.flam.width
        for num_slots in self.values:
            if total % num_slots:
                raise ConfigError(
                    f"K must divide the action width of all slots together, got K = {num_slots} and {total}; choose "
                    "another K or total-action-width."
                )
            flam = replace(config.flam, num_slots=num_slots, action_width=total // num_slots)
            yield num_slots, replace(config, flam=flam)


@dataclass(frozen=True, kw_only=True)
class Entities:
    """The number of entities in a scene: MultiGrid data sets with so many agents, FOLDER/agents-N."""

    values: tuple[int, ...]
    """Agents in the room (count)."""
    folder: str
    """Folder or URL that the data sets lie in."""
    name: str = "agents"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        for count in self.values:
            yield count, replace(config, data=replace(config.data, url=(f"{self.folder.rstrip('/')}/agents-{count}",)))


@dataclass(frozen=True, kw_only=True)
class UniqueVideos:
    """Training samples that a run's stage 2 sees; it takes the same number of steps whatever they are.

    The tokenizer and the median frame, which all runs share, are made of all training samples.
    """

    values: tuple[int, ...]
    """Samples (count)."""
    name: str = "videos"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        for count in self.values:
            yield count, replace(config, data=replace(config.data, train_samples=count))


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Passes over a run's training clips; the data set must be there to count them."""

    values: tuple[float, ...]
    """Passes (count)."""
    name: str = "epochs"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        stage = config.flam_stage
        shards = Mixture.load(config.data.url).train_shards(config.data.train_samples)
        num_clips = ClipSpace(shards, stage.clip_frames, stage.frame_stride, stage.clip_hop).num_clips
        for count in self.values:
            yield count, with_steps(config, math.ceil(count * num_clips / stage.global_batch))


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A size of FLAM by name."""

    name: str
    width: int
    """Model width D (channels)."""
    num_blocks: int
    """Blocks in each of IDM, FDM and aggregator (count)."""
    num_heads: int
    """Attention heads (count)."""

    def apply(self, flam: WorldModelConfig) -> WorldModelConfig:
        """Returns a model of this size, with K*A = D where that was so before."""
        action_width = flam.action_width
        if flam.num_actions * action_width == flam.width:
            action_width = self.width // flam.num_actions
        return replace(
            flam, width=self.width, num_blocks=self.num_blocks, num_heads=self.num_heads, action_width=action_width
        )


SIZES = {
    size.name: size
    for size in (
        ModelSize(name="xxs", width=32, num_blocks=1, num_heads=2),
        ModelSize(name="xs", width=64, num_blocks=1, num_heads=4),
        ModelSize(name="s", width=128, num_blocks=2, num_heads=4),
        ModelSize(name="m", width=256, num_blocks=2, num_heads=8),
        ModelSize(name="l", width=512, num_blocks=4, num_heads=8),
        ModelSize(name="xl", width=1_024, num_blocks=8, num_heads=16),
    )
}
"""From a laptop's to the preset large's; m is the paper's."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model's size, and the learning rate, batch and workers that go with it."""

    values: tuple[ModelSize, ...]
    lr_exponent: float = -0.5
    """Learning rate ~ width to this power; 0 keeps the base's."""
    batch_exponent: float = 0.0
    """Global batch ~ width to this power, in whole micro-batches; 0 keeps the base's."""
    num_workers: tuple[int, ...] = ()
    """Workers of a run of each of the values (count); empty keeps the base's."""
    name: str = "size"

    def __post_init__(self) -> None:
        if len(self.num_workers) not in (0, len(self.values)):
            raise ConfigError(
                f"num-workers must be one number for all runs, or one for each of the {len(self.values)} sizes, got "
                f"{len(self.num_workers)} numbers."
            )

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        stage = config.flam_stage
        workers = self.num_workers or (config.cluster.num_workers,) * len(self.values)
        for size, num_workers in zip(self.values, workers, strict=True):
            ratio = size.width / config.flam.width
            num_micro_batches = stage.global_batch * ratio**self.batch_exponent / stage.micro_batch
            changed = replace(
                stage,
                learning_rate=stage.learning_rate * ratio**self.lr_exponent,
                global_batch=stage.micro_batch * max(1, round(num_micro_batches)),
            )
            sized = replace(on_workers(config, 1), flam=size.apply(config.flam), flam_stage=changed)
            yield size.name, on_workers(sized, num_workers)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Optimiser steps of stage 2, its warm-ups in proportion."""

    values: tuple[int, ...]
    """Steps (count)."""
    name: str = "steps"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        for count in self.values:
            yield count, with_steps(config, count)


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Compute of stage 2, latents read in place of video: the number of steps follows from the model. Put it last."""

    values: tuple[float, ...]
    """Model FLOPs of a run (count)."""
    name: str = "flops"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        step = clip_flops(config) * config.flam_stage.global_batch
        for budget in self.values:
            if budget < step:
                raise ConfigError(f"A budget must pay for a step, {step:.3g} FLOPs, got {budget:.3g}; raise it.")
            yield budget, with_steps(config, round(budget / step))


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Seeds of initial weights, order and sampling."""

    values: tuple[int, ...]
    name: str = "seed"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        for seed in self.values:
            yield seed, replace(config, seed=seed)


_SHARED = ("tokenizer", "tokenizer_stage", "tokenizer_from")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Any other setting, by its path: flam_stage.beta."""

    path: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.path.split(".")[0] in _SHARED:
            raise ConfigError(f"Runs of a study share their tokenizer, got the setting {self.path}; vary another one.")

    @property
    def name(self) -> str:
        """The setting's last name."""
        return self.path.rpartition(".")[2].replace("_", "-")

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        for value in self.values:
            yield value, _with_setting(config, self.path.split("."), value)


def _with_setting(config: Any, path: Sequence[str], value: Value) -> Any:
    name, *rest = path
    if name not in {item.name for item in dataclasses.fields(config)}:
        raise ConfigError(f"A study's setting must be one of {type(config).__name__}, got {name}; see --help.")
    return replace(config, **{name: _with_setting(getattr(config, name), rest, value) if rest else value})


def on_workers(config: PretrainConfig, num_workers: int) -> PretrainConfig:
    """Returns the config with another number of workers, whose micro-batches shrink to share the global batches."""
    cluster = replace(config.cluster, num_workers=num_workers)
    stages: dict[str, Any] = {name: getattr(config, name) for name in ("tokenizer_stage", "flam_stage")}
    shared = {
        name: replace(stage, micro_batch=math.gcd(stage.micro_batch, stage.global_batch // num_workers))
        for name, stage in stages.items()
    }
    return replace(config, cluster=cluster, **shared)


def with_steps(config: PretrainConfig, num_steps: int) -> PretrainConfig:
    """Returns the config with another number of steps of stage 2; everything that is due at a step moves along."""
    stage = config.flam_stage
    moved = (
        "warmup_steps",
        "beta_warmup_start",
        "beta_warmup_steps",
        "validate_every",
        "checkpoint_every",
        "log_every",
    )
    scale = num_steps / stage.num_steps
    due = {name: max(min(1, getattr(stage, name)), round(getattr(stage, name) * scale)) for name in moved}
    return replace(config, flam_stage=replace(stage, num_steps=num_steps, **due))


def clip_flops(config: PretrainConfig) -> int:
    """Returns stage 2's model FLOPs of one clip, forward and backward, its latents being read."""
    stage = config.flam_stage
    return _clip_flops(
        PretrainConfig(
            tokenizer=config.tokenizer,
            flam=config.flam,
            flam_stage=FlamStageConfig(
                clip_frames=stage.clip_frames,
                predict_steps=stage.predict_steps,
                reconstruction_weight=stage.reconstruction_weight,
            ),
            cluster=ClusterConfig(num_workers=1),
        )
    )


@functools.cache  # seconds each, and runs of a study share their models
def _clip_flops(config: PretrainConfig) -> int:
    return count_clip_flops(config, "flam", encodes_video=False).total
