"""True actions of a split: labels beside its videos in; the actions of any of its clips, from memory, out.

They serve the one baseline that takes them in place of inferred ones; all other models learn from video alone.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Int64, UInt
from torch import Tensor

from flamscale.config import WorldModelConfig
from flamscale.data.clips import Clip
from flamscale.data.labels import place_of, read_labels
from flamscale.data.manifest import Samples, Shard
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError, DataError

_REMEDY = "choose another --model"
_READ_AT_ONCE = 16  # samples, for the sake of object stores


class TrueActions:
    """The true actions of all samples of a split, and so of all clips of their videos or latents.

    Args:
        data: the videos.
        split: train, validation or test.
        num_agents: most agents E that may act in a sample (count); as many in each.
        num_agent_actions: values of one agent's action, numbered from 0 (count).

    Raises:
        DataError: no such split, or a sample has no labels, damaged ones, or none of actions.
        ConfigError: they are of more agents, or not of as many in each sample, or have other values.
    """

    def __init__(self, data: Mixture, split: str, *, num_agents: int, num_agent_actions: int) -> None:
        self._num_agents, self._num_agent_actions = num_agents, num_agent_actions
        with ThreadPoolExecutor(_READ_AT_ONCE, "true-actions") as pool:
            self._shards = [
                list(pool.map(partial(self._read, shard, shard.samples), range(len(shard))))
                for shard in data.of_split(split)
            ]
        found = {actions.shape[1] for shard in self._shards for actions in shard}
        if len(found) > 1:
            raise ConfigError(
                f"True actions must be of as many agents in every sample, found {min(found)} to {max(found)}; "
                f"{_REMEDY}, or data of one kind."
            )

    def of(self, clips: Sequence[Clip], clip_frames: int) -> Int64[Tensor, "n L E"]:
        """Returns actions of clips of successive frames, actions[:, t] leading from frame t to t + 1."""
        steps = [self._shards[clip.shard][clip.sample][clip.first : clip.first + clip_frames - 1] for clip in clips]
        return torch.from_numpy(np.stack(steps).astype(np.int64))

    def _read(self, shard: Shard, samples: Samples, sample: int) -> UInt[np.ndarray, "steps E"]:
        found = read_labels(shard, samples, sample, _REMEDY).get("actions", np.empty(0))
        actions = found[:, None] if found.ndim == 1 else found  # Procgen's are of its player alone
        where, num_steps = place_of(shard, samples, sample), int(samples.frames[sample]) - 1
        if actions.ndim != 2 or len(actions) != num_steps or actions.dtype.kind not in "iu":
            raise DataError(
                f"Expected integer actions for each of the {num_steps} steps in the labels of {where}, found "
                f"{found.dtype} {list(found.shape)}: make the shards anew with recipes/make_shards.py, or {_REMEDY}."
            )
        if actions.shape[1] > self._num_agents:
            raise ConfigError(
                f"flam.num-agents is {self._num_agents}, and the true actions of {where} are of {actions.shape[1]} "
                f"agents: pass --flam.num-agents {actions.shape[1]}, or other data."
            )
        if num_steps and not 0 <= actions.min() <= actions.max() < self._num_agent_actions:
            raise ConfigError(
                f"flam.num-agent-actions {self._num_agent_actions} allows true actions from 0 to "
                f"{self._num_agent_actions - 1}, and those of {where} go from {actions.min()} to {actions.max()}: pass "
                f"--flam.num-agent-actions {actions.max() + 1}, or other data."
            )
        return actions.astype(np.min_scalar_type(self._num_agent_actions))


def load_true_actions(model: WorldModelConfig, data: Mixture, split: str) -> TrueActions | None:
    """Returns the true actions of a split for a model that takes them, None for any other; raises as `TrueActions`."""
    if model.action != "true":
        return None
    return TrueActions(data, split, num_agents=model.num_agents, num_agent_actions=model.num_agent_actions)
