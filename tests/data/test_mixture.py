"""Several data sets as one: drawn from by weight, each clip from where it lies, told apart when damaged."""

import gc
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from flamscale.config import DataConfig
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.data.sampling import eval_clips
from flamscale.errors import ConfigError, DataError

Make = Callable[..., Manifest]


@pytest.fixture
def two(make_data_set: Make, tmp_path: Path) -> tuple[Manifest, Manifest]:
    """Eight samples of 3 frames, and four of 6: told apart by their lengths."""
    return make_data_set(str(tmp_path / "a"), (3,) * 8, shard_bytes=2**30), make_data_set(
        str(tmp_path / "b"), (6,) * 4, shard_bytes=2**30
    )


def _loader(data: Mixture, **settings: float) -> ClipLoader:
    config = DataConfig(window_shards=2, **{"prefetch_batches": 0, **settings})
    clip = {"clip_frames": 1, "frame_stride": 1, "clip_hop": 1}
    batch = {"global_batch": 24, "micro_batch": 24, "rank": 0, "world_size": 1, "seed": 5}
    return ClipLoader(data, "train", **clip, **batch, config=config)


def _frames(loader: ClipLoader, count: int) -> Counter[tuple[int, ...]]:
    """How often each (episode, frame) came."""
    batches = itertools.islice(loader, count)
    return Counter(tuple(clip) for batch in batches for clip in batch.video[:, 0, 0, 0, :2].tolist())


def test_without_weights_an_epoch_has_every_clip_of_every_data_set_once(two: tuple[Manifest, ...]) -> None:
    with _loader(Mixture(two)) as loader:
        assert loader.num_clips == 48
        counts = _frames(loader, 2)
    both = [(8, 3), (4, 6)]
    assert counts == Counter(
        (episode, frame) for episodes, frames in both for episode in range(episodes) for frame in range(frames)
    )


def test_weights_set_how_often_each_is_drawn_from(two: tuple[Manifest, ...]) -> None:
    with _loader(Mixture(two, (0.0625, 0.9375))) as loader:
        counts = _frames(loader, 20)
    only_second = sum(count for (_, frame), count in counts.items() if frame >= 3)
    assert only_second == pytest.approx(480 * 0.9375 / 2, abs=3)


def test_the_identity_depends_on_the_data_sets_their_order_and_weights(two: tuple[Manifest, ...]) -> None:
    first, second = two
    hashes = [
        Mixture(manifests, weights).hash
        for manifests, weights in [((first, second), ()), ((second, first), ()), ((first, second), (1.0, 2.0))]
    ]
    assert len({*hashes, first.hash, second.hash}) == 5
    assert Mixture((first,)).hash == first.hash


def test_samples_of_one_name_in_two_data_sets_are_told_apart(two: tuple[Manifest, ...]) -> None:
    for manifest in two:
        (shard,) = manifest.of_split("train")
        content = bytearray(Path(shard.url).read_bytes())
        content[int(shard.samples.members["mp4"].offsets[2]) + 100] ^= 1
        Path(shard.url).write_bytes(content)
    with _loader(Mixture(two), max_bad_fraction=0.5) as loader:
        _frames(loader, 4)
        assert {where.removeprefix(str(Path(two[0].url).parent)) for where in loader.bad_samples} == {
            "/a/train/000000.tar/e002", "/b/train/000000.tar/e002",
        }  # fmt: skip


def test_evaluation_clips_come_from_every_data_set(two: tuple[Manifest, ...]) -> None:
    clips = eval_clips(Mixture(two), "train", clip_frames=3, frame_stride=1, num_clips=16)
    assert len(clips) == 16
    assert {int(frame) for frame in clips[:, 0, 0, 0, 1]} == {0, 3}


def test_frames_of_different_size_are_refused(two: tuple[Manifest, ...]) -> None:

    larger = replace(two[1], height=32)
    with pytest.raises(
        ConfigError, match=r"^Data sets that are mixed must have frames of one size; those of .*/a are 16"
    ):
        Mixture((two[0], larger))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, 2.0, 3.0)])
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data.weights must be one positive number for each of the 2 data sets"):
        DataConfig(url=("a", "b"), weights=weights)


def test_a_missing_data_set_is_told_by_its_address(two: tuple[Manifest, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^Expected a data set at .*/c, but there is no manifest.arrow"):
        Mixture.load([two[0].url, str(tmp_path / "c")])


def test_memory_stays_flat_over_epochs(two: tuple[Manifest, ...]) -> None:
    with _loader(Mixture(two), prefetch_batches=2) as loader:
        held = []
        for _ in range(3):
            for batch in itertools.islice(loader, 60):
                assert batch.video.dtype == torch.uint8
            gc.collect()
            held.append(psutil.Process().memory_full_info().uss)
    assert held[2] - held[1] < 2**20
