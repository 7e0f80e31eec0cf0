"""The recipe as a user runs it: a run directory in, a model that loads out; one sentence for every mistake."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import equal
from transformers import AutoModel

from flamscale.errors import CheckpointError, ConfigError
from tests.tiny import run_tiny, tiny_config

RECIPE = Path(__file__).parents[2] / "recipes" / "export_model.py"


@pytest.fixture(scope="module")
def export() -> Callable[..., None]:
    """The recipe's main, called with the flags it gets."""
    spec = importlib.util.spec_from_file_location("export_model", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["export_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *flags: module.main([str(flag) for flag in flags])


@pytest.fixture(scope="module")
def run(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps, with checkpoints of the last two."""
    out = tmp_path_factory.mktemp("run") / "out"
    run_tiny(tiny_config(tiny_data, out))
    return out


def test_the_newest_checkpoint_is_the_model_the_run_ended_with(
    export: Callable[..., None], run: Path, tmp_path: Path
) -> None:
    export("--run", run, "--out", tmp_path / "model")
    weights, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", run / "model"))
    assert weights.keys() == expected.keys()
    assert all(equal(value, expected[name]) for name, value in weights.items())
    assert AutoModel.from_pretrained(tmp_path / "model").flam.config.num_slots == 2
    assert "FLAM" in (tmp_path / "model" / "README.md").read_text()


def test_an_earlier_checkpoint_is_another_model(export: Callable[..., None], run: Path, tmp_path: Path) -> None:
    export("--run", run, "--step", 10, "--out", tmp_path / "model")
    weights, last = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", run / "model"))
    assert any(not equal(value, last[name]) for name, value in weights.items())


def test_the_start_of_a_run_is_no_model_to_export(export: Callable[..., None], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run/checkpoints/flam"
    shutil.rmtree(folder / "step-000012")
    (folder / "step-000010").rename(folder / "step-000000")
    with pytest.raises(CheckpointError, match=r"Expected a checkpoint of stage 2 in .*, found step-000000; check"):
        export("--run", tmp_path / "run", "--out", tmp_path / "model")


def test_a_step_without_a_checkpoint_is_told(export: Callable[..., None], run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint of stage 2 in .*, found step-000010, step-000012"):
        export("--run", run, "--step", 7, "--out", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_damaged_checkpoint_is_told(export: Callable[..., None], run: Path, tmp_path: Path) -> None:
    state = run / "checkpoints" / "flam" / "step-000010" / "state-00000.safetensors"
    content = bytearray(state.read_bytes())
    content[-10] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state-00000\.safetensors as it was committed, found it missing or"):
        export("--run", run, "--step", 10, "--out", tmp_path / "model")


def test_folders_that_do_not_fit_are_told(export: Callable[..., None], run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already; choose another folder"):
        export("--run", run, "--out", tmp_path)
    with pytest.raises(ConfigError, match=r"found no config\.json there; check --run"):
        export("--run", tmp_path, "--out", tmp_path / "model")
