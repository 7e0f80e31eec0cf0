"""What a source hands over: parts of work, and the episodes of each; and the rule that says an episode's split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A cut-free run of frames.

    Attributes:
        key: name of the sample, unique in its data set, without dots.
        split: train, validation or test; empty where it follows from all episodes that are kept.
        frames: uint8 [F, H, W, 3], RGB.
        fps: frames a second.
        labels: arrays kept for evaluation (actions, positions); only the baseline of true actions trains on any.
        info: what else is worth keeping beside the video, as JSON values.
    """

    key: str
    split: str
    frames: UInt8[np.ndarray, "F H W 3"]
    fps: float
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Something a source counts on its way, for the summary: scenes, runs too short for an episode, ..."""

    what: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a source's work that depends on no other: a video, or a range of simulated episodes."""

    number: int
    """Position among the source's parts."""
    name: str
    """Where its frames come from, such as the path of a file."""
    size: int = 0
    """Bytes of that file or images of that folder, so that a changed input is noticed; 0 where that is not known."""
    fps: float = 0.0
    """Frames a second its episodes shall have; 0 where the source knows."""


class Source(Protocol):
    """Where episodes come from; it is sent to worker processes, so it holds settings and no open files."""

    def parts(self) -> Sequence[Part]:
        """Returns all parts, in the order of their episodes."""

    def read(self, part: Part) -> Iterator[Episode | Tally]:
        """Yields the episodes of one part, the same ones every time, and what it counts.

        Raises:
            VideoError: this part's input cannot be used, and others can.
        """


PART_EPISODES = 64
"""Simulated episodes made without a break, by one process."""


def simulated_parts(num_episodes: int) -> list[Part]:
    """Returns the parts of a simulator whose every episode can be made for itself: ranges of episodes."""
    starts = range(0, num_episodes, PART_EPISODES)
    return [Part(number=number, name=f"episodes from {start}") for number, start in enumerate(starts)]


def episodes_of(part: Part, num_episodes: int) -> range:
    """Returns the episodes of one of `simulated_parts`."""
    start = part.number * PART_EPISODES
    return range(start, min(start + PART_EPISODES, num_episodes))


def split_of(index: int, num_episodes: int) -> str:
    """Returns the split of episode `index` of a series: the first 80 % train, then 10 % validation and 10 % test.

    Validation and test have at least one episode each wherever there are three.
    """
    num_held_out = max(1, num_episodes // 10) if num_episodes >= 3 else 0
    if index < num_episodes - 2 * num_held_out:
        return "train"
    return "validation" if index < num_episodes - num_held_out else "test"
