"""A study on a real Ray cluster: workers and driver killed, failing and hopeless runs ended, no run done twice."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from flamscale.config import ClusterConfig
from flamscale.scaling.records import RunRecord
from flamscale.scaling.study import Run
from flamscale.training.metrics import read_records
from tests.cluster.sweep_driver import groups_study, hopeless_study, rates_study, tiny_study
from tests.test_pretrain import losses
from tests.tiny import NUM_STEPS, run_tiny

ROOT = Path(__file__).parents[2]


def start(data: str, out: Path, *flags: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'cluster'}:{ROOT / 'kernels'}",
        "OMP_NUM_THREADS": "1",
        "FLAMSCALE_COMMIT": "abc",
    }
    command = [sys.executable, "tests/cluster/sweep_driver.py", "--data", data, "--out", str(out), *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def attempts(runs: list[Run]) -> list[int]:
    return [len(RunRecord(run).read()["attempts"]) for run in runs]


def trained(runs: list[Run]) -> list[Run]:
    """Runs that have recorded a step of stage 2."""
    return [run for run in runs if RunRecord(run).last]


def num_finished(runs: list[Run]) -> int:
    return sum(RunRecord(run).is_finished for run in runs)


def wait_until(condition, timeout_s: float = 240) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "timed out"
        time.sleep(0.1)


def kill_a_worker(driver: subprocess.Popen[str], title: str = "ray::train") -> None:
    """Kills one process that trains, by Ray's title for it, below a driver's Ray, if there is one."""
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if title in " ".join(process.cmdline()):
                process.kill()
                return


def kill_with_its_ray(driver: subprocess.Popen[str]) -> None:
    """Kills a driver, waits until what trained below it has ended by itself, and ends Ray's agents, which do not."""
    tree = psutil.Process(driver.pid).children(recursive=True)
    agents = [process for process in tree if is_at_work(process) and "Agent" in " ".join(process.cmdline())]
    driver.kill()
    driver.communicate()
    wait_until(lambda: not any(is_at_work(process) for process in tree if process not in agents), timeout_s=60)
    for agent in agents:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()


def is_at_work(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_survives_its_workers_and_its_own_death_and_repeats_no_finished_run(tiny_data: str, tmp_path: Path):
    runs = tiny_study(tiny_data, tmp_path).runs()
    first = start(tiny_data, tmp_path)
    wait_until(lambda: trained(runs))
    while max(attempts(runs)) < 2:  # the killed worker may have been at its end
        before = num_finished(runs)
        assert before < len(runs)
        kill_a_worker(first)
        wait_until(lambda before=before: max(attempts(runs)) >= 2 or num_finished(runs) > before)
    wait_until(lambda: num_finished(runs) >= 1)
    kill_with_its_ray(first)
    finished = {run.name: len(RunRecord(run).read()["attempts"]) for run in runs if RunRecord(run).is_finished}
    assert 1 <= len(finished) < len(runs)

    second = start(tiny_data, tmp_path)
    output, _ = second.communicate(timeout=400)
    assert second.returncode == 0, output
    assert f"{len(finished)} of 4 runs finished" in output
    assert "4 of 4 runs finished" in output
    for run in runs:
        record = RunRecord(run)
        assert record.is_finished
        if run.name in finished:
            assert len(record.read()["attempts"]) == finished[run.name]
        steps = [
            item["step"]
            for item in read_records(record.directory.metrics)
            if (item["stage"], item["kind"]) == ("flam", "train")
        ]
        assert steps == list(range(1, NUM_STEPS + 1))
        assert json.loads((record.directory.root / "entities.json").read_text())["num_entities"] == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_of_two_workers_go_on_when_one_is_killed_and_learn_what_they_learn_alone(tiny_data: str, tmp_path: Path):
    runs = groups_study(tiny_data, tmp_path).runs()
    driver = start(tiny_data, tmp_path, "--study", "groups")
    wait_until(lambda: trained(runs))
    kill_a_worker(driver, "ray::RayTrainWorker")
    output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output
    assert "2 of 2 runs finished" in output
    assert re.search(r"the study took .* of CPU time; runs held \d+% of it", output)
    assert attempts(runs) == [1, 1]
    for run in runs:
        alone = replace(run.config, out=str(tmp_path / "alone" / run.name), cluster=ClusterConfig(num_workers=1))
        run_tiny(alone)
        assert losses(Path(run.config.out))["flam"] == pytest.approx(losses(Path(alone.out))["flam"], rel=1e-4)
        assert json.loads((Path(run.config.out) / "entities.json").read_text())["num_entities"] == 2


@pytest.mark.ray
@pytest.mark.slow
def test_on_a_running_cluster_a_run_that_always_fails_is_retried_so_often_and_the_others_finish(
    tiny_data: str, tmp_path: Path
):
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    try:
        flags = ["--study", "rates", "--ray", cluster.address, "--max-retries", "1"]
        driver = start(tiny_data, tmp_path, *flags)
        output, _ = driver.communicate(timeout=280)
        logs = Path(cluster.head_node.get_session_dir_path()) / "logs"
        worked_there = [
            path for path in logs.glob("worker-*.out") if f"flam {NUM_STEPS}/{NUM_STEPS}" in path.read_text()
        ]
    finally:
        cluster.shutdown()
    failing, sound = rates_study(tiny_data, tmp_path).runs()
    assert driver.returncode == 1
    last = output.splitlines()[-1]
    assert last.startswith(f"error: 1 of 2 runs failed for good, {failing.name} with: Expected a finite loss")
    assert last.endswith("start the study again to try them once more.")
    assert "Traceback" not in output
    assert attempts([failing, sound]) == [2, 1]
    assert [RunRecord(run).state for run in (failing, sound)] == ["waiting", "finished"]
    assert len(worked_there) == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hopeless_run_is_stopped_and_stays_so_when_the_study_is_started_again(tiny_data: str, tmp_path: Path):
    runs = hopeless_study(tiny_data, tmp_path).runs()
    flags = ["--study", "hopeless", "--early-stop", "0.05"]
    for _ in range(2):
        driver = start(tiny_data, tmp_path, *flags)
        output, _ = driver.communicate(timeout=280)
        assert driver.returncode == 0, output
        assert [RunRecord(run).state for run in runs] == ["finished"] * 3 + ["stopped"]
        assert attempts(runs) == [1] * 4
    assert RunRecord(runs[-1]).last["step"] < runs[-1].config.flam_stage.num_steps
