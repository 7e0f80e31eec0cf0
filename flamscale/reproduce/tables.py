"""The paper's tables as studies: a table, a budget and places in; its grids of runs, and its columns, out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flamscale.config import FlamConfig, PretrainConfig, ReproduceConfig
from flamscale.data.make_config import MakeShards
from flamscale.data.sources.inputs import absolute
from flamscale.reproduce.budgets import BUDGETS, Budget, in_one_process
from flamscale.reproduce.paper import AVERAGE, NUPLAN
from flamscale.reproduce.rows import DCI, FVD, LPIPS, PSNR, RETURN, SSIM, Metric
from flamscale.reproduce.variants import (
    ADAWORLD,
    BASELINES,
    FLAM,
    GLOBAL_COUPLING,
    PLAYSLOT,
    PREVIOUS_FRAME,
    SLOTFORMER,
    Games,
    Variant,
    Variants,
    with_beta,
    with_slots,
)
from flamscale.scaling.axes import Axis, Entities, Seeds
from flamscale.scaling.study import Study


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A difference that is told on every data set which has both rows."""

    first: str
    """Name of a row; the second is taken from it."""
    second: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the paper's tables."""

    name: str
    question: str
    variants: Callable[[Budget], tuple[Variant, ...]]
    agents: Callable[[Budget], tuple[int, ...]]
    """Of its MultiGrid data sets (count)."""
    metrics: tuple[Metric, ...]
    """Its columns."""
    comparisons: tuple[Comparison, ...] = ()
    """What is said below it."""
    has_games: bool = False
    """Whether Procgen's games have rows, where the budget allows."""
    of_policies: bool = False
    """Whether its rows are policies, cloned with the help of the finished models."""
    paper_data: tuple[str, ...] = ()
    """Data sets of the paper that no run of ours is of."""

    def studies(self, config: ReproduceConfig) -> tuple[Study, ...]:
        """Returns the grids of the table's runs, one of a simulator each: data sets x variants x seeds."""
        budget = BUDGETS[config.budget]
        axes = (Variants(values=self.variants(budget)), Seeds(values=budget.seeds))
        folder = absolute(config.data)
        entities = Entities(values=self.agents(budget), folder=folder)
        studies = [self._study(config, budget.base(), (entities, *axes))]
        if self.has_games and budget.games:
            games = Games(values=budget.games, folder=folder)
            studies.append(self._study(config, budget.games_base(), (games, *axes)))
        return tuple(studies)

    def _study(self, config: ReproduceConfig, base: PretrainConfig, axes: tuple[Axis, ...]) -> Study:
        """The base in one process, which measures with the weights that are given."""
        lpips, fvd = (absolute(file) if file else "" for file in (config.lpips_weights, config.fvd_weights))
        base = replace(
            in_one_process(base),
            out=str(Path(config.out).resolve()),
            data=replace(base.data, url=(absolute(config.data),)),
            evaluation=replace(base.evaluation, lpips_weights=lpips, fvd_weights=fvd),
        )
        return Study(name=self.name, question=self.question, base=base, axes=axes)


def _slots_of(budget: Budget) -> tuple[Variant, ...]:
    """FLAM at every K; the budget's own K is FLAM itself, whose runs other tables have."""
    flam = budget.base().flam
    usual = flam.num_slots if isinstance(flam, FlamConfig) else 0
    counts = sorted({*budget.num_slots, usual})
    return tuple(
        replace(FLAM, title=f"FLAM, K = {count}", paper=with_slots(count).name) if count == usual else with_slots(count)
        for count in counts
    )


_OVER_COPIES_AND_BASELINES = tuple(
    Comparison(first=FLAM.name, second=other, metrics=(PSNR,))
    for other in ("copy_last", *(variant.name for variant in BASELINES))
)

TABLES = {
    table.name: table
    for table in (
        Table(
            name="prediction",
            question="How well are ten frames predicted from inferred latent actions?",
            variants=lambda budget: (FLAM, *BASELINES),
            agents=lambda budget: budget.agents,
            metrics=(PSNR, SSIM, LPIPS, FVD),
            comparisons=_OVER_COPIES_AND_BASELINES,
            has_games=True,
            paper_data=(AVERAGE, NUPLAN),
        ),
        Table(
            name="dci",
            question="Do slots stand for entities, one for one?",
            variants=lambda budget: (FLAM, PLAYSLOT, SLOTFORMER),
            agents=lambda budget: budget.agents,
            metrics=(PSNR, *DCI),
            comparisons=tuple(
                Comparison(first=FLAM.name, second=other.name, metrics=DCI) for other in (PLAYSLOT, SLOTFORMER)
            ),
        ),
        Table(
            name="factors",
            question="How many factors does the scene need?",
            variants=_slots_of,
            agents=lambda budget: (budget.num_agents,),
            metrics=(PSNR, *DCI),
        ),
        Table(
            name="entities",
            question="What do more entities cost?",
            variants=lambda budget: (FLAM, ADAWORLD),
            agents=lambda budget: budget.many_agents,
            metrics=(PSNR, SSIM),
            comparisons=(
                Comparison(first=FLAM.name, second=ADAWORLD.name, metrics=(PSNR,)),
                Comparison(first=FLAM.name, second="copy_last", metrics=(PSNR,)),
            ),
        ),
        Table(
            name="ablations",
            question="What does each part of FLAM do?",
            variants=lambda budget: (FLAM, PREVIOUS_FRAME, GLOBAL_COUPLING, *map(with_beta, budget.betas)),
            agents=lambda budget: (budget.num_agents,),
            metrics=(PSNR, *DCI),
            comparisons=tuple(
                Comparison(first=FLAM.name, second=other.name, metrics=(PSNR, *DCI))
                for other in (PREVIOUS_FRAME, GLOBAL_COUPLING)
            ),
        ),
        Table(
            name="policy",
            question="Do latent actions help to learn a policy from few labels?",
            variants=lambda budget: (FLAM,),
            agents=lambda budget: (budget.num_agents,),
            metrics=(RETURN,),
            of_policies=True,
        ),
    )
}


def shards_of(study: Study, budget: Budget) -> list[MakeShards]:
    """Returns the simulated data sets that a study's runs read: its first axis."""
    axis, base = study.axes[0], study.base
    if isinstance(axis, Games):
        return [
            MakeShards(
                source="procgen",
                game=game,
                size=base.tokenizer.image_size,
                episodes=budget.episodes,
                out=config.data.url[0],
            )
            for game, config in axis.choices(base)
        ]
    return [
        MakeShards(
            source="multigrid",
            num_agents=int(count),
            size=base.tokenizer.image_size,
            episodes=budget.episodes,
            out=config.data.url[0],
        )
        for count, config in axis.choices(base)
    ]
