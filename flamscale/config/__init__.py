"""Every setting of a run, as frozen dataclasses: the recipes' flags, `config.json`, and the arguments of all parts.

Imports nothing heavy, so that `--help` answers at once. A part is built by passing its config to its class.
"""

from flamscale.config.control import ControlConfig
from flamscale.config.data import DataConfig
from flamscale.config.models import DynamicsConfig, FlamConfig, MonolithicConfig, TokenizerConfig, WorldModelConfig
from flamscale.config.policy import PolicyConfig
from flamscale.config.reproduce import ReproduceConfig
from flamscale.config.run import MIN_FVD_FRAMES, ClusterConfig, EvaluationConfig, PretrainConfig, ProfileConfig
from flamscale.config.serial import from_dict, to_json
from flamscale.config.stages import (
    FlamStageConfig,
    StageConfig,
    TokenizerStageConfig,
    check_batch_split,
    world_sizes,
)

__all__ = [
    "MIN_FVD_FRAMES",
    "ClusterConfig",
    "ControlConfig",
    "DataConfig",
    "DynamicsConfig",
    "EvaluationConfig",
    "FlamConfig",
    "FlamStageConfig",
    "MonolithicConfig",
    "PolicyConfig",
    "PretrainConfig",
    "ProfileConfig",
    "ReproduceConfig",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerStageConfig",
    "WorldModelConfig",
    "check_batch_split",
    "from_dict",
    "to_json",
    "world_sizes",
]
