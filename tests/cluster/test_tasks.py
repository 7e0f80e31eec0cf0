"""Ray tasks do the work of one process: all of it once, errors as they are, dead processes replaced, the same bytes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
from flamscale_cluster.tasks import RayTasks
from ray.cluster_utils import Cluster

from flamscale.data.manifest import Manifest
from flamscale.errors import ClusterError, VideoError
from tests.data.films import scene, write_film

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head of two cores on this machine."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    yield cluster.address
    cluster.shutdown()


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise VideoError(f"number {number} is refused")


def die_at_first(folder: Path, number: int) -> int:
    mark = folder / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.ray
def test_every_item_is_worked_on_once_and_the_cluster_left(address: str) -> None:
    assert sorted(RayTasks(address=address)(square, range(30))) == [number * number for number in range(30)]
    assert not ray.is_initialized()


@pytest.mark.ray
def test_an_error_of_the_work_comes_as_it_is(address: str) -> None:
    with pytest.raises(VideoError, match=r"^number \d is refused$"):
        list(RayTasks(address=address)(refuse, range(3)))


@pytest.mark.ray
def test_what_a_dead_process_was_at_is_done_again(address: str, tmp_path: Path) -> None:
    assert sorted(RayTasks(address=address)(partial(die_at_first, tmp_path), range(6))) == list(range(6))
    assert (tmp_path / "died").exists()


@pytest.mark.ray
def test_an_item_that_always_kills_its_process_is_told(address: str) -> None:
    with pytest.raises(ClusterError, match=r"A task on the Ray cluster at .* failed 4 times \(.*\); look at"):
        list(RayTasks(address=address)(die, [7]))


@pytest.mark.ray
def test_a_data_set_made_by_ray_tasks_has_the_bytes_of_one_made_by_one_process(address: str, tmp_path: Path) -> None:
    for number in range(4):
        write_film(tmp_path / "films" / f"{number}.mp4", scene(number, 40))
    hashes = []
    for name, flags in (("one", ["--workers", "1"]), ("ray", ["--ray", address])):
        out = tmp_path / name / "films"
        command = [sys.executable, "recipes/make_shards.py", "--source", "video", "--input", str(tmp_path / "films")]
        command += ["--out", str(out), "--size", "32", "--episode-frames", "8", *flags]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        hashes.append(Manifest.load(str(out)).hash)
    assert hashes[0] == hashes[1]
