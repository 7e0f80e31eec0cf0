"""Studies of a few tiny runs, as a process that tests kill: python tests/cluster/sweep_driver.py --data D --out O."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from flamscale_cluster.sweep import run_study
from flamscale_cluster.sweep_config import SweepConfig

from flamscale import command_line
from flamscale.config import PretrainConfig
from flamscale.scaling.axes import Factors, Seeds, Setting, Value, with_steps
from flamscale.scaling.study import Study
from tests.tiny import NUM_STEPS, tiny_config


def tiny_study(data: str, out: Path) -> Study:
    """K = 1 and 2, two seeds each."""
    base = replace(tiny_config(data, out), flam=replace(tiny_config(data, out).flam, num_slots=1, action_width=16))
    return Study(
        name="factors", question="Does it run?", base=base, axes=(Factors(values=(1, 2)), Seeds(values=(0, 1)))
    )


def groups_study(data: str, out: Path) -> Study:
    """Two seeds of two workers each, which take a machine of two cores in turn."""
    base = tiny_config(data, out, num_workers=2)
    return Study(name="groups", question="Do groups work?", base=base, axes=(Seeds(values=(0, 1)),))


def rates_study(data: str, out: Path) -> Study:
    """Learning rates, of which the first makes the loss no number."""
    rates = Setting(path="flam_stage.learning_rate", values=(1e30, 1e-3))
    return Study(name="rates", question="Which rate fails?", base=tiny_config(data, out), axes=(rates,))


@dataclass(frozen=True, kw_only=True)
class Hopes:
    """Three seeds of short runs, and a long one that learns nothing."""

    name: str = "hope"

    def choices(self, config: PretrainConfig) -> Iterator[tuple[Value, PretrainConfig]]:
        """Yields each; all validate twelve times."""
        for seed in range(3):
            yield seed, replace(config, seed=seed)
        idle = with_steps(config, 20 * NUM_STEPS)
        yield "none", replace(idle, flam_stage=replace(idle.flam_stage, learning_rate=1e-9))


def hopeless_study(data: str, out: Path) -> Study:
    """Runs of which the last is behind the others."""
    base = tiny_config(data, out)
    base = replace(base, flam_stage=replace(base.flam_stage, validate_every=1))
    return Study(name="hopes", question="Which run is hopeless?", base=base, axes=(Hopes(),))


STUDIES = {"factors": tiny_study, "groups": groups_study, "rates": rates_study, "hopeless": hopeless_study}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to run."""

    data: str
    out: Path
    study: Literal["factors", "groups", "rates", "hopeless"] = "factors"
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> None:
    """Runs the study."""
    chosen = command_line.parse(Arguments, arguments, description="")
    run_study(
        STUDIES[chosen.study](chosen.data, chosen.out), chosen.sweep, entities=chosen.study in ("factors", "groups")
    )


if __name__ == "__main__":
    command_line.run(main)
