"""The recipe as a user runs it: data sets that load, exit codes, and one sentence for every mistake."""

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamscale import command_line
from flamscale.data import storage
from flamscale.data.encode import LOSSLESS_CRF, encode_frames
from flamscale.data.manifest import Manifest
from flamscale.data.sources.multigrid import MultigridSource
from tests.data.films import scene, write_film

RECIPE = Path(__file__).parents[2] / "recipes" / "make_shards.py"


@pytest.fixture(scope="module")
def make_shards() -> Callable[..., int]:
    """The recipe as its command, called with the flags it gets; returns its exit code."""
    spec = importlib.util.spec_from_file_location("make_shards", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["make_shards"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*flags: object) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(RECIPE), *map(str, flags), "--workers", "1"])
            try:
                command_line.run(module.main)
            except SystemExit as stop:
                return stop.code
        return 0

    return run


def test_multigrid_shards_have_all_splits(
    make_shards: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "room"
    flags = ("--source", "multigrid", "--out", out, "--episodes", 20, "--episode-frames", 8, "--num-agents", 2)
    assert make_shards(*flags) == 0
    assert "Wrote 16 train + 2 validation + 2 test episodes, 160 frames of 64x64, 3 shards" in capsys.readouterr().out
    manifest = Manifest.load(str(out))
    assert (manifest.source, manifest.height, manifest.width, manifest.fps) == ("multigrid", 64, 64, 10.0)
    assert [(shard.split, len(shard)) for shard in manifest.shards] == [("train", 16), ("validation", 2), ("test", 2)]


def test_the_same_command_again_says_so_and_does_nothing(
    make_shards: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--source", "multigrid", "--out", tmp_path, "--episodes", 3, "--episode-frames", 4)
    assert make_shards(*flags) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_shards(*flags) == 0
    assert "already holds this data set" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert make_shards(*flags, "--seed", 1) == 2
    assert "already holds a data set made with other arguments" in capsys.readouterr().err


def test_a_data_set_made_before_a_flag_existed_is_recognised(
    make_shards: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--source", "multigrid", "--out", tmp_path, "--episodes", 3, "--episode-frames", 4)
    assert make_shards(*flags) == 0
    manifest = Manifest.load(str(tmp_path))
    assert manifest.arguments.pop("correlated_agents") == 0
    manifest.save(str(tmp_path))
    assert make_shards(*flags) == 0
    assert "already holds this data set" in capsys.readouterr().out
    assert make_shards(*flags, "--correlated-agents", 2) == 2
    assert "made with other arguments" in capsys.readouterr().err


def test_procgen_shards_hold_the_players_actions_and_where_everything_is(
    make_shards: Callable[..., int], tmp_path: Path
) -> None:
    flags = ("--source", "procgen", "--game", "starpilot", "--size", 64, "--episodes", 3, "--episode-frames", 8)
    assert make_shards(*flags, "--out", tmp_path) == 0
    manifest = Manifest.load(str(tmp_path))
    assert (manifest.source, manifest.height, manifest.fps) == ("procgen", 64, 15.0)
    assert [(shard.split, len(shard)) for shard in manifest.shards] == [("train", 1), ("validation", 1), ("test", 1)]
    shard = manifest.shards[0]
    offset, size = (
        int(column[0]) for column in (shard.samples.members["npz"].offsets, shard.samples.members["npz"].sizes)
    )
    labels = np.load(io.BytesIO(storage.read_range(storage.join(str(tmp_path), shard.path), offset, size)))
    assert labels["actions"].shape == labels["rewards"].shape == (7,)
    assert labels["entity_positions"].shape == (8, len(labels["entity_types"]), 2)


def test_tars_of_others_are_indexed_where_they_lie(
    make_shards: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = ("--source", "multigrid", "--episodes", 20, "--episode-frames", 4, "--num-agents", 1)
    assert make_shards(*room, "--out", tmp_path / "room") == 0
    (tmp_path / "tars").mkdir()
    content = (tmp_path / "room" / "train" / "000000.tar").read_bytes()
    (tmp_path / "tars" / "[0].tar").write_bytes(content[:-3000])  # damages no video
    (tmp_path / "tars" / "1.tar").write_bytes(b"<html>" * 1000)
    capsys.readouterr()
    flags = ("--source", "webdataset", "--input", tmp_path / "tars", "--out", tmp_path / "index")
    assert make_shards(*flags) == 0
    printed = capsys.readouterr()
    assert "Wrote 14 train + 1 validation + 1 test episodes, 64 frames of 64x64, 1 shards" in printed.out
    assert "header of the tar damaged" in printed.err
    manifest = Manifest.load(str(tmp_path / "index"))
    assert {shard.path for shard in manifest.shards} == {str(tmp_path / "tars" / "[0].tar")}
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["manifest.arrow"]
    assert make_shards(*flags) == 0
    assert "already holds this data set" in capsys.readouterr().out


def test_video_shards_of_another_size(make_shards: Callable[..., int], tmp_path: Path) -> None:
    (episode,) = MultigridSource(episodes=1, episode_frames=60)
    (tmp_path / "film.mp4").write_bytes(encode_frames(episode.frames, 10.0, LOSSLESS_CRF))
    flags = ("--source", "video", "--input", tmp_path / "film.mp4", "--size", 32, "--episode-frames", 5)
    assert make_shards(*flags, "--out", tmp_path / "out", "--crop", "0,0,64,64") == 0
    manifest = Manifest.load(str(tmp_path / "out"))
    assert (manifest.source, manifest.height) == ("video", 32)
    assert [(shard.split, len(shard)) for shard in manifest.shards] == [("train", 10), ("validation", 1), ("test", 1)]


def test_shards_go_to_s3_as_well(make_shards: Callable[..., int], s3_url: str) -> None:
    assert make_shards("--source", "multigrid", "--out", s3_url, "--episodes", 3, "--episode-frames", 4) == 0
    assert len(Manifest.load(s3_url).shards) == 3


def test_a_data_set_comes_with_a_summary_and_a_contact_sheet(
    make_shards: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_film(tmp_path / "films" / "a.mp4", np.concatenate([scene(1, 40), scene(2, 16, speed=0)]))
    (tmp_path / "films" / "b.mp4").write_bytes(b"no video")
    flags = ("--source", "video", "--input", tmp_path / "films", "--out", tmp_path / "out")
    assert make_shards(*flags, "--size", 32, "--episode-frames", 8) == 0
    counts = json.loads((tmp_path / "out" / "summary.json").read_text())["counts"]
    assert {"inputs": 2, "inputs unusable": 1, "scenes": 2, "episodes": 7}.items() <= counts.items()
    assert {
        "episodes dropped: static": 2,
        "episodes dropped: duplicate": 0,
        "frames kept": 40,
    }.items() <= counts.items()
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.height == (18 + 116) * 2  # a strip of kept episodes and one of static ones
    printed = capsys.readouterr().err
    assert "episodes dropped: static" in printed
    assert "b.mp4 cannot be decoded" in printed


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--source", "multigrid", "--input", "x"), 2, "--input cannot take effect with --source multigrid"),
        (("--source", "video", "--input", "x", "--seed", 1), 2, "--seed cannot take effect with --source video"),
        (("--source", "video"), 2, "need --input"),
        (("--source", "multigrid", "--num-agents", 0), 2, "num-agents must lie between 1 and 32"),
        (("--source", "multigrid", "--shard-mib", 0), 2, "shard-mib must be at least 1"),
        (("--source", "multigrid", "--correlated-agents", 1), 2, "correlated-agents must be 0, or lie between 2 and"),
        (("--source", "multigrid", "--game", "leaper"), 2, "--game cannot take effect with --source multigrid"),
        (("--source", "procgen", "--num-agents", 2), 2, "--num-agents cannot take effect with --source procgen"),
        (("--source", "procgen", "--size", 1024), 2, "size must be an even number of pixels, 16 to 512"),
        (("--source", "webdataset", "--input", "x", "--size", 64), 2, "--size cannot take effect with --source webdat"),
        (("--source", "webdataset", "--input", "x", "--shard-mib", 1), 2, "--shard-mib cannot take effect with"),
        (("--source", "webdataset"), 2, "--source webdataset needs --input"),
        (("--source", "multigrid", "--max-bad-fraction", 2), 2, "max-bad-fraction must lie between 0 and 1, got 2"),
        (("--source", "multigrid", "--fps", 5), 2, "--fps cannot take effect with --source multigrid"),
        (("--source", "video", "--input", "x", "--camera", "a"), 2, "--camera cannot take effect with --source video"),
        (("--source", "images", "--input", "missing"), 1, "Expected folders of images"),
        (("--source", "multigrid", "--ray", "127.0.0.1:1"), 1, "No Ray cluster answers at 127.0.0.1:1"),
        (("--source", "video", "--input", "missing"), 1, "Expected video files"),
        (("--source", "webdataset", "--input", "missing"), 1, "Expected WebDataset tars"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(
    make_shards: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...],
    code: int,
    message: str,
) -> None:
    assert make_shards(*flags, "--out", tmp_path / "out") == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_help_answers_quickly_because_it_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", str(RECIPE), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Height and width of a frame (pixels)" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "flamscale.data.shards" in imported
    assert not imported & {"torch", "webdataset", "multigrid", "procgen", "botocore", "ray", "scipy", "cv2"}
