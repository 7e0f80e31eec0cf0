"""What goes beyond the paper, as whole runs: one tokenizer for several data sets, an adaptive number of slots."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from flamscale.baselines import MODELS
from flamscale.config import DataConfig, PretrainConfig
from flamscale.data.mixture import Mixture
from flamscale.data.sampling import eval_clips, median_frame
from flamscale.errors import ConfigError
from flamscale.eval.rollout import evaluate_rollouts
from flamscale.preflight import check_inputs
from flamscale.run_directory import RunDirectory
from flamscale.training.metrics import read_records
from tests.tiny import make_data, run_tiny, tiny_config


@pytest.fixture(scope="module")
def data_sets(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """MultiGrid of two agents, and of four."""
    return tiny_data, make_data(str(tmp_path_factory.mktemp("agents-4")), num_agents=4)


@pytest.fixture(scope="module")
def mixed(data_sets: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A finished run on both; do not change its files."""
    run = short(tiny_config(data_sets[0], tmp_path_factory.mktemp("mixed") / "out"))
    run = replace(run, data=DataConfig(url=data_sets))
    run_tiny(run)
    return run


def short(run: PretrainConfig) -> PretrainConfig:
    """The run with two steps a stage and nothing validated."""
    steps = {"num_steps": 2, "validate_every": 0}
    return replace(
        run, tokenizer_stage=replace(run.tokenizer_stage, **steps), flam_stage=replace(run.flam_stage, **steps)
    )


def test_a_tokenizer_of_several_data_sets_serves_a_model_of_each(
    data_sets: tuple[str, str], mixed: PretrainConfig, tmp_path: Path
) -> None:
    shared = AutoModel.from_pretrained(Path(mixed.out) / "model")
    medians = []
    for number, url in enumerate(data_sets):
        run = replace(short(tiny_config(url, tmp_path / str(number))), tokenizer_from=mixed.out)
        result = run_tiny(run)
        assert AutoModel.from_pretrained(Path(run.out) / "model").tokenizer.hash == shared.tokenizer.hash
        medians.append(RunDirectory(Path(run.out)).load_median_frame())
        data = Mixture.load([url])
        assert torch.equal(medians[-1], median_frame(data))  # its own data's, not that of the mixture

        # The model of the mixture on this data set alone: the tokenizer's row beside it is the same.
        clips = eval_clips(data, "test", clip_frames=6, frame_stride=1, num_clips=4)
        of_mixture = evaluate_rollouts(shared.tokenizer, shared.flam, clips, medians[-1], mixed.evaluation).result
        assert of_mixture["tokenizer"] == pytest.approx(result["tokenizer"], abs=1e-4)
        assert of_mixture["rollout"]["median_frame_psnr"] == pytest.approx(result["rollout"]["median_frame_psnr"])


def test_data_sets_of_other_sizes_share_no_tokenizer(mixed: PretrainConfig, tmp_path: Path) -> None:
    run = replace(short(tiny_config(mixed.data.url[0], tmp_path / "out")), tokenizer_from=mixed.out)
    larger = replace(run, tokenizer=replace(run.tokenizer, image_size=64))
    with pytest.raises(ConfigError, match=r"are 32 x 32 pixels, tokenizer\.image-size is 64; pass"):
        check_inputs(larger)
    other = replace(run, tokenizer=replace(run.tokenizer, feature_channels=8))
    with pytest.raises(ConfigError, match=r"has other settings than this run: tokenizer\.feature_channels is 16 there"):
        check_inputs(other)
    assert not (tmp_path / "out").exists()


def test_a_run_with_adaptive_slots_tells_how_many_its_clips_keep(mixed: PretrainConfig, tmp_path: Path) -> None:
    run = replace(short(tiny_config(mixed.data.url[0], tmp_path / "out")), tokenizer_from=mixed.out)
    run = replace(run, flam=replace(run.flam, adaptive_slots=True), flam_stage=replace(run.flam_stage, slot_cost=1e-3))
    factors = run_tiny(run)["factors"]
    assert factors["slots_kept"] == 2.0  # as at the start
    assert factors["slots_kept_clips"] == [0, 0, 4]
    records = [record for record in read_records(tmp_path / "out" / "metrics.jsonl") if record["stage"] == "flam"]
    assert all(0 < record["slots_kept"] <= 2 for record in records)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "A clip keeps 2.00 of 2 slots on average: 2 in 4 clip(s)." in report
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    assert model.flam.config == run.flam
    assert "adaptive_slots True" in (tmp_path / "out" / "model" / "README.md").read_text()
    assert model.rollout(torch.zeros(1, 6, 32, 32, 3, dtype=torch.uint8), steps=4).frames.shape == (1, 4, 32, 32, 3)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "flam"])
def test_baselines_have_no_adaptive_slots(name: str, tmp_path: Path) -> None:
    run = tiny_config("anywhere", tmp_path)
    adaptive = replace(
        run, flam=replace(run.flam, adaptive_slots=True), flam_stage=replace(run.flam_stage, slot_cost=1e-3)
    )
    assert MODELS[name](adaptive) == MODELS[name](run)
