"""Untrained models a test can afford: 12 x 12 frames, N = 9 tokens of C = 8 channels, K = 3 slots of width D = 16."""

from dataclasses import replace

import torch

from flamscale.config import FlamConfig, MonolithicConfig, TokenizerConfig
from flamscale.models.flam import Flam
from flamscale.models.monolithic import Monolithic
from flamscale.models.tokenizer import Tokenizer

TOKENIZER = TokenizerConfig(
    image_size=12,
    downsample=4,
    base_channels=4,
    max_channels=8,
    num_residual_blocks=1,
    patch_channels=8,
    feature_channels=8,
    fsq_levels=(4, 3, 3),
)
FLAM = FlamConfig(num_slots=3, width=16, action_width=4, num_heads=2, num_blocks=1, slot_iterations=2, mlp_ratio=2)
ADAPTIVE = replace(FLAM, adaptive_slots=True)
MONOLITHIC = MonolithicConfig(width=16, action_width=4, num_heads=2, num_blocks=1, mlp_ratio=2)
TRUE_ACTIONS = replace(MONOLITHIC, action="true", num_agents=2, num_agent_actions=3)


def small_tokenizer(config: TokenizerConfig = TOKENIZER, seed: int = 0) -> Tokenizer:
    """Returns a tokenizer in float32, which its codebook is made in."""
    torch.manual_seed(seed)
    return Tokenizer(config)


def small_flam(config: FlamConfig = FLAM, seed: int = 0) -> Flam:
    """Returns a FLAM in float64 with no weight at a special value, as if training had moved them all."""
    torch.manual_seed(seed)
    flam = Flam(config, TOKENIZER).double()
    _move_weights(flam)
    return flam


def small_monolithic(config: MonolithicConfig = MONOLITHIC, seed: int = 0) -> Monolithic:
    """Returns a monolithic model of the same kind."""
    torch.manual_seed(seed)
    model = Monolithic(config, TOKENIZER).double()
    _move_weights(model)
    return model


def _move_weights(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
