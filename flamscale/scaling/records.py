"""What is on record of a study's runs: a run directory in; its state, attempts and numbers out.

run.json says which point of the study a run is, on which commit each attempt was started, and whether it is finished.
"""

import dataclasses
import json
import math
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flamscale.data import storage
from flamscale.data.manifest import Manifest
from flamscale.errors import ConfigError
from flamscale.run_directory import RunDirectory
from flamscale.same_settings import check_same_settings
from flamscale.scaling.axes import Value
from flamscale.scaling.cost import Cost, run_cost
from flamscale.scaling.study import Run
from flamscale.training.metrics import read_records

ENTITIES = "entities.json"
"""Numbers of `evaluate_entities`, beside result.json, where the data have labels."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When an attempt came to what (seconds since 1970, by the clock of its machine)."""

    process_started: float
    began: float
    """Its first instruction, all modules being loaded, and places for all its workers found."""
    ended: float


@dataclass(frozen=True)
class RunRecord:
    """run.json of one run."""

    run: Run

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(Path(self.run.config.out))

    @property
    def _path(self) -> Path:
        return self.directory.root / "run.json"

    def read(self) -> dict[str, Any]:
        """Returns what is on record; nothing finished and no attempt where there is none."""
        if not self._path.exists():
            return {"values": self.run.values, "attempts": [], "finished": False, "seconds": 0.0}
        return json.loads(self._path.read_text())

    def _write(self, record: dict[str, Any]) -> None:
        storage.write_bytes(str(self._path), json.dumps(record, indent=1).encode())

    def begin(self, commit: str) -> int:
        """Records one more attempt, and returns how many there were."""
        record = self.read()
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        record["attempts"].append({"commit": commit, "started": started})
        self._write(record)
        return len(record["attempts"])

    def finish(self, timing: Timing) -> None:
        """Records that the run is finished, and when its last attempt did what."""
        seconds = timing.ended - timing.began
        self._write(self.read() | {"finished": True, "seconds": seconds, "timing": dataclasses.asdict(timing)})

    def stop(self) -> None:
        """Records that the run was given up; no start of the study goes on with it."""
        self._write(self.read() | {"stopped": True})

    @property
    def state(self) -> str:
        """Returns finished, stopped (given up: it needs no more work either) or waiting.

        A finished study may have moved, and its data may be gone.

        Raises:
            ConfigError: the directory of a run that needs no more work holds one of other settings or data.
        """
        record = self.read()
        if not (record["finished"] or record.get("stopped")):
            return "waiting"
        place = f"The run directory {self.directory.root}"
        check_same_settings(self.run.config, self.directory.config.read_text(), place, free=["tokenizer_from"])
        (url,) = self.run.config.data.url
        data, trained_on = Manifest.find(url), self.directory.describe_tokenizer()["manifest_hash"]
        if data is not None and data.identity != trained_on:
            raise ConfigError(
                f"{place} holds a run on another data set (manifest {trained_on[:12]}, that in {url} is "
                f"{data.identity[:12]}); choose another --out, or the data it was trained on."
            )
        return "finished" if record["finished"] else "stopped"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; raises what `state` raises."""
        return self.state == "finished"

    @property
    def last(self) -> dict[str, Any]:
        """The newest record of stage 2's training, empty where there is none."""
        return next(reversed(self._records("train")), {})

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The records of stage 2's validations, the oldest first."""
        return self._records("validation")

    def _records(self, kind: str) -> list[dict[str, Any]]:
        path = self.directory.metrics
        records = read_records(path) if path.exists() else []
        return [item for item in records if (item["stage"], item["kind"]) == ("flam", kind)]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A finished run as fits and figures see it."""

    name: str
    directory: str
    commit: str
    """Of its last attempt."""
    values: dict[str, Value]
    cost: Cost
    loss: float
    """Last validation's prediction loss: Eq. 6's first term."""
    psnr: float
    """Of rollouts on held-out clips (dB)."""
    scores: dict[str, float]
    """Disentanglement, completeness and informativeness (FLAM's form), where the data have labels; completeness is no
    number where there is but one slot."""

    def to_json(self, folder: Path) -> dict[str, Any]:
        """Returns the point as JSON values, its run directory relative to the study's folder, which may move."""
        return dataclasses.asdict(self) | {"directory": str(Path(self.directory).relative_to(folder))}


def read_point(run: Run, tflops_per_s: float) -> Point:
    """Reads a finished run."""
    record = RunRecord(run)
    root = record.directory.root
    entities = root / ENTITIES
    scores = json.loads(entities.read_text())["dci_flam"] if entities.exists() else {}
    return Point(
        name=run.name,
        directory=str(root),
        commit=record.read()["attempts"][-1]["commit"],
        values=run.values,
        cost=run_cost(run, tflops_per_s),
        loss=record.validations[-1]["prediction_loss"],
        psnr=_number(json.loads((root / "result.json").read_text())["rollout"]["psnr"]),
        scores={name: _number(value) for name, value in scores.items()},
    )


def _number(value: float | None) -> float:
    """A result that was read from a file has null for what is no number."""
    return math.nan if value is None else value


def current_commit() -> str:
    """Returns the commit of this checkout, with + if files differ from it; FLAMSCALE_COMMIT's where there is none."""
    folder = Path(__file__).parents[2]
    elsewhere = os.environ.get("FLAMSCALE_COMMIT", "unknown")
    if not (folder / ".git").exists():
        return elsewhere
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or one that refuses another user's checkout
        return elsewhere
    return commit + ("+" if changes else "")
