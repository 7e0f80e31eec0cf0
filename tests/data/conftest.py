"""Small data sets whose every frame says which episode and frame it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.episode import Episode
from flamscale.data.manifest import Manifest
from flamscale.data.shards import ShardWriter


def _episode(index: int, num_frames: int, split: str) -> Episode:
    """Frame f of episode e is one colour: (e, f, 7); the true actions of its two agents that follow are e and f."""
    frames = np.empty((num_frames, 16, 16, 3), dtype=np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = index, np.arange(num_frames)[:, None, None], 7
    labels = {"actions": np.stack([np.full(num_frames - 1, index), np.arange(num_frames - 1)], axis=1)}
    return Episode(key=f"e{index:03d}", split=split, frames=frames, fps=10.0, labels=labels, info={"number": index})


@pytest.fixture(scope="session")
def make_data_set() -> Callable[..., Manifest]:
    """Returns make(url, train_frames, ...): one train episode for each number, two validation and two test episodes."""

    def make(url: str, train_frames: tuple[int, ...], held_out_frames: int = 12, shard_bytes: int = 30_000) -> Manifest:
        with ShardWriter(
            url, name="coloured", source="test", arguments={}, crf=LOSSLESS_CRF, shard_bytes=shard_bytes
        ) as writer:
            for index, num_frames in enumerate(train_frames):
                writer.write(_episode(index, num_frames, "train"))
            for index, split in enumerate(("validation", "validation", "test", "test"), start=200):
                writer.write(_episode(index, held_out_frames, split))
        return Manifest.load(url)

    return make


@pytest.fixture(scope="session")
def data_set(make_data_set: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 train episodes of 3 to 20 frames in several shards; do not change its files."""
    folder = tmp_path_factory.mktemp("data_set")
    return make_data_set(str(folder), tuple(3 + (7 * index) % 18 for index in range(24)))


@pytest.fixture
def own_data_set(data_set: Manifest, tmp_path: Path) -> Manifest:
    """A copy of `data_set` for the test to damage."""
    shutil.copytree(data_set.url, tmp_path / "copy")
    return Manifest.load(str(tmp_path / "copy"))
