"""Runs of a study in this process: a study that moved goes on, and its runs still know their tokenizer."""

import shutil
from pathlib import Path

import pytest
import torch

from flamscale.errors import ConfigError, LeaveError
from flamscale.run_directory import RunDirectory
from flamscale.scaling.axes import Seeds
from flamscale.scaling.execution import prepare, shared_config, train
from flamscale.scaling.study import Run, Study
from flamscale.training.metrics import read_records
from tests.tiny import NUM_STEPS, tiny_config


def only_run(data: str, out: Path) -> Run:
    (run,) = Study(name="s", question="?", base=tiny_config(data, out), axes=(Seeds(values=(0,)),)).runs()
    return run


@pytest.fixture(scope="module")
def interrupted(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder whose run was told to leave at step 5 of stage 2."""
    out = tmp_path_factory.mktemp("study") / "here"
    run = only_run(tiny_data, out)
    prepare(shared_config(tiny_config(tiny_data, out), run.config))
    directory = RunDirectory(Path(run.config.out))
    directory.create()
    directory.leave_notice.touch()
    with pytest.raises(LeaveError, match="stage flam saved step 5;"):
        train(run.config, entities=False)
    return out


def test_an_unfinished_run_of_a_study_that_moved_goes_on(tiny_data: str, interrupted: Path, tmp_path: Path, capsys):
    shutil.copytree(interrupted, tmp_path / "there")
    run = only_run(tiny_data, tmp_path / "there")
    train(run.config, entities=False)
    assert f"flam: going on from step 5 of {NUM_STEPS}" in capsys.readouterr().out
    records = read_records(RunDirectory(Path(run.config.out)).metrics)
    assert [item["step"] for item in records if item["kind"] == "train"] == list(range(1, NUM_STEPS + 1))


def test_a_moved_run_whose_tokenizer_was_exchanged_is_refused(tiny_data: str, interrupted: Path, tmp_path: Path):
    shutil.copytree(interrupted, tmp_path / "there")
    run = only_run(tiny_data, tmp_path / "there")
    shared = RunDirectory(Path(run.config.tokenizer_from))
    tokenizer = shared.read_tokenizer()
    with torch.no_grad():
        tokenizer.to_features.bias.add_(1.0)
    shared.save_tokenizer(tokenizer, shared.describe_tokenizer()["manifest_hash"])
    before = (Path(run.config.out) / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"holds a run with other settings: tokenizer_from is .*here/shared.* there"):
        train(run.config, entities=False)
    assert (Path(run.config.out) / "config.json").read_text() == before
