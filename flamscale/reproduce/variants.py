"""What a table's rows differ in, as axes of a study: models by name, and Procgen's games.

A row is named by what it is, so that tables share their runs: FLAM in `prediction` is FLAM in `dci`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from flamscale import baselines
from flamscale.config import PretrainConfig
from flamscale.scaling.axes import Factors

Game = Literal["bigfish", "leaper", "starpilot"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model of a table."""

    name: str
    """Short and lower-case: part of a run's name."""
    title: str
    """What a table calls it."""
    change: Callable[[PretrainConfig], PretrainConfig]
    """Makes it of the run that trains FLAM."""
    paper: str = ""
    """Variant that the paper's numbers beside it are of; empty for the same one."""


FLAM = Variant(name="flam", title="FLAM", change=baselines.flam)
ADAWORLD = Variant(name="adaworld", title="AdaWorld", change=baselines.adaworld)
GENIE = Variant(name="genie", title="Genie", change=baselines.genie)
SLOTFORMER = Variant(name="slotformer", title="SlotFormer", change=baselines.slotformer)
TRUE_ACTIONS = Variant(name="true-actions", title="given the true actions", change=baselines.true_actions)
PLAYSLOT = Variant(name="playslot", title="PlaySlot", change=baselines.playslot)

BASELINES = (
    ADAWORLD,
    GENIE,
    SLOTFORMER,
    PLAYSLOT,
    TRUE_ACTIONS,
)
"""In the order of the rows."""


def _previous_frame(run: PretrainConfig) -> PretrainConfig:
    return replace(run, flam=replace(baselines.flam_of(run), binding="previous-frame"))


def _global_coupling(run: PretrainConfig) -> PretrainConfig:
    return replace(run, flam=replace(baselines.flam_of(run), coupling="global"))


PREVIOUS_FRAME = Variant(name="previous-frame", title="FLAM, slots from the previous frame", change=_previous_frame)
GLOBAL_COUPLING = Variant(name="global-coupling", title="FLAM, global coupling", change=_global_coupling)


def with_slots(num_slots: int) -> Variant:
    """FLAM with K slots, and the same width of all latent actions together."""

    def change(run: PretrainConfig) -> PretrainConfig:
        flam = baselines.flam_of(run)
        axis = Factors(values=(num_slots,), total_action_width=flam.num_slots * flam.action_width)
        ((_, changed),) = axis.choices(run)
        return changed

    return Variant(name=f"k-{num_slots}", title=f"FLAM, K = {num_slots}", change=change)


def with_beta(beta: float) -> Variant:
    """FLAM with the paper's weight of the KL: its squared error is a sum over N tokens of C channels, ours a mean."""

    def change(run: PretrainConfig) -> PretrainConfig:
        num_values = run.tokenizer.num_tokens * run.tokenizer.feature_channels
        return replace(run, flam_stage=replace(run.flam_stage, beta=beta / num_values))

    return Variant(name=f"beta-{beta:g}", title=f"FLAM, beta = {beta:g}", change=change)


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The models of a table."""

    values: tuple[Variant, ...]
    name: str = "variant"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[str, PretrainConfig]]:
        for variant in self.values:
            yield variant.name, variant.change(config)


@dataclass(frozen=True, kw_only=True)
class Games:
    """Procgen's games: data sets FOLDER/GAME."""

    values: tuple[Game, ...]
    folder: str
    """Folder or URL that the data sets lie in."""
    name: str = "game"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Game, PretrainConfig]]:
        for game in self.values:
            yield game, replace(config, data=replace(config.data, url=(f"{self.folder.rstrip('/')}/{game}",)))
