"""True actions: those of the very clips that a batch holds, at any world size, after a resume and around damage."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flamscale.config import DataConfig
from flamscale.data.actions import TrueActions
from flamscale.data.clips import ClipSpace
from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.episode import Episode
from flamscale.data.latents import load_latents
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.data.sampling import read_spread
from flamscale.data.shards import ShardWriter
from flamscale.errors import ConfigError, DataError
from flamscale.types import Batch
from tests.data.test_latents import small_tokenizer, write_latents

AGENTS = {"num_agents": 2, "num_agent_actions": 256}


def loader_of(data: Mixture, videos: Mixture | None = None, **changes: Any) -> ClipLoader:
    """A loader of `data`, with the actions that lie beside its videos."""
    config = {name: changes.pop(name) for name in list(changes) if name in DataConfig.__dataclass_fields__}
    sizes = {"clip_frames": 3, "clip_hop": 1, "global_batch": 12, "micro_batch": 12, "rank": 0, "world_size": 1}
    return ClipLoader(
        data,
        "train",
        **{**sizes, **changes},
        frame_stride=1,
        seed=5,
        config=replace(DataConfig(window_shards=2, prefetch_batches=0), **config),
        actions=TrueActions(videos or data, "train", **AGENTS),
    )


def take(loader: ClipLoader, count: int) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader, count))


def told(batch: Batch) -> Tensor:
    """What the frames say of the actions that follow them: episode and frame are their first two colours."""
    return batch.video[:, :-1, 0, 0, :2].long()


@pytest.mark.parametrize(
    "topology",
    [
        {},
        {"micro_batch": 2, "prefetch_batches": 3},
        {"micro_batch": 6, "cache_mib": 1, "clip_hop": 2},
        {"num_processes": 1, "prefetch_batches": 1, "micro_batch": 4},
        {"train_samples": 5},
    ],
)
def test_a_batch_carries_the_actions_between_its_frames(data_set: Manifest, topology: dict[str, int]) -> None:
    batches = take(loader_of(Mixture((data_set,)), **topology), 40)
    for batch in batches:
        assert batch.actions is not None
        assert batch.actions.dtype == torch.int64
        assert torch.equal(batch.actions, told(batch))
    assert len({tuple(pair) for batch in batches for pair in told(batch)[:, 0].tolist()}) > 20


def test_ranks_and_resumed_runs_have_the_actions_of_their_own_clips(data_set: Manifest) -> None:
    data = Mixture((data_set,))
    whole = [batch.actions for batch in take(loader_of(data), 6)]
    first = loader_of(data, world_size=2, micro_batch=3)
    take(first, 4)
    shares = []
    for rank in range(3):
        resumed = loader_of(data, rank=rank, world_size=3, micro_batch=2)
        resumed.load_state(first.state())
        shares.append(torch.cat([batch.actions for batch in take(resumed, 8)]).unflatten(0, (4, 4)))
    assert torch.equal(torch.cat(shares, dim=1), torch.stack(whole[2:]))


@pytest.mark.parametrize("num_processes", [0, 2])
def test_the_clip_in_place_of_a_damaged_one_has_its_own_actions(own_data_set: Manifest, num_processes: int) -> None:
    damaged = own_data_set.of_split("train")[0]
    path = Path(damaged.url)
    content = bytearray(path.read_bytes())
    for offset in damaged.samples.members["mp4"].offsets.tolist():
        content[offset + 100] ^= 1
    path.write_bytes(content)
    loader = loader_of(
        Mixture((own_data_set,)), max_bad_fraction=0.9, num_processes=num_processes, prefetch_batches=2, micro_batch=3
    )
    batches = take(loader, 160)
    assert loader.skipped_samples > 1
    assert all(torch.equal(batch.actions, told(batch)) for batch in batches)


def test_each_of_several_data_sets_has_its_own_actions(
    data_set: Manifest, make_data_set: Callable[..., Manifest], tmp_path: Path
) -> None:
    other = make_data_set(str(tmp_path), (9, 4, 11, 3, 8))
    batches = take(loader_of(Mixture((data_set, other), (0.4, 0.6))), 40)
    assert all(torch.equal(batch.actions, told(batch)) for batch in batches)


def test_latents_have_the_actions_of_their_videos(data_set: Manifest, tmp_path: Path) -> None:
    videos, tokenizer = Mixture((data_set,)), small_tokenizer()
    write_latents(data_set, str(tmp_path), tokenizer)
    latents = load_latents([str(tmp_path)], videos, tokenizer.hash)
    pairs = zip(take(loader_of(latents, videos), 20), take(loader_of(videos), 20), strict=True)
    assert all(torch.equal(of_latents.actions, told(of_videos)) for of_latents, of_videos in pairs)


def test_clips_spread_over_a_split_are_told_apart_by_where_they_lie(data_set: Manifest) -> None:
    data = Mixture((data_set,))
    frames, clips = read_spread(data, ClipSpace(data.of_split("test"), 4, 1, 4), 100)
    actions = TrueActions(data, "test", **AGENTS).of(clips, 4)
    assert torch.equal(actions, frames[:, :-1, 0, 0, :2].long())


def labelled(folder: Path, labels: dict[str, np.ndarray]) -> Mixture:
    """One episode of 6 frames."""
    frames = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    with ShardWriter(
        str(folder), name="labelled", source="test", arguments={}, crf=LOSSLESS_CRF, shard_bytes=20_000
    ) as writer:
        writer.write(Episode(key="one", split="test", frames=frames, fps=10.0, labels=labels))
    return Mixture.load([str(folder)])


def test_actions_of_a_single_player_are_those_of_one_agent(tmp_path: Path) -> None:
    data = labelled(tmp_path, {"actions": np.array([4, 0, 14, 7, 7])})
    _, clips = read_spread(data, ClipSpace(data.of_split("test"), 3, 1, 1), 100)
    actions = TrueActions(data, "test", num_agents=4, num_agent_actions=15).of(clips, 3)
    assert actions[..., 0].tolist() == [[4, 0], [0, 14], [14, 7], [7, 7]]


@pytest.mark.parametrize(
    ("labels", "error", "sentence"),
    [
        ({}, DataError, r"^Expected true actions .* of sample one of .*, found none: .*, or choose another --model\.$"),
        (
            {"positions": np.zeros((6, 2, 3))},
            DataError,
            r"for each of the 5 steps .* one of .*, found float64 \[0\]: make",
        ),
        ({"actions": np.zeros((6, 2), dtype=int)}, DataError, r"each of the 5 steps .*, found int64 \[6, 2\]: make"),
        ({"actions": np.zeros((5, 2))}, DataError, r"Expected integer actions .*, found float64 \[5, 2\]: make"),
        (
            {"actions": np.zeros((5, 4), dtype=int)},
            ConfigError,
            r"num-agents is 2, .* are of 4 agents: pass --flam\.num-agents 4",
        ),
        (
            {"actions": np.full((5, 2), 9)},
            ConfigError,
            r"from 0 to 2, .* from 9 to 9: pass --flam\.num-agent-actions 10",
        ),
    ],
)
def test_data_without_the_wanted_actions_are_refused_in_one_sentence(
    labels: dict[str, np.ndarray], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        TrueActions(labelled(tmp_path, labels), "test", num_agents=2, num_agent_actions=3)


def test_samples_of_different_numbers_of_agents_are_refused(tmp_path: Path) -> None:
    parts = [labelled(tmp_path / str(n), {"actions": np.zeros((5, n), dtype=int)}) for n in (1, 2)]
    both = Mixture.load([str(tmp_path / str(n)) for n in (1, 2)])
    for part in parts:
        TrueActions(part, "test", **AGENTS)
    with pytest.raises(ConfigError, match=r"as many agents in every sample, found 1 to 2; choose another --model"):
        TrueActions(both, "test", **AGENTS)


def test_a_missing_shard_is_told_in_one_sentence(own_data_set: Manifest) -> None:
    Path(own_data_set.of_split("train")[1].url).unlink()
    with pytest.raises(DataError, match=r"^The shard .*\.tar is missing: copy it there"):
        TrueActions(Mixture((own_data_set,)), "train", **AGENTS)
