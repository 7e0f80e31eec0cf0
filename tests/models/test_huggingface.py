"""The Hugging Face form: what is saved comes back, in either import order, without pickle, or with one sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flamscale.config import FlamConfig, TokenizerConfig
from flamscale.errors import CheckpointError, ConfigError
from flamscale.models.flam import Flam
from flamscale.models.huggingface import FlamForWorldModeling
from flamscale.models.monolithic import Monolithic
from flamscale.models.tokenizer import Tokenizer
from tests.small_models import TRUE_ACTIONS

ROOT = Path(__file__).parents[2]
TOKENIZER = TokenizerConfig(
    image_size=16,
    downsample=4,
    base_channels=4,
    max_channels=8,
    num_residual_blocks=1,
    feature_channels=8,
    fsq_levels=(3, 3),
)
FLAM = FlamConfig(num_slots=3, width=16, action_width=4, num_heads=2, num_blocks=1, slot_iterations=1)


@pytest.fixture(scope="module")
def model() -> FlamForWorldModeling:
    torch.manual_seed(0)
    return FlamForWorldModeling.from_modules(Tokenizer(TOKENIZER), Flam(FLAM, TOKENIZER)).eval()


@pytest.fixture(scope="module")
def saved(model: FlamForWorldModeling, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(0, 256, (2, 5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_model_around_trained_modules_leaves_their_weights_alone() -> None:
    torch.manual_seed(1)
    flam = Flam(FLAM, TOKENIZER)
    before = {name: value.clone() for name, value in flam.state_dict().items()}
    model = FlamForWorldModeling.from_modules(Tokenizer(TOKENIZER), flam)
    assert model.flam is flam
    assert all(torch.equal(before[name], value) for name, value in model.flam.state_dict().items())


def test_the_folder_holds_config_weights_and_card(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "flamscale"
    assert config["flam"]["num_slots"] == 3
    card = (saved / "README.md").read_text()
    for part in ("license: apache-2.0", "AutoModel.from_pretrained", "3 slots", "Not evaluated yet"):
        assert part in card


def test_the_card_carries_the_numbers_of_an_evaluation(model: FlamForWorldModeling, tmp_path: Path) -> None:
    names = ("psnr", "ssim", "shuffled_actions_psnr", "copy_last_psnr", "median_frame_psnr")
    rollout = dict(zip(names, (31.25, 0.95, 22.0, 21.0, 24.0), strict=True))
    rollout |= {"num_clips": 7, "rollout_steps": 10, "context_frames": 2}
    model.save_pretrained(tmp_path, result={"rollout": rollout, "tokenizer": {"psnr": 37.0}})
    assert "| this model | 31.25 (SSIM 0.950) |" in (tmp_path / "README.md").read_text()


def test_what_was_saved_predicts_the_same_after_loading(
    model: FlamForWorldModeling, saved: Path, frames: Tensor
) -> None:
    loaded = FlamForWorldModeling.from_pretrained(saved)
    assert not loaded.training
    assert loaded.flam.config == FLAM
    assert loaded.tokenizer.config == TOKENIZER
    expected, video = model.rollout(frames, steps=3), loaded.rollout(frames, steps=3)
    assert torch.equal(video.frames, expected.frames)
    assert torch.equal(video.masks, expected.masks)


@pytest.mark.parametrize(
    "imports",
    [
        "import flamscale; from transformers import AutoConfig, AutoModel",
        "from transformers import AutoModel, AutoConfig; import flamscale",
    ],
)
def test_automodel_loads_it_offline_in_any_import_order(imports: str, saved: Path) -> None:
    offline = "import socket\ndef refused(*a): raise OSError('no network here')\nsocket.socket.connect = refused\n"
    load = f"config = AutoConfig.from_pretrained({str(saved)!r})\nmodel = AutoModel.from_pretrained({str(saved)!r})\n"
    done = _python(f"{offline}{imports}\n{load}print(type(config).__name__, type(model).__name__)")
    assert done.stdout.strip() == "FlamHFConfig FlamForWorldModeling", done.stderr


def test_importing_flamscale_alone_is_light() -> None:
    done = _python(
        "import flamscale, flamscale.config, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_encoding_and_decoding_keep_shapes(model: FlamForWorldModeling, frames: Tensor) -> None:
    features = model.encode(frames)
    assert features.shape == (2, 5, 16, 8)
    assert model.decode(features).shape == frames.shape
    assert model.decode(features).dtype == torch.uint8
    assert model(frames).slots.shape == (2, 5, 3, 16)


def test_a_rollout_with_the_inferred_actions_is_the_rollout_without_given_ones(
    model: FlamForWorldModeling, frames: Tensor
) -> None:
    actions = model.infer_actions(frames)
    assert actions.shape == (2, 4, 3, 4)
    expected = model.rollout(frames, steps=3)
    given = model.rollout(frames[:, :2], actions, steps=3)
    assert torch.equal(given.frames, expected.frames)
    assert given.frames.shape == (2, 3, 16, 16, 3)
    assert given.masks.shape == (2, 5, 3, 16)


def test_a_rollout_refuses_counts_that_do_not_fit(model: FlamForWorldModeling, frames: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"more frames than steps, got 5 steps and 5 frames"):
        model.rollout(frames, steps=5)
    with pytest.raises(ConfigError, match=r"3 steps from 2 frames needs 4 actions, got 3"):
        model.rollout(frames[:, :2], torch.zeros(2, 3, 3, 4), steps=3)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> FlamForWorldModeling:
    """A loaded model of the true actions of two agents, each of 3 values."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    FlamForWorldModeling.from_modules(Tokenizer(TOKENIZER), Monolithic(TRUE_ACTIONS, TOKENIZER)).save_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert "trained on video and the true actions of up to 2 agents" in card
    assert "infer" not in card
    return FlamForWorldModeling.from_pretrained(folder)


def test_a_model_of_true_actions_rolls_out_what_agents_do(given: FlamForWorldModeling, frames: Tensor) -> None:
    actions = torch.tensor([[[0, 2], [1, 1], [2, 0], [0, 0]]] * 2, dtype=torch.int8)
    video = given.rollout(frames[:, :2], actions, steps=3)
    assert torch.equal(video.actions, actions)
    features = given.encode(frames[:, :2])
    expected = given.flam.rollout(features, given.flam.embed(actions.long()).sample, given.tokenizer.quantize)
    assert torch.equal(video.frames, given.decode(expected.features))
    assert given(frames, actions).predictions.shape == (1, 2, 4, 16, 8)


def test_a_model_of_true_actions_says_that_it_infers_none(given: FlamForWorldModeling, frames: Tensor) -> None:
    for ask in (given, given.infer_actions, lambda frames: given.rollout(frames, steps=2)):
        with pytest.raises(
            ConfigError, match=r"takes true actions and infers none .*: pass actions, .* 2\], or choose"
        ):
            ask(frames)


@pytest.mark.parametrize(
    ("actions", "sentence"),
    [
        (torch.zeros(2, 4, 3).long(), "of up to 2 agents from 0 to 2, got those of 3 from 0 to 0"),
        (torch.full((2, 4, 2), 3), "of up to 2 agents from 0 to 2, got those of 2 from 3 to 3"),
        (torch.zeros(2, 4, 2, 3), r"integers \[clips, frames - 1, agents\], got torch.float32 \[2, 4, 2, 3\]"),
    ],
)
def test_true_actions_that_do_not_fit_are_refused(
    given: FlamForWorldModeling, frames: Tensor, actions: Tensor, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        given.rollout(frames[:, :2], actions, steps=3)


def test_a_model_that_infers_refuses_true_actions(model: FlamForWorldModeling, frames: Tensor) -> None:
    with pytest.raises(ConfigError, match="takes no true ones: leave them out"):
        model.rollout(frames[:, :2], torch.zeros(2, 4, 3).long(), steps=3)


def _pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _change(name: str, value: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["flam"][name] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_pickle_instead, r"Expected config\.json and model\.safetensors in .*; pass the model/ folder"),
        (_truncate, r"Expected config\.json and model\.safetensors in .*; pass the model/ folder"),
        (shutil.rmtree, r"Expected config\.json and model\.safetensors in .*; pass the model/ folder"),
        (_change("width", 32), r"are not those of its config\.json: \d+ mismatched, the first .*; export"),
        (_change("num_blocks", 2), r"are not those of its config\.json: \d+ missing, the first .*; export"),
    ],
)
def test_an_unfit_folder_is_refused_in_one_sentence(
    damage: Callable[[Path], None], sentence: str, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=sentence):
        FlamForWorldModeling.from_pretrained(folder)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def _python(code: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
