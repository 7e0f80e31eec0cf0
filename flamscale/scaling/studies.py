"""The three questions as studies, and a joint one: a preset, data and a folder in; grids of runs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flamscale.config import PretrainConfig
from flamscale.data.make_config import MakeShards
from flamscale.data.sources.inputs import absolute
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS
from flamscale.scaling.axes import (
    SIZES,
    Axis,
    Budgets,
    Entities,
    Factors,
    ModelSize,
    Seeds,
    Sizes,
    UniqueVideos,
    on_workers,
    with_steps,
)
from flamscale.scaling.study import Study


@dataclass(frozen=True, kw_only=True)
class Grids:
    """How far each axis goes at one preset."""

    num_slots: tuple[int, ...]
    entities: tuple[int, ...]
    """Agents of the factor study's data sets; empty where the data are not simulated."""
    videos: tuple[int, ...]
    sizes: tuple[ModelSize, ...]
    budgets: tuple[float, ...]
    num_steps: int
    """Of every run that no budget decides about (count)."""
    global_batch: int = 0
    """Of every run's stage 2 (clips); 0 for the preset's."""
    episodes: int = 0
    """Of each simulated data set (count)."""
    num_agents: int = 4
    """Of the simulated data set that the other studies read (count)."""


GRIDS = {
    "quickstart": Grids(
        num_slots=(1, 2, 4, 8),
        entities=(2, 4),
        videos=(2, 8, 32, 128, 512),
        sizes=tuple(SIZES[name] for name in ("xxs", "xs", "s", "m")),
        budgets=(1e12, 2e12, 4e12),
        num_steps=1_500,
        global_batch=16,  # where clips are few, more steps in smaller batches come further
        episodes=640,
    ),
    "multigrid": Grids(
        num_slots=(1, 2, 4, 8, 16),
        entities=(2, 4, 8),
        videos=(122, 488, 1_953, 7_812, 31_250),
        sizes=tuple(SIZES[name] for name in ("xs", "s", "m", "l")),
        budgets=(1e16, 1e17, 1e18),
        num_steps=100_000,
        episodes=39_063,  # a million training frames, as in the paper
    ),
    "large": Grids(
        num_slots=(4, 8, 16, 32),
        entities=(),
        videos=(2_500, 10_000, 40_000, 160_000, 640_000),
        sizes=tuple(SIZES[name] for name in ("s", "m", "l", "xl")),
        budgets=(1e18, 1e19, 1e20),
        num_steps=100_000,
    ),
}


def factors(preset: str, data: str, out: str) -> Study:
    """How many factors do the data need?"""
    grids = GRIDS[preset]
    entities = (Entities(values=grids.entities, folder=absolute(data)),) if grids.entities else ()
    axes = (Factors(values=grids.num_slots), *entities, Seeds(values=(0, 1)))
    return Study(
        name="factors", question="How many factors do these data need?", base=_base(preset, data, out), axes=axes
    )


def unique_videos(preset: str, data: str, out: str) -> Study:
    """What does more video buy, at the same number of steps?"""
    return _of_one_data_set(
        "data",
        "How much does four times the video buy, at the same number of steps?",
        (UniqueVideos(values=GRIDS[preset].videos), Seeds(values=(0, 1))),
        (preset, data, out),
    )


def model_size(preset: str, data: str, out: str) -> Study:
    """Which size is best for a budget?"""
    grids = GRIDS[preset]
    return _of_one_data_set(
        "model",
        "Which model size is best for a compute budget, and how does it grow?",
        (Sizes(values=grids.sizes), Budgets(values=grids.budgets)),
        (preset, data, out),
    )


def joint(preset: str, data: str, out: str) -> Study:
    """How does the loss follow from parameters and videos together?"""
    grids = GRIDS[preset]
    return _of_one_data_set(
        "joint",
        "How does the loss follow from parameters and unique videos together?",
        (Sizes(values=grids.sizes), UniqueVideos(values=grids.videos)),
        (preset, data, out),
    )


STUDIES: dict[str, Callable[[str, str, str], Study]] = {
    "factors": factors,
    "data": unique_videos,
    "model": model_size,
    "joint": joint,
}


def with_workers(study: Study, num_workers: Sequence[int]) -> Study:
    """Returns a study with so many workers for each run, or, of several numbers, for those of each size.

    Raises:
        ConfigError: there are several, and not as many as sizes.
    """
    if len(num_workers) == 1:
        return replace(study, base=on_workers(study.base, num_workers[0]))
    axes = tuple(
        replace(axis, num_workers=tuple(num_workers)) if isinstance(axis, Sizes) else axis for axis in study.axes
    )
    if axes == study.axes:
        raise ConfigError(
            f"num-workers must be one number, or one for each size where the study varies it, got {len(num_workers)}."
        )
    return replace(study, axes=axes)


def multigrid_shards(study: Study, preset: str) -> list[MakeShards]:
    """Returns the simulated data sets that a study's runs read."""
    size = study.base.tokenizer.image_size
    wanted = {run.config.data.url[0]: run.values["agents"] for run in study.runs()}
    return [
        MakeShards(source="multigrid", num_agents=int(count), size=size, episodes=GRIDS[preset].episodes, out=url)
        for url, count in wanted.items()
    ]


def _of_one_data_set(name: str, question: str, axes: tuple[Axis, ...], where: tuple[str, str, str]) -> Study:
    preset, data, _ = where
    grids = GRIDS[preset]
    first: tuple[Axis, ...] = (Entities(values=(grids.num_agents,), folder=absolute(data)),) if grids.entities else ()
    return Study(name=name, question=question, base=_base(*where), axes=(*first, *axes))


def _base(preset: str, data: str, out: str) -> PretrainConfig:
    """The preset in one process, which reads the data set that lies there unless an axis names another."""
    config, grids = PRESETS[preset](), GRIDS[preset]
    stage = config.flam_stage
    config = replace(
        config,
        out=str(Path(out).resolve()),
        data=replace(config.data, url=(absolute(data),)),
        flam_stage=replace(stage, global_batch=grids.global_batch or stage.global_batch),
        cluster=replace(config.cluster, num_workers=1, zero_stage=0),
    )
    return with_steps(config, grids.num_steps)
