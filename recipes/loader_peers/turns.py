"""Contestants take turns at one job, each time in a fresh process of its own environment."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from loader_peers.contest import Job
from loader_peers.environments import Contestant, environment, make

BARE_LOOP = "bare loop"
_TIMEOUT_S = 60


class Contest:
    """Who takes part, and what has been measured so far.

    Args:
        folder: where the data lie, and copies of what lies elsewhere.
        environments: folder of the peers' environments.
        contestants: by name.

    Attributes:
        missing: why a contestant cannot take part.
        settings: what each is set to.
        rows: figures, round by round.
    """

    def __init__(self, folder: Path, environments: Path, contestants: dict[str, Contestant]) -> None:
        self.folder = folder
        self.pythons: dict[str, str] = {}
        self.contestants = dict(contestants)
        self.missing: dict[str, str] = {}
        self.settings: dict[str, dict] = {}
        self.rows: list[dict] = []
        for name, contestant in contestants.items():
            self.pythons[name], reason = make(environments.resolve(), contestant)
            if reason:
                self.missing[name] = reason
                del self.contestants[name]

    def write(self, data: str, content: str) -> None:
        """Writes the data set `data` in the formats of all peers."""
        for name, contestant in self.contestants.items():
            if contestant.form != "tar":
                arguments = [contestant.form, str(self.folder / data), str(self.folder / f"{data}-{contestant.form}")]
                done = self._call(name, "write_peers", [*arguments, content])
                if done.returncode:
                    raise RuntimeError(f"{name} cannot write its data:\n{done.stderr[-2000:]}")

    def measure(self, name: str, job: Job, data: str) -> dict:
        """Returns a contestant's figures; its error, where it gives up."""
        contestant = self.contestants[name]
        url = data if contestant.form == "tar" else f"{data}-{contestant.form}"
        with tempfile.TemporaryDirectory(dir=self.folder) as local:
            job = replace(job, url=url, local=local if job.local else "")
            done = self._call(name, contestant.module, [json.dumps(asdict(job))])
        if done.returncode:  # a result too
            return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        self.settings[name] = figures.pop("settings")
        return figures

    def add(
        self, what: str, job: Job, data: str, names: Sequence[str], rounds: int = 1, limit: str | None = None
    ) -> None:
        """Measures contestants in turns, and notes a row for each.

        Args:
            what: name of the rows.
            job: what each does.
            data: folder or s3:// URL of the data.
            names: contestants.
            rounds: turns of each (count).
            limit: where the bare loop reads instead, which knows local disk only.
        """
        figures: dict[str, list[dict]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, done in figures.items():
                done.append(self.measure(name, job, limit if limit and name == BARE_LOOP else data))
        for name, done in figures.items():
            row = {"what": what, "processes": job.num_processes, "contestant": name, "rounds": done}
            self.rows.append(row)
            print(json.dumps(row), flush=True)

    def _call(self, name: str, module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        # Not as a script: the processes of some loaders would import it again.
        command = [self.pythons[name], "-c", f"import {module}; {module}.main()", *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 1, "", f"nothing came in {_TIMEOUT_S} s")
