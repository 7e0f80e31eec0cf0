"""A run's records on the Prometheus endpoint of a real Ray head, and the dashboard that draws them."""

import importlib.util
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flamscale_cluster.head import LocalHead
from prometheus_client.parser import text_string_to_metric_families

from flamscale.training.metrics import read_records
from tests.cluster.test_head import free_port
from tests.cluster.test_local import finish, flags, submit
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
DRAWN = {name for panel in PANELS for target in panel["targets"] for name in re.findall(r"ray_\w+", target["expr"])}


@pytest.fixture(scope="module")
def run(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict]:
    """Records of a run, and the samples that its head showed meanwhile: (name, stage, run) -> values."""
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("run") / "out")
    records = Path(config.out) / "metrics.jsonl"
    shown: dict[tuple[str, str, str], set[float]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # Ray's own is 10 s, and the run may be over sooner
        port = free_port()
        head = LocalHead(port, object_store_mib=100, num_cpus=2)
        with head:
            job = submit(port, *flags(config))
            while job.poll() is None:
                for sample in samples(head) if records.exists() else ():
                    key = (sample.name, sample.labels.get("stage", ""), sample.labels.get("run", ""))
                    shown.setdefault(key, set()).add(sample.value)
                time.sleep(1.0)
            output = finish(job)
            assert job.returncode == 0, output
    return read_records(records), shown


def samples(head: LocalHead) -> Iterator[Any]:
    """What Prometheus would read: the file that tells it where, then what is there."""
    for place in json.loads((head.folder / "prom_metrics_service_discovery.json").read_text()):
        for target in place["targets"]:
            assert target.startswith("127.0.0.1:")
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    yield from family.samples


@pytest.mark.ray
@pytest.mark.timeout(600)  # a whole run, which a busy machine takes minutes for
def test_every_number_of_a_record_is_shown_with_its_stage_and_run(run):
    records, shown = run
    for stage in ("tokenizer", "flam"):
        for kind, prefix in (("train", ""), ("validation", "validation_")):
            (last,) = [record for record in records if (record["stage"], record["kind"]) == (stage, kind)][-1:]
            numbers = {name: value for name, value in last.items() if isinstance(value, int | float)}
            assert {"step", "loss"} <= set(numbers)
            for name in numbers:
                assert [key for key in shown if key[:2] == (f"ray_flamscale_{prefix}{name}", stage)], name
    (tag,) = {run_tag for name, _, run_tag in shown if name.startswith("ray_flamscale_")}
    assert tag.endswith("/out")


@pytest.mark.ray
def test_what_is_shown_is_what_was_recorded(run):
    records, shown = run
    losses = {record["loss"] for record in records if (record["stage"], record["kind"]) == ("flam", "train")}
    (values,) = [values for key, values in shown.items() if key[:2] == ("ray_flamscale_loss", "flam")]
    assert values <= losses


@pytest.mark.ray
def test_the_dashboard_draws_only_what_is_shown(run):
    _, shown = run
    names = {name for name, _, _ in shown}
    ours = {name for name in DRAWN if name.startswith("ray_flamscale_")}
    assert len(ours) > 15
    assert ours <= names
    assert {name for name in DRAWN - ours if not re.search("gpu|gram", name)} <= names


def test_what_the_dashboard_draws_of_gpus_is_drawn_by_rays_own_too():
    file = importlib.util.find_spec("ray.dashboard.modules.metrics.dashboards.default_dashboard_panels").origin
    of_gpus = {name for name in DRAWN if re.search("gpu|gram", name)}
    assert of_gpus
    assert of_gpus <= set(re.findall(r"ray_\w+", Path(file).read_text()))


def test_the_dashboards_panels_have_each_their_place_and_number():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < 24 for x, _ in cells)
