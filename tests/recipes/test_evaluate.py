"""The recipe as a user runs it: a model folder and shards in, results out; one sentence for every mistake."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flamscale.config import FlamConfig, MonolithicConfig, TokenizerConfig, WorldModelConfig
from flamscale.data.encode import LOSSLESS_CRF
from flamscale.data.episode import Episode
from flamscale.data.shards import ShardWriter
from flamscale.errors import CheckpointError, ConfigError, DataError
from flamscale.models.build import build_world_model
from flamscale.models.huggingface import FlamForWorldModeling
from flamscale.models.tokenizer import Tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "evaluate.py"


@pytest.fixture(scope="module")
def evaluate() -> Callable[..., None]:
    """The recipe's main, called with the flags it gets."""
    spec = importlib.util.spec_from_file_location("evaluate", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *flags: module.main([str(flag) for flag in flags])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of 16 x 16 pixels, two episodes of 6 frames a split."""
    folder, noise = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    with ShardWriter(
        str(folder), name="noise", source="test", arguments={}, crf=LOSSLESS_CRF, shard_bytes=100_000
    ) as writer:
        for split in ("train", "validation", "test"):
            for index in range(2):
                frames = noise.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
                writer.write(Episode(key=f"{split}{index}", split=split, frames=frames, fps=10.0))
    return folder


def _save_model(folder: Path, image_size: int, dynamics: WorldModelConfig | None = None) -> Path:
    tokenizer = TokenizerConfig(
        image_size=image_size, downsample=4, base_channels=4, max_channels=8, num_residual_blocks=1, feature_channels=8
    )
    dynamics = dynamics or FlamConfig(
        num_slots=2, width=16, action_width=4, num_heads=2, num_blocks=1, history_frames=3, slot_iterations=1
    )
    torch.manual_seed(0)
    FlamForWorldModeling.from_modules(Tokenizer(tokenizer), build_world_model(dynamics, tokenizer)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_model(tmp_path_factory.mktemp("model"), image_size=16)


def test_it_writes_numbers_report_and_pictures(
    evaluate: Callable[..., None], model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("--model", model, "--data", shards, "--out", tmp_path / "out", "--rollout-steps", 3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "result.json",
        "report.md",
        "rollout.gif",
        "rollout.png",
    }
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rollout"]["num_clips"] == 2
    assert len(result["rollout"]["psnr_by_step"]) == 3
    assert result["timings"]["evaluation_s"] > 0
    printed = capsys.readouterr().out
    assert f"PSNR {result['rollout']['psnr']:.2f} dB" in printed
    assert str(tmp_path / "out" / "report.md") in printed


def test_factors_are_measured_where_there_are_labels(
    evaluate: Callable[..., None], tiny_data: str, tmp_path: Path
) -> None:
    model = _save_model(tmp_path / "model", image_size=32)
    evaluate("--model", model, "--data", tiny_data, "--out", tmp_path / "out", "--rollout-steps", 3, "--factors")
    entities = json.loads((tmp_path / "out" / "result.json").read_text())["entities"]
    assert entities["num_entities"] == 2
    for form in ("dci_flam", "dci_eastwood_williams"):
        assert all(0 <= entities[form][name] <= 1 for name in ("disentanglement", "completeness", "informativeness"))
    assert 0 <= entities["mean_iou"] <= 1
    assert 0 <= entities["entity_swap_rate"] <= 1
    assert entities["action_entropy"] == pytest.approx(math.log(3), abs=0.2)
    assert "## Entities" in (tmp_path / "out" / "report.md").read_text()


def test_data_without_labels_are_refused_for_factors_before_anything_is_written(
    evaluate: Callable[..., None], model: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"true actions and positions \(npz\) .*, found none: .* leave out --factors"):
        evaluate("--model", model, "--data", shards, "--out", tmp_path / "out", "--rollout-steps", 3, "--factors")
    assert not (tmp_path / "out").exists()


def test_a_model_without_slots_is_evaluated_and_refused_for_factors(
    evaluate: Callable[..., None], shards: Path, tmp_path: Path
) -> None:
    genie = MonolithicConfig(width=16, action_width=4, num_heads=2, num_blocks=1, history_frames=3, action="quantized")
    flags = ["--model", _save_model(tmp_path / "model", 16, genie), "--data", shards, "--rollout-steps", 3]
    evaluate(*flags, "--out", tmp_path / "out")
    factors = json.loads((tmp_path / "out" / "result.json").read_text())["factors"]
    assert 0 < factors["action_codes_used"] <= 1 <= factors["action_perplexity"]
    with pytest.raises(ConfigError, match=r"--factors needs a model with slots, got a monolithic one in .*; choose"):
        evaluate(*flags, "--out", tmp_path / "none", "--factors")


def test_a_model_of_true_actions_is_evaluated_on_data_that_tell_them(
    evaluate: Callable[..., None], tiny_data: str, shards: Path, tmp_path: Path
) -> None:
    sizes = {"width": 16, "action_width": 4, "num_heads": 2, "num_blocks": 1, "history_frames": 3}
    given = MonolithicConfig(**sizes, action="true", num_agents=2, num_agent_actions=3)
    flags = ["--model", _save_model(tmp_path / "model", 32, given), "--rollout-steps", 3]
    evaluate(*flags, "--data", tiny_data, "--out", tmp_path / "out")
    rollout = json.loads((tmp_path / "out" / "result.json").read_text())["rollout"]
    assert rollout["true_actions"]
    assert rollout["shuffled_actions_drop_db"] != 0
    assert "| **model, given the true actions** |" in (tmp_path / "out" / "report.md").read_text()
    with pytest.raises(ConfigError, match=r"^frame-stride must be 1 for a model of true actions, .* got 2"):
        evaluate(*flags, "--data", tiny_data, "--out", tmp_path / "none", "--frame-stride", 2)
    flags[1] = _save_model(tmp_path / "small", 16, given)
    with pytest.raises(DataError, match=r"Expected true actions .*, found none: .* choose another --model"):
        evaluate(*flags, "--data", shards, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_frames_of_another_size_are_refused(evaluate: Callable[..., None], shards: Path, tmp_path: Path) -> None:
    model = _save_model(tmp_path / "model", image_size=32)
    with pytest.raises(ConfigError, match=r"needs frames of 32 x 32 pixels.*are 16 x 16; make shards with --size 32"):
        evaluate("--model", model, "--data", shards, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_model_or_data_set_is_told_in_one_sentence(
    evaluate: Callable[..., None], model: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="pass the model/ folder"):
        evaluate("--model", tmp_path / "none", "--data", shards, "--out", tmp_path / "out")
    with pytest.raises(DataError, match="none"):
        evaluate("--model", model, "--data", tmp_path / "none", "--out", tmp_path / "out")
