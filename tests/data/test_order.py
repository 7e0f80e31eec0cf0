"""The order of clips: a permutation in every epoch, the same for everyone, shuffled inside windows of shards only.

A mixture keeps its proportions, and each of its data sets an order of its own.
"""

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flamscale.data.order import ClipOrder, MixtureOrder

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


mixtures = st.lists(shard_clips, min_size=1, max_size=4)


def _mixture(parts: list[tuple[int, ...]], weights: tuple[float, ...], seed: int) -> MixtureOrder:
    return MixtureOrder([np.array(part) for part in parts], weights, 2, seed)


def _clips(order: MixtureOrder, positions: range) -> list[int]:
    return [next(order.candidates(position)) for position in positions]


@given(mixtures, seeds, st.integers(0, 1000))
def test_a_mixture_without_weights_has_every_clip_once_an_epoch(
    parts: list[tuple[int, ...]], seed: int, epoch: int
) -> None:
    order = _mixture(parts, (), seed)
    assert order.num_clips == sum(map(sum, parts))
    start = epoch * order.num_clips
    assert sorted(_clips(order, range(start, start + order.num_clips))) == list(range(order.num_clips))


@settings(max_examples=30)
@given(st.data(), mixtures, seeds)
def test_each_data_set_of_a_weighted_mixture_goes_through_epochs_of_its_own(
    data: st.DataObject, parts: list[tuple[int, ...]], seed: int
) -> None:
    weights = tuple(data.draw(st.floats(0.1, 10)) for _ in parts)
    order = _mixture(parts, weights, seed)
    clips = np.array(_clips(order, range(4 * order.num_clips)))
    ends = np.cumsum(list(map(sum, parts)))
    for end, size, weight in zip(ends, map(sum, parts), weights, strict=True):
        own = clips[(end - size <= clips) & (clips < end)]
        for first in range(0, len(own) - size + 1, size):
            assert sorted(own[first : first + size]) == list(range(end - size, end))
        assert abs(len(own) - len(clips) * weight / sum(weights)) <= 4 * len(parts)


@settings(max_examples=30)
@given(st.data(), mixtures, seeds)
def test_any_position_of_a_mixture_can_be_asked_first(
    data: st.DataObject, parts: list[tuple[int, ...]], seed: int
) -> None:
    weights = tuple(data.draw(st.floats(0.1, 10)) for _ in parts)
    position = data.draw(st.integers(0, 3 * sum(map(sum, parts))))
    whole = _clips(_mixture(parts, weights, seed), range(position + 1))
    assert (
        _clips(pickle.loads(pickle.dumps(_mixture(parts, weights, seed))), range(position, position + 1)) == whole[-1:]
    )


def test_proportions_hold_within_a_thousand_positions() -> None:
    order = _mixture([(5000,), (5000,), (200,)], (0.5, 0.3, 0.2), seed=3)
    clips = np.array(_clips(order, range(2048)))
    counts = [
        ((clips >= first) & (clips < last)).sum() for first, last in ((0, 5000), (5000, 10_000), (10_000, 10_200))
    ]
    assert counts == [1024, 614, 410]
    first_hundred = clips[:100] < 5000
    assert 30 < first_hundred.sum() < 70  # shuffled, not one after the other


def test_the_order_of_a_mixture_never_changes_between_versions() -> None:
    assert _clips(_mixture([(3, 2), (4,)], (1.0, 2.0), seed=7), range(12)) == [2, 6, 5, 7, 8, 4, 7, 6, 3, 5, 1, 8]


@given(shard_clips, windows, seeds, epochs, st.data())
def test_the_shards_near_an_offset_are_its_windows_and_the_next(
    clips: tuple[int, ...], window: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, sum(clips) - 1))
    order = ClipOrder(clips, window, seed)
    near = order.shards_near(epoch, offset)
    shard_of = np.repeat(np.arange(len(clips)), clips)
    assert shard_of[order.clip_at(epoch, offset)] in near[:window]
    assert len(near) == len(set(near)) <= 2 * window


def test_ten_million_clips_take_under_a_second_to_enter_anywhere() -> None:
    order = MixtureOrder([np.full(400, 25_000)], (), window_shards=16, seed=0)
    assert order.num_clips == 10**7
    assert 0 <= next(order.candidates(9 * 10**6)) < 10**7
