"""A stage that runs out of memory ends with one sentence, and the micro-batch that it names does fit."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamscale.errors import ConfigError
from flamscale.training.out_of_memory import free_bytes, largest_micro_batch, naming_batch_clips, naming_what_fits
from flamscale.training.sizes import LiveBytes, clip_bytes
from tests.training.limited_worker import GLOBAL_BATCH, limited_config

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FREE_MIB = 1600


def train(data: str, out: Path, micro_batch: int) -> subprocess.CompletedProcess[str]:
    """Trains in a process that may take FREE_MIB of address space more than its imports."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "kernels"))
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # holds back no address space that is free
    script = ROOT / "tests/training/limited_worker.py"
    return subprocess.run(
        [sys.executable, str(script), data, str(out), str(micro_batch), str(FREE_MIB)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | malloc,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # two whole runs, on a busy machine
def test_the_micro_batch_named_when_memory_runs_out_fits(tiny_data, tmp_path):
    failed = train(tiny_data, tmp_path / "out", GLOBAL_BATCH)
    assert failed.returncode == 2, failed.stdout
    found = re.search(
        rf"^error: Memory ran out in stage tokenizer on cpu, .* instead of micro-batch {GLOBAL_BATCH} "
        r"pass --tokenizer-stage.micro-batch (\d+), the largest that is computed to fit and shares the global batch\.$",
        failed.stdout,
        re.MULTILINE,
    )
    assert found, failed.stdout
    assert "Traceback" not in failed.stdout
    fits = int(found[1])
    assert GLOBAL_BATCH // 4 <= fits < GLOBAL_BATCH
    done = train(tiny_data, tmp_path / "out", fits)
    assert done.returncode == 0, done.stdout


def test_the_micro_batch_named_shares_the_global_batch_and_leaves_room_for_the_states(tmp_path):
    config = limited_config("data", tmp_path, GLOBAL_BATCH)
    each = clip_bytes(config, "tokenizer")

    def largest(clips: float, world_size: int = 1) -> int | None:
        return largest_micro_batch(config, "tokenizer", world_size, free=int(clips * each / 0.8))

    assert largest(1e6) == 96  # less than the one that failed
    assert largest(65) == 64
    assert largest(64) == 48  # beside parameters, gradients and moments
    assert largest(65, world_size=6) == 32
    assert largest(1) is None


def test_the_micro_batch_named_holds_whole_groups_of_the_contrastive_term(tmp_path):
    config = limited_config("data", tmp_path, GLOBAL_BATCH)
    stage = replace(config.flam_stage, global_batch=48, micro_batch=48, contrastive_weight=1.0, contrastive_clips=16)
    config = replace(config, flam_stage=stage)
    assert largest_micro_batch(config, "flam", 1, free=2**40) == 16  # 24 would fit too


def test_other_errors_pass_as_they_are(tmp_path):
    config = limited_config("data", tmp_path, GLOBAL_BATCH)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), naming_what_fits(config, "flam", 1, CPU):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
def test_where_nothing_smaller_fits_other_remedies_are_named(error, tmp_path):
    config = limited_config("data", tmp_path, GLOBAL_BATCH)
    single = replace(config, flam_stage=replace(config.flam_stage, micro_batch=1))
    with (
        pytest.raises(
            ConfigError, match=r"in stage flam on cpu, .* no micro-batch smaller than 1 .*: choose a smaller"
        ),
        naming_what_fits(single, "flam", 1, CPU),
    ):
        raise error


def test_an_evaluation_that_runs_out_of_memory_names_the_setting_that_bounds_it(tmp_path):
    config = limited_config("data", tmp_path, GLOBAL_BATCH)
    expected = r"in the evaluation on cpu, .* --evaluation\.batch-clips below 8, or choose"
    with pytest.raises(ConfigError, match=expected), naming_batch_clips(config, CPU):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), naming_batch_clips(config, CPU):
        raise RuntimeError("shapes differ")


def test_the_workers_of_a_node_share_its_memory(monkeypatch):
    alone = free_bytes(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(CPU) == pytest.approx(alone / 4, rel=0.2)


def test_only_tensors_that_live_at_once_add_up():
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first[:10]
        second = first + 1
        del first, view
        third = second + 1
    assert live.peak == 8000
    del second, third
