"""A close look at a few training steps: the loop's steps in; a Chrome trace and, on a GPU, a memory snapshot out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function


class StepProfiler:
    """Profiles some steps of one stage in this process.

    Writes `<stage>-rank0.json.gz`, which chrome://tracing and ui.perfetto.dev show; on CUDA also
    `<stage>-rank0-memory.pickle`, for pytorch.org/memory_viz. torch keeps no such history of a CPU's memory: there the
    trace alone tells what each operation allocates.

    Args:
        folder: Where to write.
        stage: Name of the stage.
        steps: The steps to profile, counted from 1; none for no profile.
        device: What the steps run on.
        say: Takes a line that tells what was written.
    """

    def __init__(
        self, folder: Path, stage: str, steps: range, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._folder, self._stage, self._steps, self._say = folder, stage, steps, say
        self._name = f"{steps[0]} to {steps[-1]}" if steps else ""
        self._on_gpu = device.type == "cuda"
        self._profile: profile | None = None

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Profiles what happens inside, if `step` is one of the steps; steps come in rising order."""
        if step not in self._steps:
            if self._steps and step > self._steps[-1] and self._profile is None:
                self._say(f"{self._stage}: steps {self._name} were done before this start, so that none is profiled")
                self._steps = range(0)
            yield
            return
        if self._profile is None:  # the first of them, or the first after a resume
            self._profile = self._start()
        with record_function(f"step {step}"):
            yield
        if step == self._steps[-1]:
            self._write(self._profile)
            self._steps, self._profile = range(0), None  # its events fill memory

    def _start(self) -> profile:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        started = profile(activities=activities, profile_memory=True)
        started.start()
        if self._on_gpu:
            torch.cuda.memory._record_memory_history()
        return started

    def _write(self, running: profile) -> None:
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._stage}-rank0"
        running.export_chrome_trace(f"{path}.json.gz")
        if self._on_gpu:
            torch.cuda.memory._dump_snapshot(f"{path}-memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        self._say(f"{self._stage}: steps {self._name} profiled, see {path}.json.gz")
