"""Nodes that do not see each other's files: a run whose checkpoints lie in the store alone goes on on any nodes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from flamscale_cluster.launch import launch
from ray.cluster_utils import Cluster

from flamscale.config import ClusterConfig, PretrainConfig
from flamscale.data import storage
from flamscale.errors import ConfigError
from flamscale.run_directory import RunDirectory
from flamscale.training.checkpoint import read_objective
from flamscale.training.mirror import Mirror
from tests.cluster.node_worker import node_config
from tests.test_pretrain import losses
from tests.tiny import CHECKPOINT_EVERY, NUM_STEPS

ROOT = Path(__file__).parents[2]
MICRO_BATCHES = 2  # of a step, in each of two processes


def run_group(command: Sequence[str], disks: Sequence[Path]) -> tuple[set[int], str]:
    """Runs a process on each of as many nodes as there are disks; returns their exit codes and all they printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cluster")),
        "WORLD_SIZE": str(len(disks)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment | {"RANK": str(rank), "NODE_DISK": str(disk)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, disk in enumerate(disks)
    ]
    try:
        printed = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {process.returncode for process in processes}, "\n".join(printed)


def train(data: str, url: str, disks: Sequence[Path], die_after: int = 0) -> str:
    """Trains in a process on each node, until they end or die; returns what they printed."""
    script = str(ROOT / "tests/cluster/node_worker.py")
    codes, printed = run_group([script, data, "$NODE_DISK/run", url, str(die_after)], disks)
    assert codes == ({17} if die_after else {0}), printed
    return printed


@pytest.mark.slow
@pytest.mark.timeout(900)  # two groups of workers, on a busy machine
def test_a_run_whose_nodes_share_no_disk_goes_on_from_the_store_on_other_nodes_bit_for_bit(
    tiny_data: str, tmp_path: Path, s3_url: str
) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    train(tiny_data, s3_url, [one, two], die_after=7 * MICRO_BATCHES + 1)  # in step 8
    before = losses(one / "run")
    assert len(before["flam"]) == 7
    shutil.rmtree(two)
    rest = f"{s3_url}/checkpoints/flam/step-000010/state-00001.safetensors"
    storage.write_bytes(rest, b"of a checkpoint that a lost node did not finish")

    printed = train(tiny_data, s3_url, [three, one])
    assert f"flam: going on from step {CHECKPOINT_EVERY} of {NUM_STEPS}" in printed
    after = losses(three / "run")
    assert len(after["flam"]) == NUM_STEPS
    assert after["flam"][:7] == before["flam"]  # two of them done again
    assert after["tokenizer"] == before["tokenizer"]

    assert not list(tmp_path.glob("*/run/checkpoints/*/*"))  # all parts are uploaded
    mirror = Mirror(tmp_path / "fetched", s3_url)
    files = mirror.files()
    assert {name for name in files if name.startswith("checkpoints/flam") and "meta.json" in name} == {
        f"checkpoints/flam/step-0000{step}/meta.json" for step in (10, 12)
    }
    for step in (10, 12):
        mirror.fetch(f"checkpoints/flam/step-0000{step}", files)
        read_objective(mirror.root / f"checkpoints/flam/step-0000{step}")  # checks every hash


@pytest.mark.ray
@pytest.mark.timeout(900)  # two groups of workers, on a busy machine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray, about itself
def test_under_ray_it_goes_on_when_the_node_of_rank_0_is_lost_with_its_disk(
    tiny_data: str, tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "cluster")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
    memory = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | memory)
    disks = [tmp_path / name for name in ("one", "two", "three")]
    nodes = {
        disk: cluster.add_node(
            num_cpus=1, node_ip_address=f"127.0.0.{number}", env_vars={"NODE_DISK": str(disk)}, **memory
        )
        for number, disk in enumerate(disks, start=2)
    }
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "driver"))
    config = node_config(tiny_data, "$NODE_DISK/run", s3_url)
    flam_stage = replace(config.flam_stage, num_steps=40, validate_every=0)
    config = replace(config, flam_stage=flam_stage, cluster=replace(config.cluster, address=cluster.address))
    before: list[float] = []

    def lose_node() -> None:
        while f"checkpoints/flam/step-{CHECKPOINT_EVERY:06d}/meta.json" not in storage.find(s3_url):
            time.sleep(0.5)
        (first,) = (disk for disk in disks if (disk / "run/metrics.jsonl").exists())
        cluster.remove_node(nodes[first], allow_graceful=False)
        before.extend(losses(first / "run")["flam"])
        shutil.rmtree(first)

    thread = threading.Thread(target=lose_node, daemon=True)
    thread.start()
    try:
        result = launch(config)
    finally:
        cluster.shutdown()
    assert before
    (first,) = (disk for disk in disks if (disk / "run/result.json").exists())
    after = losses(first / "run")["flam"]
    assert len(after) == 40
    assert after[: len(before)] == before
    assert json.loads(storage.read_bytes(f"{s3_url}/result.json"))["rollout"] == result["rollout"]


CHECK_SHARED = """
import os, sys, pathlib, torch.distributed as dist
from flamscale.errors import ConfigError
from flamscale.meeting import check_shared
dist.init_process_group("gloo")
try:
    check_shared(pathlib.Path(os.path.expandvars(sys.argv[1])))
except ConfigError as error:
    sys.exit(str(error))
finally:
    dist.destroy_process_group()
"""


def test_workers_that_do_not_see_each_others_files_are_refused_at_once(tmp_path: Path) -> None:
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk in disks:
        disk.mkdir()
    codes, printed = run_group(["-c", CHECK_SHARED, "$NODE_DISK"], disks)
    assert codes == {1}
    assert "found that workers 1 of 2 do not see what worker 0 writes there; put --out on storage" in printed
    assert run_group(["-c", CHECK_SHARED, str(tmp_path)], disks) == ({0}, "\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_disks_of_each_node_need_an_object_store() -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.local-out needs an object store .*; pass --copy-to"):
        PretrainConfig(cluster=ClusterConfig(num_workers=1, local_out=True))


def test_variables_in_the_run_directory_are_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(out="$NODE_DISK/run", cluster=ClusterConfig(num_workers=1))
    monkeypatch.setenv("NODE_DISK", "/scratch")
    assert RunDirectory.of(config).root == Path("/scratch/run")
    monkeypatch.delenv("NODE_DISK")
    with pytest.raises(ConfigError, match=r"^--out \$NODE_DISK/run names an environment variable that node .* lacks"):
        RunDirectory.of(config)
