"""Motion in grey levels, and signatures that only copies share."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from flamscale.data.measure import motion, signature
from flamscale.data.sources.camera import CameraSource
from tests.data.films import scene, walk


def test_motion_is_the_mean_change_of_grey() -> None:
    frames = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    frames[1, :2] = 100  # half of the pixels change by 100, then back
    assert motion(frames) == 50.0
    assert motion(np.repeat(frames[1:2], 5, axis=0)) == 0.0


def test_one_small_walker_before_a_still_camera_moves_more_than_the_default_threshold() -> None:
    assert motion(walk(1, 32)) > 2 * CameraSource.static_threshold


def _coded_again(frames: np.ndarray) -> np.ndarray:
    """Smaller, noisier and a little brighter."""
    noise = np.random.default_rng(0).integers(-4, 5, frames.shape)
    noisy = np.clip(frames.astype(int) + noise + 3, 0, 255).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(frame).resize((48, 48))) for frame in noisy])


@pytest.mark.parametrize("make", [scene, walk])
def test_copies_share_their_signature_and_other_episodes_do_not(make) -> None:
    films = [make(seed, 32, 64) for seed in range(8)]
    signatures = [signature(film) for film in films]
    limit = CameraSource.duplicate_bits
    assert all(
        (signature(_coded_again(film)) ^ bits).bit_count() <= limit
        for film, bits in zip(films, signatures, strict=True)
    )
    assert all((one ^ other).bit_count() > 2 * limit for one, other in combinations(signatures, 2))


def test_a_still_camera_gives_other_signatures_when_the_walk_goes_on() -> None:
    film = walk(3, 60)
    assert (signature(film[:20]) ^ signature(film[30:50])).bit_count() > CameraSource.duplicate_bits
