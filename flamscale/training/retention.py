"""Which checkpoints are kept: steps in, those to drop out; and how a checkpoint's folder is called and deleted."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

META = "meta.json"
"""Description of a checkpoint; written last, it commits the folder it lies in."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept of a stage's checkpoints."""

    newest: int
    """Newest ones kept (count)."""
    every: int = 0
    """Those at multiples of this many steps, but not at step 0, are kept for good (count); 0 for none."""

    def drops(self, steps: Iterable[int]) -> set[int]:
        """Returns the steps whose checkpoints are not kept."""
        old = sorted(steps)[: -self.newest]
        return {step for step in old if not (self.every and step) or step % self.every}


def folder_name(step: int) -> str:
    """Returns the name of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """Returns the step of a checkpoint's folder; None if the name is not one of `folder_name`."""
    found = re.fullmatch(r"step-(\d{6,})", name)
    return int(found[1]) if found else None


def delete(folder: Path) -> None:
    """Deletes a checkpoint; a deletion that is cut short leaves nothing that looks like a whole one."""
    partial = folder.with_suffix(".partial")
    folder.rename(partial)
    shutil.rmtree(partial)
