"""Which cluster is joined, and what becomes of the failures of its workers."""

import re
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray.train
from flamscale_cluster import draining, launch
from flamscale_cluster.leaving import LeaveNotice
from flamscale_cluster.process_group import ProcessGroupConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from flamscale.config import ClusterConfig, PretrainConfig
from flamscale.errors import ClusterError, ConfigError, DataError, LeaveError
from tests.cluster.test_head import answering, free_port

CONFIG = PretrainConfig(cluster=ClusterConfig(num_workers=1, max_failures=2))


class WrappedError(Exception):
    """As Ray Train hands over what a worker raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback ...")
        self._base_exc = cause


def group_error(cause: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("Traceback ...", {0: WrappedError(cause)})


def attempts(monkeypatch: pytest.MonkeyPatch, *outcomes: object) -> list[object]:
    """Makes each worker group end with the next outcome; returns those that are left."""
    left = list(outcomes)

    def fit() -> SimpleNamespace:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(return_value=outcome)

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr(draining, "placement_group_table", dict)
    monkeypatch.setattr(launch, "_trainer", lambda config, world_size, command: SimpleNamespace(fit=fit))
    return left


def test_outside_a_ray_job_a_cluster_must_be_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"no Ray job and no cluster is named; submit the recipe with"):
        launch.find_cluster("auto")


def test_a_job_joins_its_own_cluster(monkeypatch):
    with answering(b"") as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert launch.find_cluster("auto") == f"127.0.0.1:{port}"


@pytest.mark.parametrize("address", [f"127.0.0.1:{free_port()}", "nowhere"])
def test_a_cluster_that_does_not_answer_is_told_at_once(address):
    with pytest.raises(ClusterError, match=rf"^No Ray cluster answers at {re.escape(address)} \(.*\); check"):
        launch.find_cluster(address)


def test_a_failed_worker_is_answered_by_another_group(monkeypatch, capsys, tmp_path):
    attempts(monkeypatch, group_error(RuntimeError("Connection closed")), ("result", ["lines"]))
    assert launch._fit(CONFIG, LeaveNotice(tmp_path / "leave")) == ("result", ["lines"])
    assert "worker 0 failed (RuntimeError: Connection closed)" in capsys.readouterr().out


@pytest.mark.parametrize("cause", [LeaveError("Told to leave"), RuntimeError("Connection closed")])
def test_a_group_whose_node_is_to_be_taken_away_is_answered_by_another_and_counts_for_no_failure(
    monkeypatch, capsys, tmp_path, cause
):
    config = replace(CONFIG, cluster=replace(CONFIG.cluster, max_failures=0))
    groups = {"before": {"state": "CREATED", "bundles": {0: {}}, "bundles_to_node_id": {0: "drained"}}}
    notice = tmp_path / "leave"
    left = ["group", "group"]

    def fit() -> SimpleNamespace:
        left.pop()
        groups["ours"] = {"state": "CREATED", "bundles": {0: {}}, "bundles_to_node_id": {0: "ours"}}
        if not left:
            return SimpleNamespace(return_value="result")
        deadline_s = time.monotonic() + 20
        while not notice.exists():  # as the workers do
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        groups["ours"]["state"] = "REMOVED"
        raise group_error(cause)

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})
    monkeypatch.setattr(draining, "_POLL_S", 0.01)
    monkeypatch.setattr(
        draining, "placement_group_table", lambda: {name: dict(one) for name, one in list(groups.items())}
    )
    monkeypatch.setattr(draining, "draining_nodes", lambda: {"ours"} if len(left) == 1 else {"drained"})
    monkeypatch.setattr(launch, "_trainer", lambda config, world_size, command: SimpleNamespace(fit=fit))
    assert launch._fit(config, LeaveNotice(notice)) == "result"
    assert "a node is to be taken away: saving a checkpoint" in capsys.readouterr().out
    assert not notice.exists()


def test_failures_are_counted_and_the_last_one_is_shown(monkeypatch, capsys, tmp_path):
    left = attempts(monkeypatch, *(group_error(RuntimeError("again")) for _ in range(4)))
    with pytest.raises(ClusterError, match="The workers failed 3 times"):
        launch._fit(CONFIG, LeaveNotice(tmp_path / "leave"))
    assert len(left) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_that_would_only_happen_again_ends_the_run_in_its_own_words(monkeypatch, tmp_path):
    left = attempts(monkeypatch, group_error(DataError("The shards are gone.")), "never")
    with pytest.raises(DataError, match=r"^The shards are gone\.$"):
        launch._fit(CONFIG, LeaveNotice(tmp_path / "leave"))
    assert left == ["never"]


def test_a_worker_that_ray_killed_for_its_nodes_memory_ends_the_run_with_what_would_fit(monkeypatch, tmp_path):
    config = replace(CONFIG, out=str(tmp_path))
    killed = ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
    failure = WorkerHealthCheckFailedError("A worker health check failed.", failure=killed)
    left = attempts(monkeypatch, ray.train.WorkerGroupError("Traceback ...", {0: failure}), "never")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "memory": 2.0**30}}])
    with pytest.raises(ConfigError, match=r"in stage tokenizer, .* with 1\.00 GiB .*micro-batch 16, the largest"):
        launch._fit(config, LeaveNotice(tmp_path / "leave"))
    assert left == ["never"]


def test_workers_without_a_place_are_told_what_is_missing(monkeypatch, tmp_path):
    attempts(monkeypatch, ray.train.ControllerError(TimeoutError("no place in 60 s")))
    with pytest.raises(ClusterError, match=r"^1 workers could not start: they need \{'CPU': 1\}, the cluster has "):
        launch._fit(CONFIG, LeaveNotice(tmp_path / "leave"))


def test_workers_beyond_loopback_form_their_group_as_ray_has_it():
    config = ProcessGroupConfig(backend="gloo")
    backend = config.backend_cls()
    backend._ray = Mock()
    workers = SimpleNamespace(execute=lambda function: ["127.0.0.1", "10.0.0.2"])
    backend.on_start(workers, config)
    backend._ray.on_start.assert_called_once_with(workers, config)
    backend.on_shutdown(workers, config)
    backend._ray.on_shutdown.assert_called_once_with(workers, config)


def test_what_a_signal_told_stands_when_another_notice_is_withdrawn(tmp_path, capfd):
    path = tmp_path / "leave"
    path.touch()  # of a driver that was killed
    with LeaveNotice(path) as notice:
        assert not path.exists()
        notice.give()
        notice.withdraw()
        assert not path.exists()
        signal.raise_signal(signal.SIGTERM)
        assert "told to leave: saving a checkpoint" in capfd.readouterr().out
        notice.withdraw()
        assert notice.told
        assert path.exists()
    assert not path.exists()
