"""What is checked before a study's data are made: room for a run, and that nobody else is at work on it."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from flamscale_cluster.sweep import _check_room, _cluster, _only_driver, _Work, run_study
from flamscale_cluster.sweep_config import SweepConfig

from flamscale.errors import ConfigError
from flamscale.scaling.board import Board
from flamscale.scaling.study import Study
from flamscale.scaling.usage import Meter
from tests.cluster.sweep_driver import tiny_study
from tests.cluster.test_head import addresses_listened_on


def workers_study(out: Path, *, num_workers: int, **cluster) -> Study:
    """Four runs of so many workers each."""
    study = tiny_study("data", out)
    settings = replace(study.base.cluster, num_workers=num_workers, **cluster)
    return replace(study, base=replace(study.base, cluster=settings))


def test_a_run_that_needs_more_than_this_machine_has_is_refused(tmp_path: Path):
    runs = tiny_study("data", tmp_path).runs()
    _check_room(runs, SweepConfig(device_share=2.0), {"CPU": 2.0})
    with pytest.raises(ConfigError, match=r"k-1_seed-0 needs 4 CPU, and this machine has 2; lower device-share, or"):
        _check_room(runs, SweepConfig(device_share=4.0), {"CPU": 2.0})


def test_a_run_of_more_workers_than_this_machine_has_places_for_is_refused(tmp_path: Path):
    _check_room(workers_study(tmp_path, num_workers=2).runs(), SweepConfig(), {"CPU": 2.0})
    four = workers_study(tmp_path, num_workers=4).runs()
    with pytest.raises(ConfigError, match=r"needs 4 CPU for its 4 workers, and this machine has 2; lower num-workers"):
        _check_room(four, SweepConfig(device_share=0.1), {"CPU": 2.0})
    on_gpus = workers_study(tmp_path, num_workers=4, accelerator="gpu").runs()
    with pytest.raises(ConfigError, match=r"needs 4 GPU for its 4 workers, and this machine has 1;"):
        _check_room(on_gpus, SweepConfig(), {"CPU": 8.0, "GPU": 1.0})


def test_a_run_whose_number_of_workers_may_change_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"k-1_seed-0 asks for cluster\.min-workers 1; leave it out\.$"):
        run_study(workers_study(tmp_path, num_workers=2, min_workers=1), SweepConfig())


@pytest.mark.parametrize(
    ("cores", "num_workers", "at_work", "fits"),
    [(4, 2, 1, True), (3, 2, 1, False), (2, 1, 1, True), (2, 1, 2, False), (2, 4, 0, True)],
)
def test_a_run_starts_once_there_is_room_for_all_its_workers(
    cores: int, num_workers: int, at_work: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cores)})
    runs = workers_study(tmp_path, num_workers=num_workers).runs()
    work = _Work(runs, Board(runs), SweepConfig(), None, False, Meter(tmp_path, "CPU"))
    work._running = dict(enumerate(runs[:at_work]))
    assert work._has_room(runs[-1]) == fits


def test_more_than_one_gpu_for_a_run_is_refused(tmp_path: Path):
    study = tiny_study("data", tmp_path)
    study = replace(study, base=replace(study.base, cluster=replace(study.base.cluster, accelerator="gpu")))
    with pytest.raises(ConfigError, match=r"device-share must be at most 1 for runs on GPUs, .* got 2; give"):
        run_study(study, SweepConfig(device_share=2.0))
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_is_refused_until_the_first_has_ended(tmp_path: Path):
    with _only_driver(tmp_path), pytest.raises(ConfigError, match="Another process runs the study in"):
        run_study(tiny_study("data", tmp_path), SweepConfig())
    with _only_driver(tmp_path):
        pass


@pytest.mark.ray
def test_a_study_s_own_ray_listens_on_loopback_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
    with _cluster(""):
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        assert any("raylet" in process.name() for process in processes)
        assert addresses_listened_on(processes) == {"127.0.0.1"}
