"""The loader: one global sequence for every topology, resumed at the very next clip; faults cost their sample alone."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamscale.config import DataConfig
from flamscale.data.clips import ClipSpace
from flamscale.data.decode import decode_frames
from flamscale.data.loader import ClipLoader, LoaderState, Quarantine
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.data.reader import Findings, Transform
from flamscale.errors import ConfigError, DataError
from flamscale.types import Batch


def _loader(manifest: Manifest, *, transform: Transform | None = None, **changes: Any) -> ClipLoader:
    config = {name: changes.pop(name) for name in list(changes) if name in DataConfig.__dataclass_fields__}
    settings_ = {
        "clip_frames": 3, "frame_stride": 2, "clip_hop": 1, "global_batch": 12, "micro_batch": 12, "rank": 0,
        "world_size": 1, "seed": 5,
    }  # fmt: skip
    config = {"window_shards": 2, "prefetch_batches": 0, **config}
    return ClipLoader(
        Mixture((manifest,)), "train", **{**settings_, **changes}, config=DataConfig(**config), transform=transform
    )


def _take(loader: ClipLoader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def _global_batches(
    manifest: Manifest, count: int, *, world_size: int = 1, micro_batch: int = 12, **changes: Any
) -> Any:
    """Returns `count` global batches put together from all ranks: video and positions."""
    per_rank = count * 12 // world_size // micro_batch
    ranks = []
    for rank in range(world_size):
        with _loader(manifest, rank=rank, world_size=world_size, micro_batch=micro_batch, **changes) as loader:
            batches = _take(loader, per_rank)
        video = torch.cat([batch.video for batch in batches]).unflatten(0, (count, 12 // world_size))
        positions = torch.cat([batch.positions for batch in batches]).unflatten(0, (count, 12 // world_size))
        ranks.append((video, positions))
    return torch.cat([video for video, _ in ranks], dim=1), torch.cat([positions for _, positions in ranks], dim=1)


def test_clips_hold_the_frames_they_should(data_set: Manifest) -> None:
    loader = _loader(data_set)
    seen = set()
    for batch in _take(loader, loader.num_clips // 12):
        assert batch.video.dtype == torch.uint8
        assert batch.video.shape == (12, 3, 16, 16, 3)
        for clip in batch.video[:, :, 0, 0, :2].tolist():
            (episode, first), *rest = clip
            assert rest == [[episode, first + 2], [episode, first + 4]]
            seen.add((episode, first))
    assert len(seen) == loader.num_clips // 12 * 12  # no clip twice in an epoch


@pytest.mark.parametrize(
    "topology",
    [
        {"world_size": 2, "micro_batch": 6},
        {"world_size": 3, "micro_batch": 2},
        {"world_size": 4, "micro_batch": 1},
        {"prefetch_batches": 3},
        {"cache_mib": 1, "prefetch_batches": 1, "world_size": 2, "micro_batch": 3},
        {"decode_threads": 3},
        {"decode_threads": 2, "cache_mib": 1},
        {
            "num_processes": 1,
            "prefetch_batches": 1,
            "decode_threads": 2,
            "cache_mib": 1,
            "world_size": 2,
            "micro_batch": 6,
        },
    ],
)
def test_global_batches_are_bit_equal_whatever_the_topology(data_set: Manifest, topology: dict[str, int]) -> None:
    video, positions = _global_batches(data_set, 30)  # more than an epoch
    other_video, other_positions = _global_batches(data_set, 30, **topology)
    assert torch.equal(positions.flatten(), torch.arange(30 * 12))
    assert torch.equal(positions, other_positions)
    assert torch.equal(video, other_video)


_BATCHES = st.sampled_from([48, 60, 64, 72])


@st.composite
def _topologies(draw: st.DrawFn, global_batch: int) -> tuple[int, int]:
    """World size up to 64 and micro-batch that divide a global batch; what is left is accumulation."""
    world_size = draw(st.sampled_from([size for size in range(1, 65) if global_batch % size == 0]))
    share = global_batch // world_size
    return world_size, draw(st.sampled_from([size for size in range(1, share + 1) if share % size == 0]))


def _sequence(data: Mixture, global_batch: int, topology: tuple[int, int], state: Any, num_batches: int) -> Any:
    """Returns clip numbers of the global batches after `state`, put together from all ranks, and the state then."""
    world_size, micro_batch = topology
    config = DataConfig(url=tuple(map(str, range(len(data.manifests)))), weights=data.weights, window_shards=2)
    shares = []
    for rank in range(world_size):
        loader = ClipLoader(
            data, "train", clip_frames=3, frame_stride=1, clip_hop=1, global_batch=global_batch, rank=rank, seed=5,
            micro_batch=micro_batch, world_size=world_size, config=replace(config, prefetch_batches=0),
        )  # fmt: skip
        loader._stream = _NumbersOnly(loader)
        if state is not None:
            loader._done = state.epoch * loader.num_clips + state.position
        batches = _take(loader, num_batches * global_batch // world_size // micro_batch)
        shares.append(torch.cat([batch.video for batch in batches]).reshape(num_batches, -1))
    return torch.cat(shares, dim=1).tolist(), loader.state()


class _NumbersOnly:
    """Stands in for `ReadAhead`: the number of each clip instead of its frames."""

    def __init__(self, loader: ClipLoader) -> None:
        self._loader = loader
        self._tasks: Any = None

    def __next__(self) -> tuple[list[int], np.ndarray, Findings]:
        self._tasks = self._tasks or self._loader._micro_batches(self._loader._done)
        positions = next(self._tasks)
        order = self._loader._read.order
        return positions, np.array([next(order.candidates(position)) for position in positions]), Findings()


@settings(max_examples=25)
@given(st.data(), _BATCHES, st.booleans(), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_run_that_changes_its_world_size_sees_every_batch_of_an_undisturbed_one(
    data_set: Manifest, data: st.DataObject, global_batch: int, is_mixed: bool, moves: list[int]
) -> None:
    mixture = Mixture((data_set, data_set), (0.7, 0.3)) if is_mixed else Mixture((data_set,))
    expected, end = _sequence(mixture, global_batch, (1, global_batch), None, sum(moves))
    found, state = [], None
    for num_batches in moves:
        topology = data.draw(_topologies(global_batch))
        batches, state = _sequence(mixture, global_batch, topology, state, num_batches)
        found += batches
    assert found == expected
    assert state == end
    size = sum(int((shard.samples.frames - 2).clip(0).sum()) for shard in data_set.of_split("train"))
    if not is_mixed:  # each clip once an epoch
        clips = [clip for batch in found for clip in batch]
        for first in range(0, len(clips) - size + 1, size):
            assert sorted(clips[first : first + size]) == list(range(size))


@settings(max_examples=8)
@given(
    done=st.integers(0, 20),
    before=st.sampled_from([(1, 12), (2, 3), (3, 4)]),
    after=st.sampled_from([(1, 4), (2, 6), (4, 1)]),
)
def test_a_resumed_run_continues_with_exactly_the_next_batch_at_any_world_size(
    data_set: Manifest, done: int, before: tuple[int, int], after: tuple[int, int]
) -> None:
    with _loader(data_set, world_size=before[0], micro_batch=before[1], prefetch_batches=2) as loader:
        _take(loader, done * 12 // before[0] // before[1])
        state = loader.state()
    assert divmod(done * 12, loader.num_clips) == (state.epoch, state.position)
    expected, _ = _global_batches(data_set, done + 2)
    parts = []
    for rank in range(after[0]):
        resumed = _loader(data_set, rank=rank, world_size=after[0], micro_batch=after[1])
        resumed.load_state(state)
        batches = _take(resumed, 24 // after[0] // after[1])
        parts.append(torch.cat([batch.video for batch in batches]).unflatten(0, (2, 12 // after[0])))
    assert torch.equal(torch.cat(parts, dim=1), expected[done:])


def test_the_state_moves_only_when_a_global_batch_is_complete(data_set: Manifest) -> None:
    with _loader(data_set, micro_batch=4, prefetch_batches=2) as loader:
        positions = []
        for _ in range(7):
            next(loader)
            positions.append(loader.state().position)
    assert positions == [0, 0, 12, 12, 12, 24, 24]


def test_loading_a_state_goes_back_with_prefetching_too(data_set: Manifest) -> None:
    with _loader(data_set, prefetch_batches=2) as loader:
        _take(loader, 2)
        state = loader.state()
        first = _take(loader, 3)
        loader.load_state(state)
        again = _take(loader, 3)
    assert all(torch.equal(a.video, b.video) for a, b in zip(first, again, strict=True))


def test_a_state_of_another_data_set_or_seed_is_told_in_one_sentence(data_set: Manifest) -> None:
    loader = _loader(data_set)
    with pytest.raises(
        DataError, match=r"saved with manifest hash other, and the run now has .*: resume with the same"
    ):
        loader.load_state(LoaderState(epoch=0, position=0, seed=5, manifest_hash="other"))
    with pytest.raises(DataError, match=r"saved with seed 6, and the run now has 5: resume with the same"):
        loader.load_state(LoaderState(epoch=0, position=0, seed=6, manifest_hash=data_set.hash))


def test_batches_larger_than_the_data_set_run_through_several_epochs(
    make_data_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = make_data_set(str(tmp_path), (5,))
    (batch,) = _take(_loader(manifest, clip_frames=2, frame_stride=1), 1)
    firsts = batch.video[:, 0, 0, 0, 1].tolist()
    assert [sorted(firsts[start : start + 4]) for start in (0, 4, 8)] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_a_transform_sees_frames_and_its_result_is_cut_into_clips(data_set: Manifest, cache_mib: int) -> None:
    def first_pixel(frames: np.ndarray) -> np.ndarray:
        return frames[:, 0, 0, :2].astype(np.int64)

    plain, _ = _global_batches(data_set, 2)
    mapped, _ = _global_batches(data_set, 2, transform=first_pixel, cache_mib=cache_mib, prefetch_batches=1)
    assert mapped.dtype == torch.int64
    assert torch.equal(mapped, plain[:, :, :, 0, 0, :2].long())


def test_the_cache_decodes_every_sample_once_and_stays_below_its_limit(
    data_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(video: bytes, first: int, count: int, stride: int, backend: Any, out: Any) -> Any:
        decoded.append(count)
        return decode_frames(video, first, count, stride, backend=backend, out=out)

    monkeypatch.setattr("flamscale.data.reader.decode_frames", counted)
    _take(_loader(data_set, cache_mib=16), 30)
    num_samples = sum(int((shard.samples.frames >= 5).sum()) for shard in data_set.of_split("train"))
    assert len(decoded) == num_samples
    decoded.clear()

    def heavy(frames: np.ndarray) -> np.ndarray:
        return frames.astype(np.float32).repeat(40, axis=-1)  # 120 KiB a frame, of which 1 MiB holds a sample or none

    loader = _loader(data_set, cache_mib=1, transform=heavy)
    _take(loader, 10)
    assert len(decoded) > num_samples
    assert loader._reader.cache_bytes <= 2**20


def test_a_sample_that_falls_out_of_the_cache_while_its_batch_is_read_is_read_again(data_set: Manifest) -> None:
    def heavy(frames: np.ndarray) -> np.ndarray:
        return frames.astype(np.float32).repeat(40, axis=-1)

    (expected,) = _take(_loader(data_set, transform=heavy), 1)
    loader = _loader(data_set, transform=heavy, cache_mib=3)
    for _ in range(3):
        loader.load_state(loader.state())
        _take(loader, 5)
    loader.load_state(replace(loader.state(), epoch=0, position=0))
    (found,) = _take(loader, 1)
    assert torch.equal(found.video, expected.video)


def _bad_keys(loader: ClipLoader) -> set[str]:
    return {where.rpartition("/")[2] for where in loader.bad_samples}


def _damage(manifest: Manifest, *keys: str) -> None:
    """Flips a bit in the video of each named sample."""
    for shard in manifest.of_split("train"):
        path = Path(manifest.url, shard.path)
        content = bytearray(path.read_bytes())
        for index, key in enumerate(shard.samples.keys):
            if key in keys:
                content[int(shard.samples.members["mp4"].offsets[index]) + 100] ^= 1
        path.write_bytes(content)


def test_a_damaged_sample_is_counted_and_replaced_by_the_same_clips_for_everyone(own_data_set: Manifest) -> None:
    _damage(own_data_set, "e004")
    loader = _loader(own_data_set, max_bad_fraction=0.1)
    batches = _take(loader, 30)
    assert loader.skipped_samples == 1
    ((where, reason),) = loader.bad_samples.items()
    assert where.endswith(".tar/e004")
    assert "checksum" in reason
    video = torch.stack([batch.video for batch in batches])
    assert 4 not in video[..., 0].unique().tolist()
    split, _ = _global_batches(
        own_data_set, 30, world_size=3, micro_batch=2, max_bad_fraction=0.1, cache_mib=1, prefetch_batches=1
    )
    assert torch.equal(split, video)


def test_a_truncated_tar_costs_only_the_samples_behind_the_cut(own_data_set: Manifest) -> None:
    shard = own_data_set.of_split("train")[0]
    path = Path(own_data_set.url, shard.path)
    path.write_bytes(path.read_bytes()[: int(shard.samples.members["mp4"].offsets[-2]) + 10])
    loader = _loader(own_data_set, max_bad_fraction=0.5)
    _take(loader, 30)
    assert _bad_keys(loader) == {
        key for key, frames in zip(shard.samples.keys[-2:], shard.samples.frames[-2:], strict=True) if frames >= 5
    }


def test_a_missing_shard_costs_its_samples(own_data_set: Manifest) -> None:
    shard = own_data_set.of_split("train")[1]
    Path(own_data_set.url, shard.path).unlink()
    loader = _loader(own_data_set, max_bad_fraction=0.9)
    _take(loader, 30)
    assert _bad_keys(loader) <= set(shard.samples.keys)
    assert "is missing" in next(iter(loader.bad_samples.values()))


@pytest.mark.parametrize("prefetch_batches", [0, 2])
def test_too_many_damaged_samples_end_the_run_with_one_sentence(own_data_set: Manifest, prefetch_batches: int) -> None:
    _damage(own_data_set, "e004", "e006", "e010")
    with (
        _loader(own_data_set, max_bad_fraction=0.1, prefetch_batches=prefetch_batches) as loader,
        pytest.raises(DataError, match=r"^3 of 24 samples are damaged, more than the allowed share of 0.1, the latest"),
    ):
        _take(loader, 60)


def test_each_of_many_ranks_counts_against_its_own_share(data_set: Manifest) -> None:
    space = ClipSpace(data_set.of_split("train"), 1, 1, 1)
    two_bad = Findings(tried={(0, 0), (0, 1)}, bad={(0, 0): "a", (0, 1): "b"})
    Quarantine(space, max_bad_fraction=0.2, world_size=1).note(two_bad)
    with pytest.raises(DataError, match=r"^2 of 6 samples are damaged"):
        Quarantine(space, max_bad_fraction=0.2, world_size=4).note(two_bad)
    late = Quarantine(space, max_bad_fraction=0.2, world_size=4)
    all_samples = {(number, sample) for number, shard in enumerate(space.shards) for sample in range(len(shard))}
    late.note(Findings(tried=all_samples))  # in later epochs a rank sees the others' samples as well
    late.note(two_bad)
    assert len(late.bad_samples) == 2


def test_a_single_damaged_sample_never_ends_a_run_that_tolerates_any(own_data_set: Manifest) -> None:
    _damage(own_data_set, "e004")
    loader = _loader(own_data_set, max_bad_fraction=0.001)
    _take(loader, 30)
    assert loader.skipped_samples == 1
    with pytest.raises(DataError, match="1 of 24 samples are damaged"):
        _take(_loader(own_data_set, max_bad_fraction=0.0), 30)


def test_a_video_that_cannot_be_decoded_is_a_damaged_sample(
    own_data_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undecodable(*_: Any, **__: Any) -> Any:
        raise DataError("This video cannot be decoded: no.")

    monkeypatch.setattr("flamscale.data.reader.decode_frames", undecodable)
    with pytest.raises(
        DataError, match=r"Not one of the 24 samples of this split can be read, .*cannot be decoded: no"
    ):
        _take(_loader(own_data_set, max_bad_fraction=1.0), 1)


def test_closing_ends_the_background_thread(data_set: Manifest) -> None:
    before = threading.active_count()
    with _loader(data_set, prefetch_batches=2) as loader:
        _take(loader, 2)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_an_s3_data_set_gives_the_same_batches_as_a_local_one(
    make_data_set: Callable[..., Manifest], s3_url: str, tmp_path: Path
) -> None:
    frames = (9, 7, 12)
    there, here = (make_data_set(url, frames) for url in (s3_url, str(tmp_path)))
    remote, _ = _global_batches(there, 3, prefetch_batches=2)
    local, _ = _global_batches(here, 3)
    assert torch.equal(remote, local)


def test_a_truncated_object_costs_only_its_samples(
    make_data_set: Callable[..., Manifest], s3_url: str, data_set: Manifest
) -> None:
    from flamscale.data import storage

    manifest = make_data_set(s3_url, (9, 9, 9, 9))
    shard = manifest.of_split("train")[0]
    address = storage.join(s3_url, shard.path)
    storage.write_bytes(address, storage.read_bytes(address)[: int(shard.samples.members["mp4"].offsets[-2]) + 10])
    loader = _loader(manifest, max_bad_fraction=0.5)
    _take(loader, 3)
    assert loader.skipped_samples
    assert _bad_keys(loader) <= {"e002", "e003"}


def test_batches_that_do_not_divide_are_told(data_set: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"multiple of micro-batch x world size = 5 x 2"):
        _loader(data_set, micro_batch=5, world_size=2)


def test_clips_longer_than_every_sample_are_told(data_set: Manifest) -> None:
    with pytest.raises(
        DataError, match=r"A clip of 100 frames at stride 1 spans 100 frames, and the longest .* has 20"
    ):
        _loader(data_set, clip_frames=100, frame_stride=1)
