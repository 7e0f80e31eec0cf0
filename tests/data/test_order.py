"""The order of clips: a permutation in every epoch, the same for everyone, shuffled inside windows of shards only."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flamscale.data.order import ClipOrder

shard_clips = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum).map(tuple)
windows = st.integers(1, 14)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 10**6)


def _epoch(clips: tuple[int, ...], window: int, seed: int, epoch: int) -> list[int]:
    order = ClipOrder(clips, window, seed)
    return [order.clip_at(epoch, offset) for offset in range(sum(clips))]


@given(shard_clips, windows, seeds, epochs)
def test_every_clip_comes_exactly_once_an_epoch(clips: tuple[int, ...], window: int, seed: int, epoch: int) -> None:
    assert sorted(_epoch(clips, window, seed, epoch)) == list(range(sum(clips)))


@given(shard_clips, windows, seeds, epochs, st.data())
def test_any_offset_can_be_asked_first(
    clips: tuple[int, ...], window: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, sum(clips) - 1))
    fresh = ClipOrder(clips, window, seed)
    assert fresh.clip_at(epoch, offset) == _epoch(clips, window, seed, epoch)[offset]


@given(shard_clips, windows, seeds, epochs)
def test_clips_stay_inside_their_window_of_shards(clips: tuple[int, ...], window: int, seed: int, epoch: int) -> None:
    shard_of = np.repeat(np.arange(len(clips)), clips)
    seen = [int(shard_of[clip]) for clip in _epoch(clips, window, seed, epoch)]
    last_seen = {shard: offset for offset, shard in enumerate(seen)}
    first_seen = {shard: offset for offset, shard in reversed(list(enumerate(seen)))}
    for offset in range(len(seen)):
        shards_under_way = [shard for shard in first_seen if first_seen[shard] <= offset <= last_seen[shard]]
        assert len(shards_under_way) <= window


@settings(max_examples=30)
@given(seeds, epochs)
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    clips = (50, 50, 50)
    here = _epoch(clips, 2, seed, epoch)
    assert here != _epoch(clips, 2, seed, epoch + 1)
    assert here != _epoch(clips, 2, seed + 1, epoch)


def test_the_order_never_changes_between_versions() -> None:
    assert _epoch((4, 3, 5), 2, seed=7, epoch=3) == [3, 1, 5, 6, 0, 2, 4, 11, 10, 9, 8, 7]


def test_a_million_samples_in_one_window_take_well_under_a_second_to_enter() -> None:
    order = ClipOrder((100_000,) * 10, window_shards=16, seed=0)
    assert 0 <= order.clip_at(5, 123_456) < 1_000_000
