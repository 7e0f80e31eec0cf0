"""One episode as the sources hand it to the shard writer, and the rule that says which split it belongs to."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A cut-free run of frames.

    Attributes:
        key: name of the sample, unique in its data set, without dots.
        split: train, validation or test.
        frames: uint8 [F, H, W, 3], RGB.
        fps: frames a second.
        labels: arrays kept for evaluation, never for training (actions, positions).
        info: what else is worth keeping beside the video, as JSON values.
    """

    key: str
    split: str
    frames: UInt8[np.ndarray, "F H W 3"]
    fps: float
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def split_of(index: int, num_episodes: int) -> str:
    """Returns the split of episode `index` of a series: the first 80 % train, then 10 % validation and 10 % test.

    Validation and test have at least one episode each wherever there are three.
    """
    num_held_out = max(1, num_episodes // 10) if num_episodes >= 3 else 0
    if index < num_episodes - 2 * num_held_out:
        return "train"
    return "validation" if index < num_episodes - num_held_out else "test"
