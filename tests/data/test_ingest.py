"""Making a data set: the same bytes whoever works and however often it is killed; faults counted; nothing left over."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from flamscale.data import storage, summary
from flamscale.data.decode import decode_frames
from flamscale.data.executors import Executor, Processes, serial
from flamscale.data.ingest import Ingest, Outcome
from flamscale.data.make_config import MakeShards
from flamscale.data.manifest import Manifest
from flamscale.errors import ConfigError, DataError
from tests.data.films import scene, walk, write_film

RECIPE = Path(__file__).parents[2] / "recipes" / "make_shards.py"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve films: moving, cut, static, and near copies of others."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(8):
        write_film(folder / f"{number:02d}.mp4", scene(number, 40))
    write_film(folder / "08 cut.mp4", np.concatenate([scene(20, 20), scene(21, 5), scene(22, 16)]))
    write_film(folder / "09 static.mp4", scene(30, 16, speed=0))
    write_film(folder / "10 copy of 03.mkv", scene(3, 40), crf=28)
    write_film(folder / "11 walk.mp4", walk(40, 56))
    return folder


def config(films: Path | str, out: Path | str, **settings: object) -> MakeShards:
    return MakeShards(
        **{"source": "video", "input": str(films), "out": str(out), "size": 32, "episode_frames": 8} | settings
    )


def make(
    config: MakeShards,
    executor: Executor = serial,
    max_bad_fraction: float = 0.5,
    shard_bytes: int = 2**26,
) -> Outcome:
    """Makes the data set as the recipe does, in smaller tars than a flag can say."""
    outcomes = []

    def finish(outcome: Outcome) -> None:
        summary.save(outcome, summary.summarise(outcome, 1.0))
        outcomes.append(outcome)

    job = config.job(config.build())
    Ingest(
        job=type(job)(**vars(job) | {"shard_bytes": shard_bytes}),
        name="films",
        kind="video",
        arguments=config.arguments,
        executor=executor,
        max_bad_fraction=max_bad_fraction,
        progress=lambda stage, results, num_done, num_pieces: results,
    ).run(finish)
    return outcomes[0]


def digests(manifest: Manifest) -> dict[str, str]:
    """Checksums of the tars as they lie there, and the manifest's hash."""
    found = {
        shard.path: hashlib.sha256(storage.read_bytes(storage.join(manifest.url, shard.path))).hexdigest()
        for shard in manifest.shards
    }
    assert found == {shard.path: shard.sha256 for shard in manifest.shards}
    return found | {"manifest": manifest.hash}


def test_scenes_are_cut_and_static_and_repeated_episodes_dropped_and_counted(films: Path, tmp_path: Path) -> None:
    outcome = make(config(films, tmp_path))
    assert {rule: len(items) for rule, items in outcome.plan.dropped.items()} == {"static": 2, "duplicate": 5}
    assert {item.part for item in outcome.plan.dropped["static"]} == {9}
    assert {item.part for item in outcome.plan.dropped["duplicate"]} == {10}
    assert len(outcome.plan.kept) == 8 * 5 + (2 + 2) + 7
    assert outcome.tallies == {"scenes": 14, "scenes shorter than an episode": 1, "frames left over": 4 + 5}
    assert not outcome.faults


def test_the_data_set_reads_back_as_the_films_were(films: Path, tmp_path: Path) -> None:
    make(config(films, tmp_path), shard_bytes=20_000)
    manifest = Manifest.load(str(tmp_path))
    assert len(manifest.of_split("train")) > 3
    seen = 0
    for shard in manifest.shards:
        content = Path(tmp_path, shard.path).read_bytes()
        for row in range(len(shard)):
            info, video = (
                content[column.offsets[row] :][: column.sizes[row]]
                for column in (shard.samples.members[kind] for kind in ("json", "mp4"))
            )
            assert hashlib.sha256(video).digest() == shard.samples.sha256(row)
            source, first = (json.loads(info)[name] for name in ("source", "first_frame"))
            if source == "05.mp4":
                seen += 1
                truth = scene(5, 40)[first : first + 8, :, 8:56].astype(float)
                frames = decode_frames(video, 0, 8).astype(float)
                assert abs(frames.mean() - truth.mean()) < 5
                assert np.abs(frames[0].mean(axis=(0, 1)) - truth[0].mean(axis=(0, 1))).max() < 8
    assert seen == 5


@pytest.mark.parametrize("shard_bytes", [20_000, 2**26])
def test_the_bytes_do_not_depend_on_who_works(films: Path, tmp_path: Path, shard_bytes: int) -> None:
    alone = make(config(films, tmp_path / "alone"), shard_bytes=shard_bytes)
    together = make(config(films, tmp_path / "together"), Processes(num_workers=3), shard_bytes=shard_bytes)
    assert digests(alone.manifest) == digests(together.manifest)
    if shard_bytes == 20_000:
        assert all(20_000 <= shard.size_bytes < 60_000 for shard in alone.manifest.of_split("train")[:-1])


def test_a_damaged_film_costs_that_film_alone_and_is_named(films: Path, tmp_path: Path) -> None:
    broken = tmp_path / "films"
    broken.mkdir()
    for film in films.iterdir():
        (broken / film.name).write_bytes(film.read_bytes())
    (broken / "04.mp4").write_bytes(b"no video")
    outcome = make(config(broken, tmp_path / "out"))
    assert len(outcome.plan.kept) == 7 * 5 + 4 + 7
    assert list(outcome.faults) == [str(broken / "04.mp4")]
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "04.mp4 cannot be decoded" in written["faults"][str(broken / "04.mp4")]
    assert written["counts"]["inputs unusable"] == 1
    with pytest.raises(DataError, match=r"at most 5% of 12 inputs to be unusable, and 1 are already; .*04\.mp4"):
        make(config(broken, tmp_path / "strict"), max_bad_fraction=0.05)


def test_only_damaged_films_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.mp4 cannot be decoded"):
        make(config(tmp_path, tmp_path / "out", fps=10.0))
    assert not list((tmp_path / "out").rglob("*.json"))


def test_films_shorter_than_an_episode_are_told_with_the_reasons(films: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Not one episode is left of 0 \(0 static, 0 duplicate\): give longer"):
        make(config(films, tmp_path, episode_frames=200))
    assert not (tmp_path / ".making").exists()


def test_every_file_but_the_shards_is_the_manifest_or_the_summary(films: Path, tmp_path: Path) -> None:
    manifest = make(config(films, tmp_path)).manifest
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    beside = files - {shard.path for shard in manifest.shards} - {"summary.json", "contact_sheet.png"}
    assert [name.split(".")[0] for name in beside] == ["manifest"]


def test_other_arguments_or_inputs_do_not_continue_what_was_begun(films: Path, tmp_path: Path) -> None:
    settings = config(films, tmp_path)
    job = settings.job(settings.build())
    job.folder.begin({"arguments": config(films, tmp_path).arguments, "inputs": "others"})
    with pytest.raises(ConfigError, match="holds a data set half made with other inputs"):
        make(config(films, tmp_path))
    with pytest.raises(ConfigError, match=r"half made with other arguments and inputs .* delete .*\.making to start"):
        make(config(films, tmp_path, size=48))


def _command(films: Path, out: str, workers: int) -> list[str]:
    flags = ["--source", "video", "--input", films, "--out", out, "--size", "32", "--episode-frames", "8"]
    return [sys.executable, str(RECIPE), *map(str, flags), "--workers", str(workers)]


def _kill_after(command: list[str], num_records: int, count: Callable[[], int], draw: random.Random) -> bool:
    """Starts a command and kills it once so many records are there; returns whether it was still running."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    children: list[psutil.Process] = []
    while process.poll() is None and count() < num_records:
        children = process.children(recursive=True) if process.is_running() else children
        time.sleep(0.002)
    time.sleep(draw.random() * 0.02)
    killed = process.poll() is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, "worker processes outlive their parent"
    return killed


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes(
    films: Path, tmp_path: Path, workers: int
) -> None:
    reference = make(config(films, tmp_path / "films")).manifest
    out = tmp_path / "killed" / "films"
    draw = random.Random(workers)
    kills = 0
    for num_records in sorted(draw.sample(range(1, 15), 4)):
        kills += _kill_after(
            _command(films, str(out), workers),
            num_records,
            lambda: len(list(out.glob(".making/*/*.json"))),
            draw,
        )
        assert Manifest.find(str(out)) is None or not (out / ".making").exists()
    assert kills >= 2
    subprocess.run(_command(films, str(out), workers), check=True, capture_output=True)
    assert digests(Manifest.load(str(out))) == digests(reference)
    assert not (out / ".making").exists()


def test_killed_on_s3_it_goes_on_and_ends_with_the_same_bytes(films: Path, tmp_path: Path, s3_url: str) -> None:
    reference = make(config(films, tmp_path / "films")).manifest
    out = storage.join(s3_url, "films")
    settings = config(films, out)
    job = settings.job(settings.build())
    draw = random.Random(3)
    kills = sum(
        _kill_after(_command(films, out, 1), num_records, lambda: len(job.folder.records("parts")), draw)
        for num_records in (2, 7)
    )
    assert kills == 2
    subprocess.run(_command(films, out, 1), check=True, capture_output=True)
    assert digests(Manifest.load(out)) == digests(reference)
    fs, path = storage.locate(job.folder.url())
    fs.invalidate_cache()
    assert not [name for name in fs.find(path) if fs.isfile(name)]


def test_finished_pieces_are_not_worked_on_again(films: Path, tmp_path: Path) -> None:
    worked: list[str] = []

    def stopping(function, items):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items):
            if len(worked) == 5 and number == 5:
                raise KeyboardInterrupt
            worked.append(str(item))
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        make(config(films, tmp_path), stopping)
    outcome = make(config(films, tmp_path), stopping)
    parts = [item for item in worked if item.startswith("Part")]
    assert len(parts) == len(set(parts)) == 12
    everything = [outcome.plan.kept, *outcome.plan.dropped.values()]
    assert outcome.num_frames_now == sum(item.frames for items in everything for item in items if item.part >= 5)
