"""Both stages, export and evaluation in one process; killed and gone on with; refused where something does not fit."""

import json
import math
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamscale.config import ClusterConfig, DataConfig, PretrainConfig, ProfileConfig, from_dict, to_json
from flamscale.data import storage
from flamscale.data.sampling import eval_clips
from flamscale.errors import CheckpointError, ConfigError, DataError, LeaveError
from flamscale.models.lpips import Lpips
from flamscale.models.tokenizer import Tokenizer
from flamscale.preflight import check_inputs
from flamscale.pretrain import pretrain_tokenizer, summary
from flamscale.run_directory import RunDirectory
from flamscale.training.engine import TorchEngine
from flamscale.training.flops import count_clip_flops
from flamscale.training.metrics import read_records
from flamscale.training.mirror import Mirror
from tests.tiny import CHECKPOINT_EVERY, NUM_STEPS, make_data, run_tiny, tiny_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainConfig, dict]:
    """A run that was never interrupted; do not change its files."""
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("run") / "out")
    return config, run_tiny(config)


@pytest.fixture(scope="module")
def short(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """A run of one step a stage, in a directory where a first try left a black median frame."""
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("short") / "out")
    RunDirectory(Path(config.out)).save_median_frame(torch.zeros(32, 32, 3, dtype=torch.uint8))
    tokenizer_stage = replace(config.tokenizer_stage, num_steps=1, validation_clips=9)
    config = replace(config, tokenizer_stage=tokenizer_stage, flam_stage=replace(config.flam_stage, num_steps=1))
    run_tiny(config)
    return config


def losses(out: Path) -> dict[str, list[float]]:
    """The loss of every step of each stage."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in read_records(out / "metrics.jsonl"):
        if record["kind"] == "train":
            found[record["stage"]] += record["losses"]
    return found


def saved_config(out: Path) -> PretrainConfig:
    return from_dict(PretrainConfig, json.loads((out / "config.json").read_text()))


def test_a_run_leaves_everything_in_its_directory(finished):
    config, result = finished
    out = Path(config.out)
    assert saved_config(out) == config
    assert json.loads((out / "result.json").read_text())["rollout"]["psnr"] == pytest.approx(result["rollout"]["psnr"])
    for name in ("report.md", "rollout.gif", "curves.png", "model/config.json", "model/model.safetensors"):
        assert (out / name).stat().st_size > 0
    assert list((out / "tensorboard").rglob("events.*"))
    weights = ("model/model.safetensors", "tokenizer/tokenizer.safetensors", "median_frame.safetensors")
    assert {(out / name).stat().st_mode for name in weights} == {(out / "config.json").stat().st_mode}
    assert (out / "checkpoints" / "flam" / f"step-{NUM_STEPS:06d}" / "meta.json").exists()
    assert {stage: len(values) for stage, values in losses(out).items()} == {"tokenizer": NUM_STEPS, "flam": NUM_STEPS}


def test_the_result_has_the_numbers_that_are_promised(finished):
    _, result = finished
    for name in ("psnr", "copy_last_psnr", "median_frame_psnr", "moving_psnr", "ssim"):
        assert math.isfinite(result["rollout"][name])
    assert math.isfinite(result["tokenizer"]["psnr"])
    assert set(result["timings"]) == {"tokenizer_stage_s", "flam_stage_s", "export_s", "evaluation_s"}


def test_validation_is_recorded_beside_training(finished):
    config, _ = finished
    records = [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["kind"] == "validation"]
    assert [(record["stage"], record["step"]) for record in records] == [
        ("tokenizer", 6), ("tokenizer", 12), ("flam", 6), ("flam", 12),
    ]  # fmt: skip
    assert all(math.isfinite(record["loss"]) and record["num_clips"] == 8 for record in records)


def test_every_training_record_tells_the_rate_of_model_flops(finished):
    config, _ = finished
    records = [record for record in read_records(Path(config.out) / "metrics.jsonl") if record["kind"] == "train"]
    # The loader's cache keeps the codes: nothing is encoded clip by clip.
    flops = {stage: count_clip_flops(config, stage, encodes_video=False).total for stage in ("tokenizer", "flam")}
    for record in records:
        assert record["model_tflops_per_s"] == pytest.approx(flops[record["stage"]] * record["clips_per_s"] / 1e12)
        assert "mfu" not in record  # nobody knows this CPU's peak
        assert record["reader_restarts"] == 0


def test_the_exported_model_is_the_one_that_was_evaluated(finished, tiny_data):
    from transformers import AutoModel

    from flamscale.data.mixture import Mixture
    from flamscale.eval.rollout import evaluate_rollouts

    config, result = finished
    model = AutoModel.from_pretrained(Path(config.out) / "model")
    clips = eval_clips(Mixture.load([tiny_data]), "test", clip_frames=6, frame_stride=1, num_clips=4)
    median = RunDirectory(Path(config.out)).load_median_frame()
    again = evaluate_rollouts(model.tokenizer, model.flam, clips, median, config.evaluation).result
    assert again["rollout"]["psnr"] == pytest.approx(result["rollout"]["psnr"], abs=1e-4)


def test_the_last_lines_say_the_numbers_and_where_everything_is(finished):
    config, result = finished
    lines = summary(config, result)
    assert f"{result['rollout']['psnr']:.2f} dB" in lines[0]
    assert config.out in lines[-1]


@pytest.mark.slow
def test_a_run_killed_in_either_stage_goes_on_bit_for_bit(finished, tiny_data, tmp_path):
    config, _ = finished
    command = [sys.executable, ROOT / "tests" / "tiny.py", tiny_data, tmp_path / "out"]
    step = CHECKPOINT_EVERY + 2  # two steps behind a checkpoint, which are lost
    for stage in ("tokenizer", "flam"):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert any(line.startswith(f"{stage} {step}/") for line in process.stdout)
            process.kill()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert f"flam: going on from step {CHECKPOINT_EVERY} of {NUM_STEPS}" in done.stdout
    assert losses(tmp_path / "out") == losses(Path(config.out))
    again = json.loads((tmp_path / "out" / "result.json").read_text())
    assert again["rollout"] == json.loads((Path(config.out) / "result.json").read_text())["rollout"]


def test_a_tokenizer_with_a_flow_decoder_goes_on_bit_for_bit_and_validates_what_it_draws(tiny_data, tmp_path):
    device = torch.device("cpu")

    def train(out: Path) -> RunDirectory:
        config = tiny_config(tiny_data, out)
        config = replace(config, tokenizer=replace(config.tokenizer, decoder="flow", flow_steps=2))
        stage = config.tokenizer_stage
        pretrain_tokenizer(config, lambda part, _: TorchEngine(part, stage, device, config.seed), 0, 1, device)
        return RunDirectory(out)

    (tmp_path / "interrupted").mkdir()
    (tmp_path / "interrupted/leave").touch()
    with pytest.raises(LeaveError, match="saved step 5"):
        train(tmp_path / "interrupted")
    whole, interrupted = train(tmp_path / "whole"), train(tmp_path / "interrupted")
    assert losses(whole.root) == losses(interrupted.root)
    assert whole.read_tokenizer().hash == interrupted.read_tokenizer().hash
    validated = [record for record in read_records(whole.metrics) if record["kind"] == "validation"]
    assert all(math.isfinite(record["psnr"]) and math.isfinite(record["velocity_error"]) for record in validated)


def test_a_tokenizer_trained_before_there_were_flow_decoders_is_this_runs(finished, tmp_path):
    config, _ = finished
    directory = RunDirectory(tmp_path)
    shutil.copytree(Path(config.out) / "tokenizer", directory.tokenizer)
    description = directory.describe_tokenizer()
    del description["config"]["decoder"], description["config"]["flow_steps"]
    (directory.tokenizer / "tokenizer.json").write_text(json.dumps(description))
    assert directory.load_tokenizer(config.tokenizer, description["manifest_hash"]).config == config.tokenizer
    with pytest.raises(CheckpointError, match=r"tokenizer\.decoder is regression there and flow here"):
        directory.load_tokenizer(replace(config.tokenizer, decoder="flow"), description["manifest_hash"])


def test_a_finished_run_submitted_again_trains_no_step(finished):
    config, result = finished
    before = losses(Path(config.out))
    again = run_tiny(config)
    assert losses(Path(config.out)) == before
    assert again["rollout"] == result["rollout"]


def test_a_run_whose_directory_is_lost_goes_on_from_its_copy_in_the_store(finished, tmp_path, s3_url):
    config, result = finished
    copied = replace(config, out=str(tmp_path / "lost"), copy_to=s3_url)
    run_tiny(copied)
    files = storage.find(s3_url)
    assert {
        "config.json",
        "metrics.jsonl",
        "result.json",
        "model/model.safetensors",
        "tokenizer/tokenizer.json",
    } < files
    assert any(name.startswith("tensorboard/flam/") for name in files)
    shutil.rmtree(copied.out)

    again = replace(copied, out=str(tmp_path / "found"))
    assert run_tiny(again)["rollout"] == result["rollout"]
    assert losses(Path(again.out)) == losses(Path(config.out))
    assert not list(Path(again.out).glob("checkpoints/tokenizer/*"))  # finished, and so of no more use
    with pytest.raises(ConfigError, match=rf"^{s3_url} holds a run with other settings: seed is 0 there and 1 here"):
        check_inputs(replace(again, out=str(tmp_path / "other"), seed=1))


def test_a_copy_is_of_this_run_also_where_the_run_that_trained_its_tokenizer_has_moved(tiny_data, tmp_path):
    config = replace(tiny_config(tiny_data, tmp_path / "out"), copy_to=f"memory://{tmp_path.name}")
    config = replace(config, tokenizer_from=str(tmp_path / "first"))
    tokenizers = [Tokenizer(config.tokenizer), Tokenizer(config.tokenizer)]
    for name, tokenizer in zip(("first", "out", "other"), (*tokenizers[:1] * 2, tokenizers[1]), strict=True):
        (tmp_path / name).mkdir()
        RunDirectory(tmp_path / name).save_tokenizer(tokenizer, "0" * 64)
    directory = RunDirectory(tmp_path / "out")
    directory.config.write_text(to_json(config))
    mirror = Mirror(directory.root, config.copy_to)
    mirror.send(directory.config, directory.tokenizer)
    assert mirror.close(60.0) == []

    shutil.move(tmp_path / "first", tmp_path / "moved")
    again = replace(config, out=str(tmp_path / "again"), tokenizer_from=str(tmp_path / "moved"))
    found = RunDirectory.of(again)
    assert found.restore(again, Mirror(found.root, again.copy_to)) == ["config.json", "tokenizer"]
    with pytest.raises(ConfigError, match=r"settings: tokenizer_from is .*first there and .*other here; choose"):
        found.restore(replace(again, tokenizer_from=str(tmp_path / "other")), Mirror(found.root, again.copy_to))


def test_a_directory_of_another_model_is_refused_with_what_differs(finished):
    config, _ = finished
    other = replace(config, seed=1, flam=replace(config.flam, num_slots=3))
    with pytest.raises(ConfigError, match=r"flam\.num_slots is 2 there and 3 here; seed is 0 there and 1 here"):
        check_inputs(other)
    assert saved_config(Path(config.out)) == config


def test_a_directory_in_which_nothing_was_learned_yet_may_be_used_with_other_settings(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "out")
    check_inputs(config)
    (tmp_path / "out/checkpoints/tokenizer/step-000000").mkdir(parents=True)
    check_inputs(replace(config, seed=1))
    assert not (tmp_path / "out/checkpoints").exists()
    assert saved_config(tmp_path / "out").seed == 1


def test_settings_that_change_nothing_learned_may_change_between_submissions(finished):
    config, _ = finished
    stage = replace(config.flam_stage, log_every=2, micro_batch=4)
    evaluation, data = replace(config.evaluation, num_clips=2), replace(config.data, cache_mib=0, prefetch_batches=0)
    check_inputs(replace(config, flam_stage=stage, evaluation=evaluation, data=data))
    assert saved_config(Path(config.out)).data.cache_mib == 0
    check_inputs(config)


def test_triton_kernels_that_cannot_run_here_are_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    config, _ = finished
    with pytest.raises(ConfigError, match=r"^flam\.kernels asks for Triton kernels, but they run on CUDA"):
        run_tiny(replace(config, out=str(tmp_path / "out"), flam=replace(config.flam, kernels="triton")))
    assert not (tmp_path / "out").exists()


def test_another_order_of_the_data_is_another_run(finished):
    config, _ = finished
    with pytest.raises(ConfigError, match=r"data\.window_shards is 16 there and 8 here"):
        check_inputs(replace(config, data=replace(config.data, window_shards=8)))


@pytest.mark.parametrize("without_checkpoints", [False, True])
def test_a_tokenizer_is_enough_to_hold_a_directory_to_its_run(finished, tmp_path, without_checkpoints):
    config, _ = finished
    shutil.copytree(config.out, tmp_path / "out")
    if without_checkpoints:
        shutil.rmtree(tmp_path / "out" / "checkpoints")
    other = replace(config, out=str(tmp_path / "out"), tokenizer=replace(config.tokenizer, base_channels=4))
    with pytest.raises(ConfigError, match=r"tokenizer\.base_channels is 8 there and 4 here"):
        check_inputs(other)
    with pytest.raises(
        CheckpointError, match=r"other settings: tokenizer\.base_channels is 8 there and 4 here; choose"
    ):
        RunDirectory(tmp_path / "out").load_tokenizer(other.tokenizer, "0" * 64)


def test_a_refused_submission_leaves_the_directory_as_it_was(finished, tmp_path):
    config, _ = finished
    out = tmp_path / "out"
    shutil.copytree(config.out, out)
    shutil.rmtree(out / "tokenizer")  # stage 1 goes on from its checkpoint
    before = (out / "config.json").read_bytes()
    config = replace(config, out=str(out))
    moved = replace(config, data=replace(config.data, url=(make_data(str(tmp_path / "data"), seed=1),)))
    with pytest.raises(CheckpointError, match=r"step-000012 was trained on another data set"):
        check_inputs(moved)
    assert (out / "config.json").read_bytes() == before
    check_inputs(
        replace(
            config, cluster=replace(config.cluster, num_workers=2, zero_stage=3), profile=ProfileConfig(steps="2-3")
        )
    )  # may change


def test_the_median_frame_of_a_first_try_on_other_data_is_made_anew(short, finished):
    config, _ = finished
    there, here = (RunDirectory(Path(one.out)).load_median_frame() for one in (config, short))
    assert torch.equal(there, here)


def test_validation_clips_are_rounded_up_to_whole_batches(short):
    records = [record for record in read_records(Path(short.out) / "metrics.jsonl") if record["kind"] == "validation"]
    assert [record["num_clips"] for record in records] == [16, 8]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ConfigError, match=rf"seed must lie between 0 and 2\*\*63 - 1, got {seed}"):
        PretrainConfig(seed=seed, cluster=ClusterConfig(num_workers=1))


def test_an_elastic_run_has_the_world_sizes_that_can_share_the_global_batches_of_both_stages(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path)
    stages = {"tokenizer_stage": replace(config.tokenizer_stage, global_batch=24)}
    stages["flam_stage"] = replace(config.flam_stage, global_batch=36)

    def world_sizes(min_workers: int) -> list[int]:
        return replace(config, **stages, cluster=ClusterConfig(num_workers=6, min_workers=min_workers)).world_sizes

    assert world_sizes(0) == [6]
    assert world_sizes(1) == [1, 2, 3, 6]
    assert world_sizes(3) == [3, 6]
    with pytest.raises(ConfigError, match=r"must allow fewer than num-workers = 6 .*, got 4; the nearest possible: 3"):
        world_sizes(4)
    with pytest.raises(ConfigError, match=r"got 7; the nearest possible: 3"):
        world_sizes(7)


def test_a_directory_of_another_data_set_is_refused(finished, tmp_path):
    config, _ = finished
    other = replace(config, data=DataConfig(url=(make_data(str(tmp_path / "data"), seed=1),)))
    with pytest.raises(CheckpointError, match="was trained on another data set"):
        run_tiny(other)


def test_a_damaged_tokenizer_is_refused(finished, tiny_data, tmp_path):
    config, _ = finished
    directory = RunDirectory(tmp_path)
    tokenizer = RunDirectory(Path(config.out)).load_tokenizer(config.tokenizer, check_inputs(config).hash)
    directory.save_tokenizer(tokenizer, "0" * 64)
    weights = directory.tokenizer / "tokenizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        directory.load_tokenizer(config.tokenizer, "0" * 64)


def test_frames_of_another_size_are_refused(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"are 32 x 32 pixels, tokenizer.image-size is 64; pass"):
        check_inputs(replace(config, tokenizer=replace(config.tokenizer, image_size=64)))
    assert not (tmp_path / "out").exists()


def test_a_missing_data_set_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.arrow"):
        run_tiny(tiny_config(str(tmp_path), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_lpips_is_a_term_of_stage_1_and_no_part_of_what_it_saves(tiny_data, tmp_path):
    lpips = Lpips("alexnet")
    for name, parameter in lpips.named_parameters():
        torch.nn.init.uniform_(parameter, 0.0 if "heads" in name else -0.05, 0.05)
    lpips.save(tmp_path / "lpips.safetensors")
    config = tiny_config(tiny_data, tmp_path / "out")
    stage = replace(config.tokenizer_stage, lpips_weight=1.0, lpips_weights=str(tmp_path / "lpips.safetensors"))
    config = replace(config, tokenizer_stage=stage)
    run_tiny(config)
    records = read_records(Path(config.out) / "metrics.jsonl")
    distances = [record["lpips"] for record in records if record["stage"] == "tokenizer"]
    assert len(distances) == NUM_STEPS + 2  # and two validations
    assert min(distances) > 0
    (tmp_path / "lpips.safetensors").unlink()  # needed no more
    assert RunDirectory(Path(config.out)).load_tokenizer(config.tokenizer, check_inputs(config).hash)


def test_profiled_steps_and_a_stated_peak_show_in_the_run_directory(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "out")
    stages = {name: replace(getattr(config, name), num_steps=2) for name in ("tokenizer_stage", "flam_stage")}
    cluster = ClusterConfig(num_workers=1, peak_tflops=0.5)
    run_tiny(replace(config, **stages, cluster=cluster, profile=ProfileConfig(steps="2-2")))
    names = sorted(path.name for path in (tmp_path / "out" / "profile").iterdir())
    assert names == ["flam-rank0.json.gz", "tokenizer-rank0.json.gz"]
    for record in read_records(tmp_path / "out" / "metrics.jsonl"):
        if record["kind"] == "train":
            assert record["mfu"] == pytest.approx(record["model_tflops_per_s"] / 0.5)


def test_missing_lpips_weights_are_refused_before_anything_is_written(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "out")
    stage = replace(config.tokenizer_stage, lpips_weight=1.0, lpips_weights=str(tmp_path / "lpips.safetensors"))
    with pytest.raises(ConfigError, match=r"Expected a file of LPIPS weights at .*lpips\.safetensors, found none"):
        run_tiny(replace(config, tokenizer_stage=stage))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["lpips_weights", "fvd_weights"])
def test_weights_the_evaluation_lacks_are_refused_before_anything_is_trained(tiny_data, tmp_path, name):
    config = tiny_config(tiny_data, tmp_path / "out")
    evaluation = replace(config.evaluation, rollout_steps=9, **{name: str(tmp_path / "weights")})
    with pytest.raises(ConfigError, match=r"Expected a file of (LPIPS|I3D) weights at .*weights, found none"):
        run_tiny(replace(config, evaluation=evaluation))
    assert not (tmp_path / "out").exists()


def test_a_run_directory_that_cannot_be_made_is_refused(tiny_data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory; choose another --out"):
        check_inputs(tiny_config(tiny_data, tmp_path / "file" / "out"))


def test_what_the_system_says_about_a_run_directory_is_passed_on(tiny_data, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device; choose another --out"):
        check_inputs(tiny_config(tiny_data, tmp_path / "out"))


def test_a_run_directory_without_write_permission_is_refused(tiny_data, tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # tests may run as root, who may write anywhere
    with pytest.raises(ConfigError, match="cannot be written: Permission denied; choose another --out"):
        check_inputs(tiny_config(tiny_data, tmp_path / "out"))
