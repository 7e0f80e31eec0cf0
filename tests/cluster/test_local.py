"""The main job as `make pretrain` submits it, on a real Ray head: killed, submitted again, refused, stopped."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from flamscale_cluster.head import LocalHead

from flamscale.config import PretrainConfig
from tests.cluster.test_head import free_port
from tests.test_pretrain import losses
from tests.tiny import CHECKPOINT_EVERY, NUM_STEPS, tiny_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Head:
    """A head that all jobs of this file share: starting one takes longer than a job."""

    port: int


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port = free_port()
    with LocalHead(port, object_store_mib=100, num_cpus=2):
        yield Head(port)


def flags(config: PretrainConfig) -> list[str]:
    """The recipe's flags that make the quickstart preset this config."""
    found = []
    for section, value in vars(config).items():
        for name, setting in vars(value).items() if hasattr(value, "__dict__") else [("", value)]:
            flag = f"--{section}.{name}".rstrip(".").replace("_", "-")
            if isinstance(setting, bool):
                found += [
                    flag if setting else flag.replace(f".{name}".replace("_", "-"), f".no-{name}".replace("_", "-"))
                ]
            elif isinstance(setting, tuple):
                found += [flag, *map(str, setting)]
            else:
                found += [f"{flag}={setting}"]
    return found


def submit(head: Head, config: PretrainConfig) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "flamscale_cluster.local",
        "--dashboard-port",
        str(head.port),
        "--",
        *flags(config),
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'cluster'}:{ROOT / 'kernels'}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(job: subprocess.Popen[str]) -> str:
    output, _ = job.communicate(timeout=240)
    return output


def test_a_job_killed_between_checkpoints_goes_on_bit_for_bit(head, tiny_data, tmp_path):
    whole = tiny_config(tiny_data, tmp_path / "whole", num_workers=2)
    job = submit(head, whole)
    output = finish(job)
    assert job.returncode == 0, output
    assert f"run directory {whole.out}" in output.splitlines()[-1]

    broken = tiny_config(tiny_data, tmp_path / "broken", num_workers=2)
    job = submit(head, broken)
    assert job.stdout is not None
    assert any(f"flam {CHECKPOINT_EVERY + 2}/{NUM_STEPS}" in line for line in job.stdout)
    for process in psutil.process_iter(["cmdline"]):
        command = shlex.join(process.info["cmdline"] or [])
        if "RayTrainWorker" in command or (
            "pretrain_large.py" in command and broken.out in command and process.pid != job.pid
        ):
            process.kill()
    finish(job)
    assert job.returncode != 0
    assert len(losses(Path(broken.out))["flam"]) < NUM_STEPS

    job = submit(head, broken)
    output = finish(job)
    assert job.returncode == 0, output
    assert f"flam: going on from step {CHECKPOINT_EVERY} of {NUM_STEPS}" in output
    assert losses(Path(broken.out)) == losses(Path(whole.out))
    results = [json.loads((Path(config.out) / "result.json").read_text()) for config in (whole, broken)]
    assert results[0]["rollout"] == results[1]["rollout"]
