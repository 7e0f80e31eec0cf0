"""What is committed loads, what is not is never seen, and a foreign checkpoint is refused in one sentence."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from flamscale.errors import CheckpointError
from flamscale.training.checkpoint import CheckpointStore, read_objective
from flamscale.training.engine import TorchEngine
from tests.training.toy import CPU, ToyLoader, ToyObjective, ToyState, run_toy, toy_config

STATE = ToyState(position=24, seed=0, manifest_hash="a" * 64)


def engine(width: int = 16, precision: str = "fp32") -> TorchEngine:
    return TorchEngine(ToyObjective(width), toy_config(precision=precision), CPU, seed=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Folder with one committed checkpoint of step 3."""
    CheckpointStore(tmp_path, keep=2).save(3, engine(), STATE, {"seed": 1, "flam": {"num_slots": 4, "levels": (4, 4)}})
    return tmp_path


def load(folder: Path, *, num_slots: int = 4, seed: int = 1, state: ToyState = STATE, into: TorchEngine | None = None):
    extra = {"seed": seed, "flam": {"num_slots": num_slots, "levels": (4, 4)}}
    return CheckpointStore(folder, keep=2).load(into or engine(), state, extra)


def test_it_brings_back_engine_data_position_and_random_state(saved: Path) -> None:
    other = engine()
    with torch.no_grad():
        other.module.head.weight.zero_()
    resumed = load(saved, state=dataclasses.replace(STATE, position=0), into=other)
    assert resumed is not None
    assert (resumed.step, resumed.loader_state) == (3, STATE)
    assert all(
        torch.equal(value, engine().module.state_dict()[name]) for name, value in other.full_state_dict().items()
    )
    load(saved)
    first = torch.rand(3)
    load(saved)
    assert torch.equal(torch.rand(3), first)


def test_no_checkpoint_means_a_start_from_scratch(tmp_path: Path) -> None:
    assert load(tmp_path / "none") is None


def test_what_is_not_committed_is_ignored_and_removed(saved: Path) -> None:
    partial = saved / "step-000009.partial"
    partial.mkdir()
    (partial / "meta.json").write_text("{}")
    assert CheckpointStore(saved, keep=2).latest() == saved / "step-000003"
    resumed = load(saved)
    assert resumed is not None
    assert resumed.step == 3
    assert not partial.exists()


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_checkpoint_takes_the_place_of_another_of_its_step_leaves_one_of_them(
    saved: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, left = Path.rename, renames

    def rename_or_die(path: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return rename(path, target)

    store, other = CheckpointStore(saved, keep=2), engine()
    with torch.no_grad():
        other.module.head.weight.zero_()
    monkeypatch.setattr(Path, "rename", rename_or_die)
    monkeypatch.setattr(CheckpointStore, "_drop_old", lambda store: rename_or_die(saved, saved))
    with pytest.raises(KeyboardInterrupt):
        store.save(3, other, STATE, {"seed": 1, "flam": {"num_slots": 4, "levels": (4, 4)}})
    monkeypatch.setattr(Path, "rename", rename)
    latest = store.latest()
    assert latest is not None
    found = read_objective(latest)  # before it is put in order too
    assert bool(found["head.weight"].any()) == (renames < 2)
    resumed = load(saved)
    assert resumed is not None
    assert resumed.step == 3
    assert [path.name for path in saved.iterdir()] == ["step-000003"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run_toy(tmp_path, toy_config(num_steps=30, checkpoint_every=6, keep_checkpoints=2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000024", "step-000030"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_slots": 8}, r"with flam\.num_slots = 8, found 4 in .*step-000003; go on with"),
        ({"seed": 2}, "with seed = 2, found 1"),
        (
            {"state": dataclasses.replace(STATE, manifest_hash="b" * 64)},
            "manifest hash bbbbbbbbbbbb, found one of aaaa",
        ),
    ],
)
def test_a_checkpoint_of_other_settings_or_data_is_refused(saved: Path, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(saved, **change)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"of this model .* parameters in 11 tensors.*, found another one's"):
        load(saved, into=engine(width=32))


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_found_before_it_is_read(saved: Path, damage: str) -> None:
    path = saved / "step-000003" / "state-00000.safetensors"
    path.write_bytes(path.read_bytes() + b"x") if damage == "changed" else path.unlink()
    with pytest.raises(CheckpointError, match=r"found state-00000\.safetensors missing or changed; delete that folder"):
        load(saved)


def test_a_damaged_description_is_named(saved: Path) -> None:
    (saved / "step-000003" / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"readable meta\.json"):
        load(saved)


def test_every_file_is_hashed(saved: Path) -> None:
    folder = saved / "step-000003"
    hashed = json.loads((folder / "meta.json").read_text())["files"].keys()
    assert hashed == {path.name for path in folder.iterdir()} - {"meta.json"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError, match=r"Expected to write checkpoint .*step-000003, found Not a directory; free"
    ):
        CheckpointStore(tmp_path / "file", keep=1).save(3, engine(), STATE, {})


def test_going_on_under_another_data_set_is_refused_by_the_loop(tmp_path: Path) -> None:
    config = toy_config(num_steps=6)
    run_toy(tmp_path, config)
    with pytest.raises(CheckpointError, match="manifest hash"):
        run_toy(tmp_path, config, loader=ToyLoader(config, manifest_hash="c" * 64))
