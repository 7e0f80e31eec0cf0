"""The main job as `make pretrain` submits it, on a real Ray head: killed, submitted again, refused, interrupted."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from flamscale_cluster.arguments import parse_arguments
from flamscale_cluster.head import LocalHead
from flamscale_cluster.local import _absolute

from flamscale.config import PretrainConfig
from flamscale.data.manifest import Manifest
from tests.cluster.test_head import addresses_listened_on, free_port
from tests.test_pretrain import losses
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Port of a Ray head that all jobs of this file share."""
    port = free_port()
    with LocalHead(port, object_store_mib=100, num_cpus=2):
        yield port


def flags(config: PretrainConfig) -> list[str]:
    """The recipe's flags for this config."""
    found = []
    for section, values in json.loads(json.dumps(config, default=vars)).items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            flag = f"--{section}.{name}".rstrip(".").replace("_", "-")
            if isinstance(value, bool):
                found += [flag if value else flag.replace(".", ".no-")]
            elif isinstance(value, list):
                found += [flag, *map(str, value)]
            else:
                found += [f"{flag}={value}"]
    return found


def submit(port: int, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flamscale_cluster.local", f"--dashboard-port={port}", "--", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'cluster'}:{ROOT / 'kernels'}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(job: subprocess.Popen[str]) -> str:
    output, _ = job.communicate(timeout=240)
    return output


def job_processes(*names: str) -> list[psutil.Process]:
    """Processes below this one, Ray's head among them, with one of the names in their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if "flamscale_cluster.local" not in command and any(name in command for name in names):
                found.append(process)
    return found


def wait_for(step: int, out: Path) -> None:
    """Returns as soon as stage 2 has recorded a step."""
    deadline_s = time.monotonic() + 200
    while not ((out / "metrics.jsonl").exists() and len(losses(out)["flam"]) >= step):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def kill_at(step: int, out: Path, *names: str) -> None:
    """Kills processes by SIGKILL as soon as stage 2 has recorded a step."""
    wait_for(step, out)
    for process in job_processes(*names):
        process.kill()


@pytest.fixture(scope="module")
def whole(port: int, tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Settings of a run that nothing has disturbed."""
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("runs") / "whole", num_workers=2)
    stage = replace(config.flam_stage, num_steps=40, checkpoint_every=10, validate_every=0)
    whole = replace(config, flam_stage=stage)
    job = submit(port, *flags(whole))
    wait_for(1, Path(whole.out))
    assert len(job_processes("ray::RayTrainWorker")) == 2
    assert addresses_listened_on(psutil.Process().children(recursive=True)) == {"127.0.0.1"}
    output = finish(job)
    assert job.returncode == 0, output
    assert output.splitlines()[-1].startswith(f"run directory {whole.out}")
    return whole


@pytest.mark.ray
@pytest.mark.timeout(600)  # four worker groups, one after another
def test_a_job_goes_on_bit_for_bit_after_a_worker_and_then_all_of_it_is_killed(port, whole, tmp_path):
    broken = replace(whole, out=str(tmp_path / "broken"))
    job = submit(port, *flags(broken))
    kill_at(12, Path(broken.out), "ray::RayTrainWorker")
    kill_at(22, Path(broken.out), "pretrain_large.py", "ray::RayTrainWorker")
    output = finish(job)
    assert job.returncode != 0
    assert "flam: going on from step 10 of 40" in output

    job = submit(port, *flags(broken))
    output = finish(job)
    assert job.returncode == 0, output
    assert "flam: going on from step 20 of 40" in output
    assert losses(Path(broken.out)) == losses(Path(whole.out))
    results = [json.loads((Path(config.out) / "result.json").read_text()) for config in (whole, broken)]
    assert results[0]["rollout"] == results[1]["rollout"]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_worker_that_hangs_is_replaced_and_a_job_told_to_leave_saves_first(port, whole, tmp_path):
    disturbed = replace(whole, out=str(tmp_path / "out"), cluster=replace(whole.cluster, hang_timeout_s=15.0))
    out = Path(disturbed.out)
    job = submit(port, *flags(disturbed))
    wait_for(12, out)
    job_processes("ray::RayTrainWorker")[0].suspend()
    wait_for(22, out)
    next(process for process in job_processes("pretrain_large.py") if "python" in process.name()).terminate()
    output = finish(job)
    assert job.returncode == 1, output
    assert "flam: going on from step 10 of 40" in output
    assert re.search(r"^error: Told to leave, stage flam saved step \d+; submit the job again", output, re.MULTILINE)
    assert "No step was finished for 15 s." in next(out.glob("stacks/rank-*.txt")).read_text()

    job = submit(port, *flags(disturbed))
    output = finish(job)
    assert job.returncode == 0, output
    assert losses(out) == losses(Path(whole.out))


@pytest.mark.ray
def test_an_error_of_a_worker_reaches_the_terminal_as_one_sentence(port, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    for shard in Manifest.load(tiny_data).of_split("train"):
        (tmp_path / "data" / shard.path).write_bytes(bytes(shard.size_bytes))
    job = submit(port, *flags(tiny_config(str(tmp_path / "data"), tmp_path / "out", num_workers=2)))
    output = finish(job)
    assert job.returncode == 1, output
    assert output.splitlines()[-1].startswith("error: ")
    assert "samples of this split can be read" in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.ray
def test_ctrl_c_stops_the_job(port, tiny_data, tmp_path):
    job = submit(port, *flags(tiny_config(tiny_data, tmp_path / "out", num_workers=2)))
    assert job.stdout is not None
    assert any("starting 2 workers" in line for line in job.stdout)
    job.send_signal(signal.SIGINT)
    output = finish(job)
    assert job.returncode == 130, output
    assert "stopping the job" in output
    deadline_s = time.monotonic() + 30
    while job_processes("pretrain_large.py", "ray::RayTrainWorker", "ray::TrainController"):
        assert time.monotonic() < deadline_s
        time.sleep(0.2)


def test_wrong_flags_are_told_before_anything_starts():
    job = submit(free_port(), "--data=/x", "--flam.num-slots=0")
    assert finish(job) == "error: flam.num-slots (K) must be at least 1, got 0.\n"
    assert job.returncode == 2


def test_short_flags_stand_for_long_ones():
    chosen = parse_arguments(["--data", "/x", "--kernels=reference"], description="")
    assert (chosen.config.data.url, chosen.config.flam.kernels) == (("/x",), "reference")


def test_relative_places_of_several_data_sets_reach_the_job_as_whole_paths():
    flags = ["--data", "a", "/b", "--data.latents", "c", "s3://bucket/d", "--tokenizer-from", "e", "--out", "/out"]
    config = parse_arguments([*flags, *_absolute(parse_arguments(flags, description="").config)], description="").config
    here = Path.cwd()
    assert config.data.url == (f"{here}/a", "/b")
    assert config.data.latents == (f"{here}/c", "s3://bucket/d")
    assert config.tokenizer_from == f"{here}/e"


def test_a_dry_run_starts_nothing():
    job = submit(free_port(), "--dry-run")
    output = finish(job)
    assert job.returncode == 0
    assert "no data URL was given" in output
    assert "Ray head" not in output
