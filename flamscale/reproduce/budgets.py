"""What a table may cost: a budget's name in; settings of its runs, and how far its rows go, out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from flamscale.config import EvaluationConfig, FlamConfig, PolicyConfig, PretrainConfig
from flamscale.presets import multigrid, procgen, quickstart
from flamscale.reproduce.variants import Game
from flamscale.scaling.axes import with_steps


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Settings that the runs of all tables share, and how far rows go."""

    base: Callable[[], PretrainConfig]
    """FLAM on MultiGrid, without data."""
    games_base: Callable[[], PretrainConfig] = procgen
    """FLAM on Procgen."""
    games: tuple[Game, ...] = ()
    """Procgen's games."""
    agents: tuple[int, ...]
    """Of the data sets of the tables prediction and dci (count)."""
    many_agents: tuple[int, ...]
    """Of those of the table entities (count)."""
    num_agents: int = 4
    """Of the data set of all other tables, as in the paper (count)."""
    num_slots: tuple[int, ...]
    betas: tuple[float, ...]
    """As the paper counts them, see `with_beta`."""
    seeds: tuple[int, ...]
    episodes: int
    """Of each data set (count)."""
    policy: PolicyConfig
    tflops_per_s: float
    """Assumed model FLOP rate of a run's device: a CPU core, or a GPU in fp32 (TFLOP/s)."""


def _smoke() -> PretrainConfig:
    """The quickstart made tiny."""
    base = quickstart()
    return replace(
        with_steps(base, 20),
        tokenizer=replace(base.tokenizer, image_size=32),
        tokenizer_stage=replace(
            base.tokenizer_stage,
            num_steps=20,
            validate_every=20,
            checkpoint_every=20,
            log_every=10,
            validation_clips=32,
        ),
        flam=FlamConfig(
            num_slots=4,
            width=32,
            action_width=8,
            num_heads=4,
            num_blocks=1,
            history_frames=3,
            slot_iterations=1,
            mlp_ratio=2,
        ),
        evaluation=EvaluationConfig(num_clips=8, num_pictures=2),
    )


def in_one_process(run: PretrainConfig) -> PretrainConfig:
    """Returns the run in one process: so each run of a table goes, whatever the preset says."""
    return replace(run, cluster=replace(run.cluster, num_workers=1, zero_stage=0))


def _hour() -> PretrainConfig:
    """The quickstart in half its steps, and in batches of half the size: more steps, where clips are few."""
    base = with_steps(in_one_process(quickstart()), 1_500)
    return replace(base, flam_stage=replace(base.flam_stage, global_batch=16))


BUDGETS = {
    "smoke": Budget(
        base=_smoke,
        agents=(2,),
        many_agents=(2, 4),
        num_agents=2,
        num_slots=(2, 4),
        betas=(1e-3,),
        seeds=(0,),
        episodes=40,
        policy=PolicyConfig(
            num_agents=2, num_demonstrations=20, num_labels=(50,), num_levels=4, num_seeds=2, decoder_steps=20,
            policy_steps=20,
        ),
        tflops_per_s=0.016,
    ),
    "hour": Budget(
        base=_hour,
        agents=(2, 4),
        many_agents=(2, 4, 8),
        num_slots=(2, 4, 8),
        betas=(1e-5, 1e-4, 1e-3, 1e-2),
        seeds=(0, 1, 2),
        episodes=640,
        policy=PolicyConfig(num_seeds=2),
        tflops_per_s=0.016,
    ),
    "full": Budget(
        base=multigrid,
        games=("bigfish", "leaper", "starpilot"),
        agents=(4,),
        many_agents=(2, 4, 8, 16),
        num_slots=(2, 4, 8, 16),
        betas=(1e-5, 1e-4, 1e-3, 1e-2),
        seeds=(0, 1, 2),
        episodes=39_063,  # a million training frames, as in the paper
        policy=PolicyConfig(),
        tflops_per_s=20.0,
    ),
}  # fmt: skip
