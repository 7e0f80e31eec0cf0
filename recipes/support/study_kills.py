"""A study under kills: its runs and nodes in; when which process was killed, and what lay between two runs, out."""

import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import psutil
from support.nodes import Nodes

from flamscale.scaling.records import RunRecord, Timing
from flamscale.scaling.study import Run
from flamscale.training.metrics import read_records

_POLL_S = 0.2


class Killer:
    """Kills processes that train, inside a `with` block, each after a random number of finished runs.

    Attributes:
        kills: when a process was killed (seconds since 1970).
    """

    def __init__(self, nodes: Nodes, runs: Sequence[Run], count: int, seed: int) -> None:
        self.kills: list[float] = []
        self._nodes, self._runs = nodes, runs
        self._chance = random.Random(seed)
        self._after = sorted(self._chance.sample(range(len(runs) - nodes.count), count))
        self._thread = threading.Thread(target=self._work)
        self._over = threading.Event()

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        for num_finished in self._after:
            while sum(RunRecord(run).read()["finished"] for run in self._runs) < num_finished or not self._kill():
                if self._over.wait(_POLL_S):
                    return

    def _kill(self) -> bool:
        """Kills a random process that trains, after a random time; False if there is none then."""
        time.sleep(self._chance.uniform(0, 5))
        training = [process for process in self._nodes.processes() if _trains(process)]
        if not training:
            return False
        self._chance.choice(training).kill()
        self.kills.append(time.time())
        return True


def _trains(process: psutil.Process) -> bool:
    try:
        return process.is_running() and "ray::train" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@dataclass(frozen=True)
class Overhead:
    """Time from a device's becoming free to the first instruction of the run it got next, in parts (seconds)."""

    submitting_s: float
    """Until the driver has handed the run to Ray."""
    scheduling_s: float
    """From then until there is a process for it; 0 where Ray had begun to start one before."""
    starting_s: float
    """From then until its first instruction: Ray reaches the process, Python starts, and imports its modules."""


def overheads(runs: Sequence[Run], kills: Sequence[float]) -> list[Overhead]:
    """Returns the overhead of each run whose last attempt followed another one's end.

    An attempt is handed over as soon as the driver sees an end: the device it got is taken for that of the last end
    before it.
    """
    records = [RunRecord(run).read() for run in runs]
    timings = [Timing(**record["timing"]) for record in records]
    submitted = [datetime.fromisoformat(record["attempts"][-1]["started"]).timestamp() for record in records]
    ends = sorted([*(timing.ended for timing in timings), *kills])
    found = []
    for timing, handed_over in zip(timings, submitted, strict=True):
        before = [end for end in ends if end <= handed_over]
        if before:
            there = max(handed_over, timing.process_started)
            found.append(Overhead(handed_over - before[-1], there - handed_over, timing.began - there))
    return found


def summary(found: Sequence[Overhead]) -> dict[str, dict[str, float]]:
    """Returns median and largest value of each part, and of their sum."""
    rows = [asdict(one) | {"total_s": sum(asdict(one).values())} for one in found]
    return {
        name: {"median": statistics.median(row[name] for row in rows), "most": max(row[name] for row in rows)}
        for name in rows[0]
    }


def problems(runs: Sequence[Run]) -> list[str]:
    """Returns what was lost or done twice."""
    found = []
    for run in runs:
        record = RunRecord(run)
        path = record.directory.metrics
        records = read_records(path) if path.exists() else []
        steps = [item["step"] for item in records if (item["stage"], item["kind"]) == ("flam", "train")]
        if not record.read()["finished"]:
            found.append(f"{run.name} is not finished")
        elif steps != list(range(1, run.config.flam_stage.num_steps + 1)):
            found.append(f"{run.name} has recorded the steps {steps}")
    return found
