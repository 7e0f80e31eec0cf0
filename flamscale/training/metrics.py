"""Records of a run: loss terms and times of every step in, metrics.jsonl and TensorBoard events out.

A record is one JSON object a line. Training writes `"kind": "train"` with means over the steps since the record before
and `losses`, the loss of each of those steps; validation writes `"kind": "validation"`, going back from a bad loss
`"kind": "rewind"`.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamscale.config import StageConfig
from flamscale.training.engine import Engine

PHASES = ("data_wait_s", "forward_backward_s", "optimizer_s", "checkpoint_s", "validation_s")

Observer = Callable[[Mapping[str, Any]], None]
"""Sees every record right after it was written."""


class MetricsRecorder:
    """Appends records to metrics.jsonl and TensorBoard (a folder a stage), and hands them to observers.

    Does nothing where it is not enabled.
    """

    def __init__(self, folder: Path, enabled: bool = True, observers: Sequence[Observer] = ()) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.enabled = enabled
        self._observers = observers
        self._writers: dict[str, Any] = {}

    def resume(self, stage: str, step: int) -> None:
        """Drops what `stage` recorded after `step`, and a line that a killed run left unfinished."""
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if not _is_after(line, stage, step)]
            temporary = self.path.with_suffix(".partial")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, self.path)
        from torch.utils.tensorboard import SummaryWriter  # a second to import: only where it is used

        if stage in self._writers:  # training went back
            self._writers[stage].close()
        folder = self.path.parent / "tensorboard" / stage
        self._writers[stage] = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Records one step of a stage that `resume` opened; the keys stage, step and kind say which."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        writer = self._writers[record["stage"]]
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        writer.flush()
        for observe in self._observers:
            observe(record)

    def close(self) -> None:
        """Ends TensorBoard's writer threads."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics.jsonl, in the order of writing, without a last line still being written."""
    return [json.loads(line) for line in Path(path).read_text().splitlines(keepends=True) if line.endswith("\n")]


def _is_after(line: str, stage: str, step: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return True
    return record["stage"] == stage and record["step"] > step


class Meter:
    """Gathers loss terms on the device and times on the host until the next record.

    Times are the host's: on a GPU forward, backward and optimiser run behind it, and only `step_s` is the true total.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._totals: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to one of PHASES; a profile shows it under that name."""
        started = time.perf_counter()
        with torch.profiler.record_function(name):
            yield
        self._seconds[name] += time.perf_counter() - started

    def add_step(self, micro_batches: list[dict[str, Tensor]], grad_norm: Tensor) -> None:
        """Takes one optimiser step's loss terms, still on the device."""
        share = 1.0 / len(micro_batches)
        for name in micro_batches[0]:
            value = torch.stack([metrics[name] for metrics in micro_batches]).sum() * share
            self._totals[name] = self._totals[name] + value if name in self._totals else value
            if name == "loss":
                self._losses.append(value)
        self._norms.append(grad_norm)

    def flush(self, engine: Engine, config: StageConfig, counts: Mapping[str, int]) -> dict[str, Any]:
        """Averages everything over steps and processes, and starts anew; the only place that waits for the device.

        Args:
            engine: has the other processes.
            config: tells how many clips and frames a step takes.
            counts: what this process has counted since it started; summed over processes.
        """
        num_steps = len(self._losses)
        values: dict[str, Tensor | float] = {name: total / num_steps for name, total in self._totals.items()}
        values |= {f"losses/{index:06d}": loss for index, loss in enumerate(self._losses)}
        values |= {f"norms/{index:06d}": norm for index, norm in enumerate(self._norms)}
        values |= {name: float(count) for name, count in counts.items()}
        values |= {f"memory/{rank:06d}": 0.0 for rank in range(engine.world_size)}
        values[f"memory/{engine.rank:06d}"] = memory_peak_mib(engine.device)
        values |= {name: seconds / num_steps for name, seconds in self._seconds.items()}
        means = engine.mean(values)
        losses = [means.pop(name) for name in list(means) if name.startswith("losses/")]
        norms = [means.pop(name) for name in list(means) if name.startswith("norms/")]
        memory = [means.pop(name) * engine.world_size for name in list(means) if name.startswith("memory/")]
        elapsed_s = time.perf_counter() - self._started
        step_s = elapsed_s / num_steps - means["checkpoint_s"] - means["validation_s"]
        for name in ("checkpoint_s", "validation_s"):
            means[name] *= num_steps
        for name in counts:
            means[name] = round(means[name] * engine.world_size)
        self._reset()
        return means | {
            "grad_norm": sum(norms) / num_steps,
            "step_s": step_s,
            "data_wait_share": means["data_wait_s"] / step_s,
            "clips_per_s": config.global_batch / step_s,
            "frames_per_s": config.global_batch * config.clip_frames / step_s,
            "memory_peak_mib": max(memory),  # of all processes
            "losses": losses,
            "grad_norms": norms,
        }


def memory_peak_mib(device: torch.device) -> float:
    """Returns this process's peak memory (MiB): the device's on a GPU, the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
