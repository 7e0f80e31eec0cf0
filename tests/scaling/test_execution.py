"""Runs of a study in this process: a study that moved goes on, and its best model is exported."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel

from flamscale.errors import ConfigError, LeaveError
from flamscale.run_directory import RunDirectory
from flamscale.scaling.axes import Factors
from flamscale.scaling.execution import prepare, shared_config, train
from flamscale.scaling.records import RunRecord
from flamscale.scaling.report import write_study_report
from flamscale.scaling.study import Study
from flamscale.training.metrics import read_records
from tests.tiny import NUM_STEPS, tiny_config


def study_of_one_run(data: str, out: Path) -> Study:
    return Study(name="s", question="Does it go on?", base=tiny_config(data, out), axes=(Factors(values=(2,)),))


@pytest.fixture(scope="module")
def interrupted(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder whose run was told to leave at step 5 of stage 2."""
    out = tmp_path_factory.mktemp("study") / "here"
    study = study_of_one_run(tiny_data, out)
    (run,) = study.runs()
    prepare(shared_config(study.base, run.config))
    directory = RunDirectory(Path(run.config.out))
    directory.create()
    directory.leave_notice.touch()
    with pytest.raises(LeaveError, match="stage flam saved step 5;"):
        train(run.config, entities=False)
    return out


@pytest.fixture(scope="module")
def finished(tiny_data: str, interrupted: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same study after it moved, and its run went on to its end."""
    out = tmp_path_factory.mktemp("study") / "there"
    shutil.copytree(interrupted, out)
    study = study_of_one_run(tiny_data, out)
    (run,) = study.runs()
    record = RunRecord(run)
    record.begin("abc")
    record.finish(train(run.config, entities=False))
    return study


def test_an_unfinished_run_of_a_study_that_moved_goes_on(interrupted: Path, finished: Study):
    (run,) = finished.runs()
    before, after = (
        [item for item in read_records(Path(folder) / "metrics.jsonl") if item["kind"] == "train"]
        for folder in (interrupted / "runs" / run.name, run.config.out)
    )
    assert [item["step"] for item in after] == list(range(1, NUM_STEPS + 1))
    assert len(before) == 5
    assert after[:5] == before  # times as well: these steps were not done again


def test_the_best_model_is_exported_with_the_study_on_its_card(finished: Study):
    write_study_report(finished, tflops_per_s=0.1, command="python study.py --out x")
    folder = Path(finished.base.out) / "frontier" / "k-2"
    assert AutoModel.from_pretrained(folder).flam.config.num_slots == 2
    card = ModelCard.load(folder / "README.md")
    facts = card.data.to_dict()
    assert (facts["license"], facts["library_name"]) == ("apache-2.0", "flamscale")
    assert "latent-actions" in card.data.tags
    for part in ("scaling study *s*: Does it go on?", "- No fit: A saturation curve", "| k | 2 |", "| commit | abc |",
                 "python study.py --out x", "held-out clips from"):  # fmt: skip
        assert part in card.text
    report = (Path(finished.base.out) / "report.md").read_text()
    assert "- [k-2](frontier/k-2/README.md)" in report


def test_a_moved_run_whose_tokenizer_was_exchanged_is_refused(tiny_data: str, interrupted: Path, tmp_path: Path):
    shutil.copytree(interrupted, tmp_path / "there")
    (run,) = study_of_one_run(tiny_data, tmp_path / "there").runs()
    shared = RunDirectory(Path(run.config.tokenizer_from))
    tokenizer = shared.read_tokenizer()
    with torch.no_grad():
        tokenizer.to_features.bias.add_(1.0)
    shared.save_tokenizer(tokenizer, shared.describe_tokenizer()["manifest_hash"])
    before = (Path(run.config.out) / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"holds a run with other settings: tokenizer_from is .*here/shared.* there"):
        train(run.config, entities=False)
    assert (Path(run.config.out) / "config.json").read_text() == before


def test_runs_may_share_a_tokenizer_that_was_trained_elsewhere(tiny_data: str, interrupted: Path, tmp_path: Path):
    (trained,) = study_of_one_run(tiny_data, interrupted).runs()
    study = study_of_one_run(tiny_data, tmp_path)
    study = replace(study, base=replace(study.base, tokenizer_from=trained.config.tokenizer_from))
    (run,) = study.runs()
    prepare(shared_config(study.base, run.config))
    shared = RunDirectory(Path(run.config.tokenizer_from)).describe_tokenizer()
    assert shared["taken_from"] == trained.config.tokenizer_from
    assert shared["sha256"] == RunDirectory(Path(trained.config.tokenizer_from)).describe_tokenizer()["sha256"]
