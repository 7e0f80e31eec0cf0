"""Ray's notice that a node will be taken away reaches the driver, for the nodes its workers are on."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from flamscale_cluster import draining
from ray.cluster_utils import Cluster
from ray.util import placement_group, placement_group_table

NODE = {"object_store_memory": 100 * 2**20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without cores and two nodes of one core each, that this process belongs to."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **NODE)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def drain(cluster: Cluster, node: str) -> None:
    """Announces, as an autoscaler does, that a machine goes in ten minutes."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={cluster.address}"]
    command += [f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    subprocess.run([*command, "--deadline-remaining-seconds=600"], check=True, capture_output=True)


def place_group() -> str:
    """Takes one core, as a group of one worker does; returns its node's id."""
    group = placement_group([{"CPU": 1.0}])
    assert group.wait(60)
    return placement_group_table(group)["bundles_to_node_id"][0]


@pytest.mark.ray
def test_a_notice_is_passed_on_if_it_is_for_a_node_of_the_group(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "_POLL_S", 0.2)
    told = threading.Event()
    other = place_group()
    with draining.DrainWatch(1, told.set) as watch:
        ours = place_group()
        drain(cluster, other)
        assert draining.draining_nodes() == {other}
        assert not told.wait(2.0)
        drain(cluster, ours)
        assert told.wait(60)
    assert watch.found
