"""Reading ahead by processes: the same batches as without; a killed process costs nothing; none outlives the run."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch

from flamscale.config import DataConfig
from flamscale.data import reading_process
from flamscale.data.loader import ClipLoader
from flamscale.data.manifest import Manifest
from flamscale.data.mixture import Mixture
from flamscale.errors import ConfigError, DataError
from tests.data.dying import die

ROOT = Path(__file__).parents[2]


def _loader(manifest: Manifest, **settings: int | float) -> ClipLoader:
    config = DataConfig(window_shards=2, **{"num_processes": 2, **settings})
    clip = {"clip_frames": 3, "frame_stride": 2, "clip_hop": 1}
    batch = {"global_batch": 12, "micro_batch": 6, "rank": 0, "world_size": 1, "seed": 5}
    return ClipLoader(Mixture((manifest,)), "train", **clip, **batch, config=config)


def _videos(loader: Iterator, count: int) -> torch.Tensor:
    return torch.stack([batch.video for batch in itertools.islice(loader, count)])


def _readers() -> list[psutil.Process]:
    """The processes that read for this one, once they are up."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        found = [process for process in psutil.Process().children(recursive=True) if _is_reader(process)]
        if len(found) >= 2:
            return found
        time.sleep(0.05)
    raise AssertionError("no reader came up")


def _is_reader(process: psutil.Process) -> bool:
    """A child of the fork server, which looks like it but is not a child of this process."""
    try:
        return process.ppid() != os.getpid() and "forkserver" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def expected(data_set: Manifest) -> torch.Tensor:
    with _loader(data_set, num_processes=0) as loader:
        return _videos(loader, 60)


def test_processes_give_the_same_batches_as_a_thread(data_set: Manifest, expected: torch.Tensor) -> None:
    with _loader(data_set) as loader:
        first = _videos(loader, 2)
        readers = _readers()
        rest = _videos(loader, 58)
    assert torch.equal(torch.cat([first, rest]), expected)
    assert all(not process.is_running() for process in readers)


def test_batches_that_the_caller_keeps_outlive_the_loader(data_set: Manifest, expected: torch.Tensor) -> None:
    before = _shared_memory()
    with _loader(data_set) as loader:
        _videos(loader, 2)
        _readers()
        kept = [batch.video for batch in itertools.islice(loader, 30)]
    assert torch.equal(torch.stack(kept), expected[2:32])
    assert _shared_memory() <= before


def test_a_killed_process_costs_no_batch(data_set: Manifest, expected: torch.Tensor) -> None:
    with _loader(data_set) as loader:
        videos = [_videos(loader, 2)]
        for _ in range(2):
            _readers()[0].kill()
            videos.append(_videos(loader, 29))
        assert loader.restarts == 2
    assert torch.equal(torch.cat(videos), expected)


def test_processes_that_keep_dying_end_the_run_with_one_sentence(
    data_set: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_process, "_serve", die)
    with (
        _loader(data_set) as loader,
        pytest.raises(DataError, match=r"^The processes that .* died 4 times in a row, .*"),
    ):
        _videos_slowly(loader)


def _videos_slowly(loader: ClipLoader) -> None:
    for _ in range(1000):
        next(loader)
        time.sleep(0.01)


def test_what_processes_find_damaged_is_counted(own_data_set: Manifest) -> None:
    shard = own_data_set.of_split("train")[0]
    path = Path(own_data_set.url, shard.path)
    content = bytearray(path.read_bytes())
    content[int(shard.samples.members["mp4"].offsets[1]) + 100] ^= 1
    path.write_bytes(content)
    with _loader(own_data_set, max_bad_fraction=0.1) as loader:
        _videos(loader, 2)
        _readers()
        _videos(loader, 58)
        assert [where.rpartition("/")[2] for where in loader.bad_samples] == [shard.samples.key(1)]
    with _loader(own_data_set, max_bad_fraction=0.0) as loader, pytest.raises(DataError, match="1 of 24 samples are"):
        _videos(loader, 60)


class _Talkative:
    """Stands in for `PositionReader`: no clips, and findings that no pipe holds."""

    reader = Mock()

    def __call__(self, positions: range, later: range, memory: memoryview) -> tuple[np.ndarray, list[int]]:
        return np.ndarray((1,), np.uint8, memory), list(positions)

    def __reduce__(self) -> tuple:
        return _Talkative, ()


def test_who_asks_ahead_never_waits_for_a_process_whose_answers_nobody_took_yet() -> None:
    process, slot = reading_process.ReadingProcess(_Talkative()), SharedMemory(create=True, size=1)
    process.wait_until_up()
    for number in range(50):
        process.ask(slot, range(number, number + 20_000), range(0))
    assert [process.receive(slot)[1][0] for _ in range(50)] == list(range(50))
    process.close()
    slot.unlink()


def test_too_little_shared_memory_is_told_in_one_sentence(data_set: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"takes .* MiB of shared memory, and /dev/shm has .*: lower data.num-proc"):
        next(_loader(data_set, num_processes=1, prefetch_batches=10**9))


def _shared_memory() -> set[str]:
    """Names of the blocks that Python's processes share."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def test_no_process_and_no_shared_memory_outlives_a_killed_run(data_set: Manifest) -> None:
    script = (
        "import sys, time; from tests.data.test_workers import _loader, _readers; "
        "from flamscale.data.manifest import Manifest; loader = _loader(Manifest.load(sys.argv[1])); next(loader); "
        "print(*[process.pid for process in _readers()], flush=True); time.sleep(60)"
    )
    before = _shared_memory()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "cluster")))}
    command = [sys.executable, "-c", script, data_set.url]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        readers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        assert len(readers) == 2
        run.kill()
    _, alive = psutil.wait_procs(readers, timeout=20)
    assert not alive
    deadline_s = time.monotonic() + 20
    while _shared_memory() - before and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not _shared_memory() - before
