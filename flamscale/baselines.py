"""Baselines of FLAM by name: a run that trains FLAM in; the same run with another model in its place out.

Tokenizer, data, optimiser and evaluation stay as they are, and so does the total width K*A of a step's latent actions.
What is a setting of FLAM needs no name: --flam.binding previous-frame, --flam.coupling global.
"""

from dataclasses import fields, replace
from typing import Literal

from flamscale.config import DynamicsConfig, FlamConfig, MonolithicConfig, PretrainConfig
from flamscale.errors import ConfigError


def flam(run: PretrainConfig) -> PretrainConfig:
    """FLAM itself."""
    return run


def adaworld(run: PretrainConfig) -> PretrainConfig:
    """AdaWorld's latent action model: one Gaussian action a step for the whole scene (arXiv 2503.18938)."""
    return _monolithic(run, "gaussian")


def genie(run: PretrainConfig) -> PretrainConfig:
    """Genie's latent action model: one quantised action a step for the whole scene (arXiv 2402.15391).

    Genie's 8 codes suit one player; the 256 here are more than the 3^4 joint actions of four agents.
    """
    return _monolithic(run, "quantized")


def true_actions(run: PretrainConfig) -> PretrainConfig:
    """A world model given the true actions of all agents, up to four; of Procgen its labels tell the player's alone.

    The 15 values are those of Procgen, of which MultiGrid has 3.
    """
    return _monolithic(run, "true", num_agents=4, num_agent_actions=15)


def slotformer(run: PretrainConfig) -> PretrainConfig:
    """SlotFormer: slots learned by reconstruction, predicted from one another without actions (arXiv 2210.05861)."""
    return _on_reconstructed_slots(run, replace(flam_of(run), action="none", coupling="global"))


def playslot(run: PretrainConfig) -> PretrainConfig:
    """PlaySlot: slots learned by reconstruction, a quantised action a slot upon them (arXiv 2502.07600).

    Its IDM and predictor see all slots.
    """
    return _on_reconstructed_slots(run, replace(flam_of(run), action="quantized", coupling="global"))


MODELS = {
    "flam": flam,
    "adaworld": adaworld,
    "genie": genie,
    "true-actions": true_actions,
    "slotformer": slotformer,
    "playslot": playslot,
}


def flam_of(run: PretrainConfig) -> FlamConfig:
    """Returns the settings of FLAM in a run that trains it; raises ConfigError for any other."""
    if not isinstance(run.flam, FlamConfig):
        raise ConfigError(f"A baseline is made of a run that trains FLAM, got one with a {run.flam.model} model.")
    return run.flam


def _monolithic(
    run: PretrainConfig,
    action: Literal["gaussian", "quantized", "true"],
    num_agents: int = 0,
    num_agent_actions: int = 0,
) -> PretrainConfig:
    """With about as many weights: twice FLAM's blocks for want of factorizer and aggregator, again for want of IDM."""
    of = flam_of(run)
    shared = {item.name: getattr(of, item.name) for item in fields(DynamicsConfig)}
    shared |= {"action_width": of.num_slots * of.action_width}
    shared |= {"num_blocks": (4 if action == "true" else 2) * of.num_blocks}
    shared |= {"activation_checkpointing": False}
    config = MonolithicConfig(**shared, action=action, num_agents=num_agents, num_agent_actions=num_agent_actions)
    stage = replace(run.flam_stage, reconstruction_weight=0.0, contrastive_weight=0.0, slot_cost=0.0)
    return replace(run, flam=config, flam_stage=stage)


def _on_reconstructed_slots(run: PretrainConfig, config: FlamConfig) -> PretrainConfig:
    return replace(
        run,
        flam=replace(config, slots_learn_from="reconstruction", adaptive_slots=False),
        flam_stage=replace(
            run.flam_stage, reconstruction_weight=run.flam_stage.reconstruction_weight or 1.0, slot_cost=0.0
        ),
    )
