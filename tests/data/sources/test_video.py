"""Video files as a source: the right pixels and frames, splits in time order, one sentence for every fault."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamscale.data import storage
from flamscale.data.encode import LOSSLESS_CRF, encode_frames
from flamscale.data.sources.video import VideoSource
from flamscale.errors import ConfigError, DataError

ROUNDING = 1.0  # the library rounds twice, once for each direction


def _film(path: Path, num_frames: int, *, height: int = 48, width: int = 64, fps: float = 10.0) -> np.ndarray:
    """Writes a film of coloured noise whose frame f has the red value f everywhere; returns its frames."""
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.arange(num_frames)[:, None, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_frames(frames, fps, LOSSLESS_CRF))
    return frames


def _area_mean(frames: np.ndarray, size: int) -> np.ndarray:
    count, side = len(frames), frames.shape[1] // size
    return frames.reshape(count, size, side, size, side, 3).mean(axis=(2, 4))


def test_the_largest_centred_square_is_resized_by_area(tmp_path: Path) -> None:
    frames = _film(tmp_path / "a.mp4", 20)
    (episode,) = VideoSource(input=str(tmp_path / "a.mp4"), size=16, episode_frames=20)
    np.testing.assert_allclose(episode.frames, _area_mean(frames[:, :, 8:56], 16), atol=ROUNDING)
    assert episode.fps == 10.0


def test_a_crop_is_cut_out_first(tmp_path: Path) -> None:
    frames = _film(tmp_path / "a.mp4", 4)
    (episode,) = VideoSource(input=str(tmp_path), size=16, episode_frames=4, crop="30,10,62,42")
    np.testing.assert_allclose(episode.frames, _area_mean(frames[:, 10:42, 30:62], 16), atol=ROUNDING)


def test_a_long_file_is_split_in_time_order_and_its_remainder_dropped(tmp_path: Path) -> None:
    _film(tmp_path / "a.mp4", 43)
    source = VideoSource(input=str(tmp_path), size=16, episode_frames=4)
    episodes = list(source)
    assert len(source) == len(episodes) == 10
    assert [episode.split for episode in episodes] == ["train"] * 8 + ["validation", "test"]
    assert [episode.frames[0, 0, 0, 0] for episode in episodes] == list(range(0, 40, 4))
    assert [episode.info["first_frame"] for episode in episodes] == list(range(0, 40, 4))
    assert len({episode.key for episode in episodes}) == 10


def test_short_files_of_nested_folders_are_split_together(tmp_path: Path) -> None:
    for number in range(10):
        _film(tmp_path / f"day {number // 5}" / f"{number}.v1.MP4", 5)
    (tmp_path / "notes.txt").write_text("no video")
    _film(tmp_path / "too short.mp4", 3)
    episodes = list(VideoSource(input=str(tmp_path), size=16, episode_frames=4))
    assert [episode.split for episode in episodes] == ["train"] * 8 + ["validation", "test"]
    assert [episode.info["source"] for episode in episodes] == [f"{number}.v1.MP4" for number in range(10)]


def test_fractional_frame_rates_are_kept(tmp_path: Path) -> None:
    _film(tmp_path / "a.mp4", 6, fps=29.97)
    (episode,) = VideoSource(input=str(tmp_path), size=16, episode_frames=6)
    assert episode.fps == pytest.approx(30000 / 1001, abs=0.01)


def test_films_on_s3_are_read_as_local_ones(tmp_path: Path, s3_url: str) -> None:
    _film(tmp_path / "a.mp4", 9)
    storage.write_bytes(storage.join(s3_url, "films", "a.mp4"), (tmp_path / "a.mp4").read_bytes())
    here, there = (
        list(VideoSource(input=url, size=16, episode_frames=4))
        for url in (str(tmp_path), storage.join(s3_url, "films"))
    )
    assert len(here) == len(there) == 2
    for mine, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(mine.frames, other.frames)


@pytest.mark.parametrize("content", [b"", b"this is no video at all", None])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is None:  # a film that breaks off before its index
        _film(tmp_path / "whole.mp4", 8)
        content = (tmp_path / "whole.mp4").read_bytes()[:5000]
    (tmp_path / "broken.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"^The video .*broken.mp4 cannot be decoded \(.*\): repair it, convert it"):
        list(VideoSource(input=str(tmp_path), size=16, episode_frames=4))


def test_a_folder_of_images_is_told_in_one_sentence(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match=r"Expected video files \(.*\.mp4.*found 3 other files \(single images must be"):
        list(VideoSource(input=str(tmp_path)))


@pytest.mark.parametrize("folder", ["", "missing"])
def test_an_empty_or_missing_folder_is_told_in_one_sentence(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match=r"Expected video files .* in .*, found nothing: point --input at"):
        list(VideoSource(input=str(tmp_path / folder)))


def test_films_shorter_than_an_episode_are_told_in_one_sentence(tmp_path: Path) -> None:
    _film(tmp_path / "a.mp4", 5)
    with pytest.raises(DataError, match=r"Every video in .* has fewer frames than one episode of 6: choose shorter"):
        len(VideoSource(input=str(tmp_path), episode_frames=6))


def test_a_crop_outside_the_picture_is_told_in_one_sentence(tmp_path: Path) -> None:
    _film(tmp_path / "a.mp4", 5)
    with pytest.raises(ConfigError, match=r"crop 40,0,80,40 reaches outside the frames of .*a.mp4, which are 64x48"):
        list(VideoSource(input=str(tmp_path), size=16, episode_frames=4, crop="40,0,80,40"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"input": ""}, "needs --input"),
        ({"size": 15}, "size must be an even number of pixels, 16 or more, got 15"),
        ({"episode_frames": 1}, "episode-frames must be at least 2, got 1"),
        ({"crop": "1,2,3"}, "crop must be four whole numbers"),
        ({"crop": "a,b,c,d"}, "crop must be four whole numbers"),
        ({"crop": "0,0,10,20"}, "crop must be a square"),
        ({"crop": "10,0,5,20"}, "crop must be a square"),
    ],
)
def test_impossible_settings_are_told(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoSource(**{"input": "x", **setting})
