"""Latents as a user makes and trains on them: same losses, same bytes after a kill, refused where they do not fit."""

import importlib.util
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flamscale.config import DataConfig, PretrainConfig
from flamscale.data.manifest import Manifest
from flamscale.errors import ConfigError, DataError
from flamscale.models.tokenizer import Tokenizer
from flamscale.preflight import check_inputs
from flamscale.run_directory import RunDirectory, find_tokenizer
from flamscale.training.metrics import read_records
from tests.tiny import make_data, run_tiny, tiny_config

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "tokenize_shards.py"
Recipe = Callable[..., None]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """The recipe's main, called with its flags."""
    spec = importlib.util.spec_from_file_location("tokenize_shards", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tokenize_shards"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *flags: module.main(list(map(str, flags)))


@pytest.fixture(scope="module")
def trained(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A finished run of four steps a stage; do not change its files."""
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("trained") / "out")
    stages = {name: replace(getattr(config, name), num_steps=4) for name in ("tokenizer_stage", "flam_stage")}
    run_tiny(replace(config, **stages))
    return replace(config, **stages)


@pytest.fixture(scope="module")
def latents(recipe: Recipe, trained: PretrainConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Latents by the tokenizer of `trained`; do not change their files."""
    out = str(tmp_path_factory.mktemp("latents"))
    recipe("--data", trained.data.url[0], "--tokenizer", trained.out, "--out", out)
    return out


def flam_losses(config: PretrainConfig) -> list[float]:
    records = [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["stage"] == "flam"]
    trained = [record["losses"] for record in records if record["kind"] == "train"]
    return [*np.concatenate(trained), *(record["loss"] for record in records if record["kind"] == "validation")]


def content_of(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_training_on_latents_has_the_losses_of_training_on_video_bit_for_bit(trained, latents, tmp_path, capsys):
    expected = flam_losses(trained), json.loads((Path(trained.out) / "result.json").read_text())["rollout"]
    assert len(expected[0]) == 4 + 1  # steps and a validation
    runs = {
        "frames": replace(trained.data, cache_mib=0),
        "latents": replace(trained.data, cache_mib=0, latents=(latents,)),
        "cached latents": replace(trained.data, latents=(latents,), num_processes=1),
    }
    for name, data in runs.items():
        config = replace(trained, data=data, out=str(tmp_path / name), tokenizer_from=trained.out)
        result = run_tiny(config)
        assert (flam_losses(config), result["rollout"]) == expected
        said = capsys.readouterr().out
        assert f"tokenizer: taken from {trained.out}, stage 1 is left out" in said
        assert (f"flam: reading latents from {latents}" in said) == ("latents" in name)


def test_a_run_may_change_between_video_and_latents(trained, latents, tmp_path):
    config = replace(trained, tokenizer_from=trained.out, out=str(tmp_path / "out"))
    check_inputs(config)
    run_tiny(config)
    check_inputs(replace(config, data=replace(config.data, latents=(latents,))))


def test_the_exported_model_and_the_run_directory_give_one_hash(trained):
    run, model = find_tokenizer(trained.out), find_tokenizer(f"{trained.out}/model")
    assert run.tokenizer.hash == model.tokenizer.hash
    assert run.manifest_hash == Manifest.load(trained.data.url[0]).hash
    assert model.manifest_hash is None
    with torch.no_grad():
        next(model.tokenizer.parameters()).view(-1)[0] += 1e-3
    assert run.tokenizer.hash != model.tokenizer.hash


def test_a_tokenizer_of_another_data_set_may_be_taken_and_that_is_recorded(trained, tmp_path):
    data = make_data(str(tmp_path / "data"), seed=1)
    config = replace(tiny_config(data, tmp_path / "out"), tokenizer_from=f"{trained.out}")
    config = replace(config, flam_stage=trained.flam_stage)
    run_tiny(config)
    description = RunDirectory(tmp_path / "out").describe_tokenizer()
    assert description["taken_from"] == trained.out
    assert description["trained_on"] == Manifest.load(trained.data.url[0]).hash
    assert description["manifest_hash"] == Manifest.load(data).hash
    run_tiny(config)  # resumed
    assert find_tokenizer(config.out).manifest_hash == description["trained_on"]  # told on when taken once more


def test_a_tokenizer_with_other_settings_is_refused_with_what_differs(trained, tmp_path):
    config = replace(trained, tokenizer_from=trained.out, out=str(tmp_path / "out"))
    config = replace(config, tokenizer=replace(config.tokenizer, feature_channels=32))
    with pytest.raises(ConfigError, match=r"tokenizer\.feature_channels is 16 there and 32 here; use its settings"):
        check_inputs(config)
    assert not (tmp_path / "out").exists()


def test_a_place_without_a_tokenizer_is_refused(trained, tmp_path):
    config = replace(trained, tokenizer_from=str(tmp_path / "nothing"), out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"^Expected a trained tokenizer in .*nothing, found none: pass a run"):
        check_inputs(config)


def test_latents_without_a_tokenizer_from_elsewhere_are_refused(trained, latents, tmp_path):
    config = replace(trained, out=str(tmp_path / "out"), data=replace(trained.data, latents=(latents,)))
    with pytest.raises(ConfigError, match=r"pass that one's run directory as --tokenizer-from"):
        check_inputs(config)


def test_latents_by_another_tokenizer_are_refused(trained, latents, tmp_path):
    shutil.copytree(trained.out, tmp_path / "other")
    directory = RunDirectory(tmp_path / "other")
    tokenizer = directory.read_tokenizer()
    with torch.no_grad():
        tokenizer.to_features.bias.add_(1.0)
    directory.save_tokenizer(tokenizer, Manifest.load(trained.data.url[0]).hash)
    config = replace(trained, tokenizer_from=str(tmp_path / "other"), out=str(tmp_path / "out"))
    config = replace(config, data=replace(config.data, latents=(latents,)))
    with pytest.raises(ConfigError, match=r"should be made by this run's tokenizer \(\w{12}\), and were made by anoth"):
        check_inputs(config)
    assert not (tmp_path / "out").exists()


def test_latents_of_another_data_set_are_refused(trained, latents, tmp_path):
    data = DataConfig(url=(make_data(str(tmp_path / "data"), seed=1),), latents=(latents,))
    config = replace(trained, tokenizer_from=trained.out, out=str(tmp_path / "out"), data=data)
    with pytest.raises(ConfigError, match=r"^The latents at .* should be those of .*data \(manifest \w{12}\), and"):
        check_inputs(config)


@pytest.mark.parametrize(("where", "found"), [("", "there is no finished set"), ("data", "found a data set of videos")])
def test_what_is_no_finished_set_of_latents_is_refused(trained, tmp_path, where, found):
    place = trained.data.url[0] if where else str(tmp_path)
    config = replace(trained, tokenizer_from=trained.out, out=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=found):
        check_inputs(replace(config, data=replace(config.data, latents=(place,))))


def test_one_place_of_latents_is_needed_for_each_data_set():
    with pytest.raises(ConfigError, match=r"data\.latents must name one folder for each of the 2 data sets"):
        DataConfig(url=("a", "b"), latents=("c",))


def test_the_same_command_again_says_so_and_other_latents_stay(recipe, trained, latents, tmp_path, capsys):
    before = content_of(latents)
    recipe("--data", trained.data.url[0], "--tokenizer", f"{trained.out}/model", "--out", latents)
    assert "already holds these latents; nothing to do" in capsys.readouterr().out
    shutil.copytree(trained.out, tmp_path / "other")
    other = Tokenizer(trained.tokenizer)
    RunDirectory(tmp_path / "other").save_tokenizer(other, Manifest.load(trained.data.url[0]).hash)
    with pytest.raises(ConfigError, match="already holds a data set made from other arguments"):
        recipe("--data", trained.data.url[0], "--tokenizer", tmp_path / "other", "--out", latents)
    assert content_of(latents) == before


def test_frames_of_another_size_are_refused_and_a_missing_shard_is_named(recipe, trained, tmp_path):
    (tmp_path / "run").mkdir()
    RunDirectory(tmp_path / "run").save_tokenizer(Tokenizer(replace(trained.tokenizer, image_size=16)), "0" * 64)
    command = [sys.executable, RECIPE, "--data", trained.data.url[0], "--tokenizer", tmp_path / "run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("are 32 x 32; make shards with --size 16.\n")
    shutil.copytree(trained.data.url[0], tmp_path / "copy")
    (tmp_path / "copy" / "test" / "000000.tar").unlink()
    with pytest.raises(DataError, match=r"^The shard .*/copy/test/000000.tar is missing: copy it there"):
        recipe("--data", tmp_path / "copy", "--tokenizer", trained.out, "--out", tmp_path / "out")


def test_help_answers_within_three_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, RECIPE, "--help"], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0
    for flag in ("--data", "--tokenizer", "--out", "--device", "--batch-frames", "--decode-threads"):
        assert flag in done.stdout
