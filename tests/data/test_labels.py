"""Labels of evaluation clips: of the very same clips and pixels, and one sentence where there are none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.episode import Episode
from flamscale.data.labels import labelled_clips
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.data.sampling import eval_clips
from flamscale.data.shards import ShardWriter
from flamscale.data.sources.multigrid import MultigridSource
from flamscale.data.sources.procgen import ProcgenSource
from flamscale.errors import DataError


def write(url: Path, episodes: list[Episode]) -> Mixture:
    with ShardWriter(
        str(url), name="labelled", source="test", arguments={}, crf=LOSSLESS_CRF, shard_bytes=20_000
    ) as writer:
        for episode in episodes:
            writer.write(episode)
    return Mixture.load([str(url)])


def multigrid() -> list[Episode]:
    return list(MultigridSource(num_agents=3, size=32, episodes=20, episode_frames=14))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """MultiGrid of 32 x 32 pixels in several shards; do not change its files."""
    return write(tmp_path_factory.mktemp("room"), multigrid())


def damage(data: Mixture, member: str, at: int) -> None:
    """Flips a bit of the first test sample's member."""
    shard = data.manifests[0].of_split("test")[0]
    content = bytearray(Path(shard.url).read_bytes())
    content[int(shard.samples.members[member].offsets[0]) + at] ^= 1
    Path(shard.url).write_bytes(content)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_clips_are_those_of_the_evaluation(room: Mixture, stride: int) -> None:
    wanted = {"clip_frames": 4, "frame_stride": stride, "num_clips": 7}
    assert torch.equal(labelled_clips(room, "train", **wanted).frames, eval_clips(room, "train", **wanted))


@pytest.mark.parametrize("stride", [1, 2])
def test_positions_and_actions_are_those_of_the_frames(room: Mixture, stride: int) -> None:
    clips = labelled_clips(room, "test", clip_frames=4, frame_stride=stride, num_clips=100)
    episodes = [episode for episode in multigrid() if episode.split == "test"]
    assert len(clips.frames) == len(episodes) * (14 // (3 * stride + 1))
    for number, frames in enumerate(clips.frames.numpy()):
        episode, first = _find(episodes, frames, stride)
        positions = episode.labels["positions"][first : first + 3 * stride + 1 : stride]
        assert clips.positions[number].tolist() == ((positions[..., :2] + 0.5) * 4).tolist()
        assert clips.cells[number].tolist() == (positions[..., 1] * 8 + positions[..., 0]).tolist()
        if stride == 1:
            assert clips.actions is not None
            assert clips.actions[number].tolist() == episode.labels["actions"][first : first + 3].tolist()
    assert (clips.actions is None) == (stride > 1)


def _find(episodes: list[Episode], frames: np.ndarray, stride: int) -> tuple[Episode, int]:
    """The episode and first frame whose pixels these are."""
    span = (len(frames) - 1) * stride + 1
    return next(
        (episode, first)
        for episode in episodes
        for first in range(0, 14 - span + 1, span)
        if np.array_equal(episode.frames[first : first + span : stride], frames)
    )


def test_the_entity_map_covers_the_pixels_in_which_frames_differ_from_the_empty_room(room: Mixture) -> None:
    clips = labelled_clips(room, "train", clip_frames=4, frame_stride=1, num_clips=20)
    assert clips.entity_map is not None
    frames, owners = clips.frames.numpy(), clips.entity_map
    empty = np.median(frames.reshape(-1, 32, 32, 3), axis=0)
    differs = (frames != empty).any(axis=-1)
    assert differs[owners >= 0].mean() > 0.3  # an agent is a triangle on its tile
    assert not differs[owners < 0].any()
    colours = [np.abs(frames[owners == agent].astype(int)).mean(axis=0).argmax() for agent in range(3)]
    assert len(set(colours)) == 3  # red, green and blue agents


def test_a_damaged_sample_is_replaced_with_its_labels(tmp_path: Path) -> None:
    data = write(tmp_path, multigrid())
    damage(data, "mp4", 200)
    clips = labelled_clips(data, "test", clip_frames=14, frame_stride=1, num_clips=2)
    assert torch.equal(clips.frames[0], clips.frames[1])
    second = [episode for episode in multigrid() if episode.split == "test"][1]
    assert clips.actions is not None
    assert clips.actions.tolist() == [second.labels["actions"].tolist()] * 2


def test_damaged_labels_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path, multigrid())
    damage(data, "npz", 100)
    with pytest.raises(DataError, match=r"The labels of sample episode-\d+ of .* are damaged .*: make or copy"):
        labelled_clips(data, "test", clip_frames=14, frame_stride=1, num_clips=2)


def test_of_procgen_it_is_the_player_alone(tmp_path: Path) -> None:
    episodes = list(ProcgenSource(game="bigfish", size=32, episodes=3, episode_frames=6))
    clips = labelled_clips(write(tmp_path, episodes), "test", clip_frames=6, frame_stride=1, num_clips=1)
    labels = episodes[2].labels
    assert clips.actions is not None
    assert clips.actions[0, :, 0].tolist() == labels["actions"].tolist()
    player = labels["entity_positions"][:, 0]
    assert clips.positions[0, :, 0].tolist() == player.tolist()
    inside = player.clip(0, 31)  # the player swims half out of the frame at times
    assert clips.cells[0, :, 0].tolist() == [int(y // 4) * 8 + int(x // 4) for x, y in inside]
    assert clips.entity_map is None


def test_data_without_labels_or_with_others_are_refused_in_one_sentence(tmp_path: Path, data_set: Manifest) -> None:
    wanted = {"clip_frames": 3, "frame_stride": 1, "num_clips": 2}
    with pytest.raises(
        DataError, match=r"Expected actions and positions in the labels of .*, found only actions: make"
    ):
        labelled_clips(Mixture((data_set,)), "test", **wanted)
    frames = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    bare = write(tmp_path, [Episode(key="bare", split="test", frames=frames, fps=15.0)])
    with pytest.raises(
        DataError, match=r"true actions and positions \(npz\) .*, found none: .* leave out --factors\.$"
    ):
        labelled_clips(bare, "test", **wanted)
