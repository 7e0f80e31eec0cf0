"""The clip space: every clip fits its sample, none is left out, and the numbers run through them in order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamscale.data.clips import Clip, ClipSpace
from flamscale.data.manifest import Members, Samples, Shard
from flamscale.errors import DataError


def _shard(frames: list[int]) -> Shard:
    """A shard of samples of these lengths; all else is of no matter here."""
    count = len(frames)
    members = {"mp4": Members(offsets=np.zeros(count, dtype=np.int64), sizes=np.zeros(count, dtype=np.int64))}
    samples = Samples.of(keys=[""] * count, frames=frames, sha256=["00" * 32] * count, members=members)
    return Shard.of(path="train/000000.tar", split="train", size_bytes=0, sha256="", samples=samples)


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=5), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_the_numbers_run_through_exactly_the_clips_that_fit(
    shards: list[list[int]], clip_frames: int, frame_stride: int, clip_hop: int
) -> None:
    span = (clip_frames - 1) * frame_stride + 1
    expected = [
        Clip(shard, sample, first)
        for shard, samples in enumerate(shards)
        for sample, frames in enumerate(samples)
        for first in range(0, frames - span + 1, clip_hop)
    ]
    rows = tuple(_shard(samples) for samples in shards)
    if not expected:
        with pytest.raises(DataError, match="spans"):
            ClipSpace(rows, clip_frames, frame_stride, clip_hop)
        return
    space = ClipSpace(rows, clip_frames, frame_stride, clip_hop)
    assert [space.clip(number) for number in range(space.num_clips)] == expected
    assert sum(space.shard_clips) == len(expected)


def test_samples_shorter_than_a_clip_are_told_in_one_sentence() -> None:
    with pytest.raises(DataError, match=r"A clip of 4 frames at stride 3 spans 10 frames, .*train samples has 9: .*"):
        ClipSpace((_shard([9, 5]),), clip_frames=4, frame_stride=3, clip_hop=1)
