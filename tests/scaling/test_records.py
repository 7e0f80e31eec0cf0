"""Records of a study's runs: which ones count as finished, and on which commit they were started."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flamscale.config import ClusterConfig, DataConfig, to_json
from flamscale.data.manifest import Manifest
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS
from flamscale.scaling.records import RunRecord, Timing, current_commit
from flamscale.scaling.study import Run, Study


def only_run(data: str, out: Path) -> Run:
    base = replace(
        PRESETS["quickstart"](), out=str(out), data=DataConfig(url=(data,)), cluster=ClusterConfig(num_workers=1)
    )
    (run,) = Study(name="s", question="?", base=base, axes=()).runs()
    return run


def finish(run: Run, manifest_hash: str) -> None:
    """Leaves what a finished run leaves in its directory."""
    record = RunRecord(run)
    record.begin("abc")
    record.finish(Timing(process_started=0.0, began=1.0, ended=2.0))
    record.directory.config.write_text(to_json(run.config))
    record.directory.tokenizer.mkdir()
    (record.directory.tokenizer / "tokenizer.json").write_text(json.dumps({"manifest_hash": manifest_hash}))


def test_a_finished_run_of_a_study_that_moved_stays_finished(tiny_data: str, tmp_path: Path):
    finish(only_run(tiny_data, tmp_path / "here"), Manifest.load(tiny_data).hash)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert RunRecord(only_run(tiny_data, tmp_path / "there")).is_finished
    assert RunRecord(only_run(str(tmp_path / "gone"), tmp_path / "there")).is_finished


def test_a_stopped_run_is_no_finished_one_and_does_not_wait(tiny_data: str, tmp_path: Path):
    run = only_run(tiny_data, tmp_path)
    finish(run, Manifest.load(tiny_data).hash)
    (tmp_path / "runs" / run.name / "run.json").unlink()
    RunRecord(run).begin("abc")
    RunRecord(run).stop()
    assert RunRecord(run).state == "stopped"
    assert not RunRecord(run).is_finished


def test_a_finished_run_on_other_data_is_refused(tiny_data: str, tmp_path: Path):
    finish(only_run(tiny_data, tmp_path), "0" * 64)
    with pytest.raises(ConfigError, match=r"holds a run on another data set \(manifest 000000000000, that in"):
        _ = RunRecord(only_run(tiny_data, tmp_path)).is_finished


@pytest.mark.parametrize("git", [None, "#!/bin/sh\nexit 128\n"], ids=["missing", "refuses"])
def test_without_a_git_that_answers_the_commit_is_the_environments(
    git: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if git:
        (tmp_path / "git").write_text(git)
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_commit() == "unknown"
    monkeypatch.setenv("FLAMSCALE_COMMIT", "abc")
    assert current_commit() == "abc"
