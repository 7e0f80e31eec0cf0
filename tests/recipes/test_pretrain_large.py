"""The main recipe as a user meets it: --help, --dry-run, wrong flags."""

import ast
import dataclasses
import importlib.util
import inspect
import itertools
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from flamscale import config as config_module
from flamscale.baselines import MODELS
from flamscale.config import PretrainConfig
from flamscale.errors import ConfigError
from flamscale.presets import PRESETS

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "pretrain_large.py"


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("pretrain_large", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_large"] = module  # tyro reads the help texts from the source of the module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pretrain_large"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RECIPE, *arguments], capture_output=True, text=True, cwd=ROOT)


def flags(config: object, prefix: str = "--") -> Iterator[str]:
    for item in dataclasses.fields(config):
        name, value = prefix + item.name.replace("_", "-"), getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from flags(value, f"{name}.")
        else:
            yield name


def test_help_names_every_setting_within_three_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0
    assert done.returncode == 0
    for flag in ["--preset", "--dry-run", "--model", *flags(PRESETS["quickstart"]())]:
        assert f" {flag}" in done.stdout
    assert "ray job submit" in done.stdout


@pytest.mark.parametrize(
    "kind", [item for item in vars(config_module).values() if inspect.isclass(item) and item is not PretrainConfig]
)
def test_every_setting_has_its_meaning_below_it(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    settings = [(item, below) for item, below in itertools.pairwise(body) if isinstance(item, ast.AnnAssign)]
    assert settings
    for item, below in settings:
        assert isinstance(below, ast.Expr), f"{kind.__name__}.{item.target.id} has no docstring"


def test_help_shows_the_values_of_the_chosen_preset(capsys, recipe):
    with pytest.raises(SystemExit):
        recipe.config(["--preset", "procgen", "--help"])
    assert "(default: 224)" in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--data", "s3://a/b"], ["--data=s3://a/b"], ["--data.url", "s3://a/b"]])
def test_data_is_short_for_data_url(flag, recipe):
    assert recipe.config(flag).config.data.url == ("s3://a/b",)


def test_a_baseline_is_named_and_has_flags_of_its_own(recipe, capsys):
    chosen = recipe.config(["--model", "genie", "--flam.action-levels", "8", "--flam-stage.num-steps", "7"]).config
    genie = MODELS["genie"](PRESETS["quickstart"]())
    assert chosen.flam == dataclasses.replace(genie.flam, action_levels=(8,))
    assert chosen.flam_stage == dataclasses.replace(genie.flam_stage, num_steps=7)
    with pytest.raises(SystemExit):
        recipe.config(["--model", "genie", "--flam.num-slots", "3"])
    assert "--flam.num-slots" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recipe.config(["--model", "dreamer"])
    assert "slotformer" in capsys.readouterr().err


def test_flags_differ_from_the_preset_where_they_say_so(recipe):
    chosen = recipe.config(["--preset", "multigrid", "--flam.num-slots", "8"]).config
    assert chosen == dataclasses.replace(
        PRESETS["multigrid"](), flam=dataclasses.replace(PRESETS["multigrid"]().flam, num_slots=8)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--flam.num-slots", "0"], "flam.num-slots (K) must be at least 1, got 0"),
        (["--flam.history-frames", "4"], "flam.history-frames must be less than flam-stage.clip-frames"),
        (["--tokenizer.image-size", "60"], "must be divisible by tokenizer.downsample, got 60 and 8"),
        (["--cluster.num-workers", "3"], "must be a multiple of micro-batch x workers"),
        ([], "No data URL was given"),
        (["--data", "x", "--out", "s3://a/b"], "--out must be a folder, got s3://a/b; pass the URL as --copy-to"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(arguments, said, recipe):
    with pytest.raises(ConfigError) as refusal:
        recipe.main(arguments)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_usage_errors_end_with_code_2_and_nothing_but_the_sentence():
    done = run("--preset", "quickstart", "--flam.num-slots", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: flam.num-slots (K) must be at least 1, got 0.\n"


def test_an_unknown_preset_is_refused(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        recipe.config(["--preset", "huge"])
    assert stop.value.code == 2
    assert "quickstart" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "x", "--out", "/y"],
        ["--data", "/x", "--out", "y"],
        ["--data", "/x", "--out", "/y", "--tokenizer-from", "z"],
        ["--data", "/x", "--out", "/y", "--data.latents", "z"],
        ["--data", "/x", "--out", "/y", "--tokenizer-stage.lpips-weight", "1", "--tokenizer-stage.lpips-weights", "z"],
        ["--data", "/x", "--out", "/y", "--evaluation.lpips-weights", "z"],
        ["--data", "/x", "--out", "/y", "--evaluation.fvd-weights", "z"],
    ],
)
def test_relative_places_are_refused_inside_a_ray_job(arguments, recipe, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="must be an absolute path in a Ray job"):
        recipe.main(arguments)


def test_dry_run_describes_the_run_and_trains_nothing(recipe, capsys, tmp_path):
    recipe.main(["--preset", "quickstart", "--dry-run", "--out", str(tmp_path / "run")])
    assert "no data URL was given" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
