"""A run's copy on a real S3 server: what is in it is whole, and enough to go on from."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import s3fs

from flamscale.data import storage
from flamscale.errors import DataError
from flamscale.training import mirror as mirrors
from flamscale.training.checkpoint import read_meta, read_objective
from flamscale.training.metrics import read_records
from flamscale.training.mirror import Mirror
from flamscale.training.retention import Retention
from tests.data.faulty_proxy import FaultyProxy
from tests.training.dying_toy import CONFIG, PLACES
from tests.training.toy import run_toy, toy_config

ROOT = Path(__file__).parents[2]


def _committed(url: str) -> list[str]:
    return sorted(name for name in storage.find(url) if name.endswith("meta.json"))


def _train(folder: Path, url: str, **changes: float) -> list[str]:
    """Trains the toy with a copy, and returns what could not be copied."""
    mirror = Mirror(folder, url, [folder / "metrics.jsonl"])
    run_toy(folder, toy_config(**changes), mirror=mirror)
    return mirror.close(60.0)


def _losses(folder: Path) -> list[float]:
    return [loss for record in read_records(folder / "metrics.jsonl") for loss in record.get("losses", [])]


def _bring_back(folder: Path, url: str) -> Path:
    """Fetches the newest checkpoint and the records into an empty folder; returns the checkpoint."""
    mirror = Mirror(folder, url)
    files = mirror.files()
    step = mirror.newest_checkpoint("checkpoints", files)
    mirror.fetch("metrics.jsonl", files)
    mirror.fetch(f"checkpoints/step-{step:06d}", files)
    return folder / f"checkpoints/step-{step:06d}"


def test_the_newest_and_every_mth_checkpoint_are_kept_here_and_there(tmp_path: Path, s3_url: str) -> None:
    left = _train(tmp_path, s3_url, checkpoint_every=3, keep_checkpoints=2, keep_every=12)
    assert left == []
    kept = [f"step-{step:06d}" for step in (12, 24, 27, 30)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    assert _committed(s3_url) == [f"checkpoints/{name}/meta.json" for name in kept]


def test_a_run_goes_on_from_its_copy_alone_bit_for_bit(tmp_path: Path, s3_url: str) -> None:
    _train(tmp_path / "whole", s3_url + "/whole")
    _train(tmp_path / "begun", s3_url + "/run", num_steps=12)
    shutil.rmtree(tmp_path / "begun")
    _bring_back(tmp_path / "elsewhere", s3_url + "/run")
    _train(tmp_path / "elsewhere", s3_url + "/run")
    assert _losses(tmp_path / "elsewhere") == _losses(tmp_path / "whole")


def test_training_goes_on_while_the_store_is_away_and_the_copy_catches_up(
    tmp_path: Path, s3_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "RETRY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(mirrors, "_PAUSE_S", 0.1)
    proxy.mode = "dead"
    mirror = Mirror(tmp_path, s3_url)
    run_toy(tmp_path, toy_config(keep_checkpoints=2), mirror=mirror)
    assert len(_losses(tmp_path)) == 30
    timer = threading.Timer(1.0, setattr, (proxy, "mode", "fine"))
    timer.start()
    assert mirror.close(60.0) == []
    assert "The run goes on; copying step-0000" in caplog.text
    assert _committed(s3_url)[-1] == "checkpoints/step-000030/meta.json"


def test_what_a_store_that_stays_away_has_not_got_is_named(
    tmp_path: Path, s3_url: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    proxy.mode = "dead"
    mirror = Mirror(tmp_path, s3_url)
    run_toy(tmp_path, toy_config(keep_checkpoints=1), mirror=mirror)
    assert "checkpoints/step-000030" in mirror.close(0.5)


def test_a_checkpoint_that_is_being_copied_is_not_deleted_under_the_copy(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, may_go_on = storage.upload, threading.Event()

    def wait_then_upload(file: str, url: str, cancel: threading.Event) -> None:
        may_go_on.wait(30)
        upload(file, url, cancel)

    monkeypatch.setattr(storage, "upload", wait_then_upload)
    mirror = Mirror(tmp_path, s3_url)
    run_toy(tmp_path, toy_config(keep_checkpoints=1), mirror=mirror)
    here = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    may_go_on.set()
    assert mirror.close(60.0) == []
    assert here == ["step-000000", "step-000030"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000030"]
    assert _committed(s3_url) == ["checkpoints/step-000030/meta.json"]


@pytest.mark.parametrize(("place", "count"), [(place, count) for place in PLACES for count in (1, 2, 5)])
def test_a_kill_at_any_moment_leaves_whole_checkpoints_here_and_there(
    place: str, count: int, tmp_path: Path, s3_url: str
) -> None:
    command = [sys.executable, "-m", "tests.training.dying_toy", str(tmp_path / "run"), s3_url, place, str(count)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    for name in _committed(s3_url):
        step = name.split("/")[1]
        mirror = Mirror(tmp_path / "there", s3_url)
        mirror.fetch(f"checkpoints/{step}", mirror.files())
        read_objective(tmp_path / "there/checkpoints" / step)  # checks every hash
    run_toy(tmp_path / "run", CONFIG)
    run_toy(tmp_path / "undisturbed", CONFIG)
    assert _losses(tmp_path / "run") == _losses(tmp_path / "undisturbed")


def test_a_copy_made_again_leaves_no_rest_of_a_killed_one(tmp_path: Path, s3_url: str) -> None:
    storage.write_bytes(f"{s3_url}/checkpoints/step-000004/state-00000.safetensors", b"half")
    _train(tmp_path, s3_url)
    assert not any(name.startswith("checkpoints/step-000004") for name in storage.find(s3_url))


def test_another_checkpoint_of_the_same_step_takes_the_place_of_the_first(tmp_path: Path, s3_url: str) -> None:
    _train(tmp_path, s3_url, num_steps=6)
    _train(tmp_path / "other", s3_url, num_steps=6, learning_rate=0.1)
    fetched = _bring_back(tmp_path / "there", s3_url)
    assert read_meta(fetched) == read_meta(tmp_path / "other/checkpoints/step-000006")
    read_objective(fetched)


def test_names_that_lead_out_of_the_run_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^memory://run holds checkpoints/\.\./\.\./x, which would lead out of"):
        Mirror(tmp_path, "memory://run").fetch("checkpoints", {"checkpoints/../../x"})


@pytest.mark.parametrize(
    ("retention", "dropped"),
    [
        (Retention(newest=2), {4, 8, 12}),
        (Retention(newest=1, every=8), {4, 12}),
        (Retention(newest=9), set()),
    ],
)
def test_retention_keeps_the_newest_and_multiples(retention: Retention, dropped: set[int]) -> None:
    assert retention.drops([4, 8, 12, 16, 20]) == dropped
