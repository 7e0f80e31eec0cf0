"""Time stamps become a steady rate, by the nearest picture; scene cuts are found, and fast motion is none."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from flamscale.data.sources.timeline import Picture, mark_scenes, resample
from tests.data.films import scene, walk


def _shown(times_s: list[float], fps: float) -> list[tuple[int, bool]]:
    """Number of the picture at each tick, and whether the clock was set anew before it."""
    pictures = [Picture(time_s=time_s, load=lambda: Image.new("RGB", (1, 1))) for time_s in times_s]
    return [(pictures.index(picture), fresh) for picture, fresh in resample(iter(pictures), fps)]


def _numbers(times_s: list[float], fps: float) -> list[int]:
    return [number for number, _ in _shown(times_s, fps)]


@pytest.mark.parametrize("fps", [10.0, 24.0, 30000 / 1001, 60.0])
def test_at_its_own_rate_every_picture_comes_once_in_spite_of_rounded_times(fps: float) -> None:
    times_s = [round(7 + number / fps, 3) for number in range(500)]
    assert _numbers(times_s, fps) == list(range(500))


def test_a_lower_rate_takes_the_nearest_pictures() -> None:
    assert _numbers([number / 30 for number in range(31)], 10) == [*range(0, 31, 3)]
    assert _numbers([number / 30 for number in range(12)], 12) == [0, 2, 5, 7, 10]  # 0, 2.5, 5, 7.5, 10: ties go down


def test_a_higher_rate_repeats_pictures() -> None:
    assert _numbers([0.0, 0.1, 0.2], 20) == [0, 0, 1, 1, 2]


def test_variable_rates_follow_time_and_not_the_count() -> None:
    assert _numbers([0.0, 0.01, 0.02, 0.03, 0.1, 0.21, 0.3, 0.39, 0.42], 10) == [0, 4, 5, 6, 7]


def test_a_hole_in_time_or_a_jump_back_sets_the_clock_anew() -> None:
    assert _shown([0.0, 0.1, 0.2, 5.0, 5.1, 1.0, 1.1], 10) == [
        (0, True), (1, False), (2, False), (3, True), (4, False), (5, True), (6, False),
    ]  # fmt: skip


def test_two_pictures_at_one_time_count_once() -> None:
    assert _numbers([0.0, 0.1, 0.1, 0.2], 10) == [0, 1, 3]


def _starts(frames: np.ndarray, threshold: float = 3.0, fresh: tuple[int, ...] = (0,)) -> list[int]:
    def given() -> Iterator[tuple[np.ndarray, bool]]:
        for number, frame in enumerate(frames):
            yield frame, number in fresh

    marked = list(mark_scenes(given(), threshold))
    np.testing.assert_array_equal(np.stack([frame for frame, _ in marked]), frames)
    return [number for number, (_, starts) in enumerate(marked) if starts]


def test_cuts_are_found_to_the_frame() -> None:
    film = np.concatenate([scene(1, 17), scene(2, 9), scene(3, 30)])
    assert _starts(film) == [0, 17, 26]
    assert _starts(film, threshold=0) == [0]


def test_breaks_in_time_are_kept_beside_cuts() -> None:
    film = np.concatenate([scene(1, 17), scene(2, 20)])
    assert _starts(film, fresh=(0, 5, 25)) == [0, 5, 17, 25]


@pytest.mark.parametrize("film", [scene(1, 40, speed=7), walk(2, 40)], ids=["fast camera", "still camera"])
def test_motion_is_no_cut(film: np.ndarray) -> None:
    assert _starts(film) == [0]
