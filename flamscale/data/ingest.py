"""A source in; a data set out, made in parallel, resumable at any moment, the same bytes whoever does the work.

Three stages over the source's parts, each a map whose finished pieces are on record in OUT/.making: every part is read
once and its episodes encoded; a plan drops what its rules say and gives every episode a split and a tar; the tars are
put together from the encoded pieces. The manifest comes last, then the work folder goes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flamscale.data.episode import Part
from flamscale.data.executors import Executor
from flamscale.data.manifest import Manifest, Shard
from flamscale.data.pieces import PARTS, TARS, Job, encode_part, part_name, read_shard, tar_name, write_tar
from flamscale.data.plan import Candidate, Plan, make_plan
from flamscale.errors import DataError, FlamError

Progress = Callable[[str, Iterable[Any], int, int], Iterable[Any]]
"""(name of the stage, its results as they come, pieces already done, pieces in all) -> the same results."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A data set that was made, and all that is known about the making."""

    manifest: Manifest
    plan: Plan
    faults: dict[str, str]
    """Why each unusable part was left out, by its name."""
    tallies: dict[str, int]
    """What the parts counted."""
    num_parts: int
    """Parts of the source (count)."""
    num_frames_now: int
    """Frames of the episodes encoded since this start; the others were on record."""


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """Makes a data set, or goes on where an earlier start with the same job and arguments ended."""

    job: Job
    """What to make."""
    name: str
    """As in `Manifest`."""
    kind: str
    """The manifest's source."""
    arguments: dict[str, Any]
    """As in `Manifest`."""
    executor: Executor
    """Who does the work."""
    max_bad_fraction: float
    """Share of parts that may be unusable."""
    progress: Progress
    """Shows how far each stage is."""

    def run(self, finish: Callable[[Outcome], None]) -> Manifest:
        """Makes the data set; calls `finish` when the tars are in place, before the manifest is written.

        Raises:
            DataError: too many parts are unusable, or no episode is left.
            ConfigError: `out` holds a data set half made with other arguments.
        """
        parts = self.job.source.parts()
        inputs = hashlib.sha256(repr(parts).encode()).hexdigest()
        self.job.folder.begin({"arguments": self.arguments, "inputs": inputs})
        known = self.job.folder.records(PARTS)
        try:
            records = self._encode(parts, known)
            candidates = [Candidate(**row) for record in records for row in record["samples"]]
            plan = make_plan(candidates, self.job.rules, self.job.shard_bytes)
        except FlamError:
            if not any(record["samples"] for record in known.values()):
                self.job.folder.remove()  # nothing that another start could go on from
            raise
        first = plan.kept[0]
        manifest = Manifest(
            name=self.name,
            source=self.kind,
            fps=first.fps,
            height=first.height,
            width=first.width,
            arguments=self.arguments,
            shards=self._assemble(plan),
            url=self.job.out,
        )
        finish(self._outcome(manifest, plan, records))
        manifest.save(self.job.out)
        self.job.folder.remove()
        return manifest

    def _encode(self, parts: Sequence[Part], known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the records of all parts in order, and adds the missing ones to `known`."""
        todo = [part for part in parts if part_name(part) not in known]
        faults = [record["fault"] for record in known.values() if record["fault"]]
        self._check(faults, len(parts))
        results = self.executor(partial(encode_part, self.job), todo)
        for record in self.progress("reading and encoding", results, len(known), len(parts)):
            known[record["name"]] = record | {"new": True}
            if record["fault"]:
                faults.append(record["fault"])
                self._check(faults, len(parts))
        return [known[part_name(part)] for part in parts]

    def _check(self, faults: Sequence[str], num_parts: int) -> None:
        """Raises DataError if too many parts are unusable."""
        if faults and len(faults) == num_parts:
            raise DataError(faults[0] if num_parts == 1 else f"None of {num_parts} inputs can be used. {faults[0]}")
        if len(faults) > self.max_bad_fraction * num_parts:
            raise DataError(
                f"Expected at most {self.max_bad_fraction:.0%} of {num_parts} inputs to be unusable, and "
                f"{len(faults)} are already; look at them, or raise --max-bad-fraction. {faults[0]}"
            )

    def _assemble(self, plan: Plan) -> tuple[Shard, ...]:
        """Puts the tars together and returns their rows, in the plan's order."""
        records = self.job.folder.records(TARS)
        todo = [tar for tar in plan.tars.items() if tar_name(tar[0]) not in records]
        results = self.executor(partial(write_tar, self.job), todo)
        for record in self.progress("writing tars", results, len(records), len(plan.tars)):
            records[record["name"]] = record
        return tuple(read_shard(records[tar_name(path)]) for path in plan.tars)

    def _outcome(self, manifest: Manifest, plan: Plan, records: Sequence[dict[str, Any]]) -> Outcome:
        tallies: Counter[str] = Counter()
        for record in records:
            tallies.update(record["tallies"])
        return Outcome(
            manifest=manifest,
            plan=plan,
            faults={record["input"]: record["fault"] for record in records if record["fault"]},
            tallies=dict(tallies),
            num_parts=len(records),
            num_frames_now=sum(row["frames"] for record in records if "new" in record for row in record["samples"]),
        )
