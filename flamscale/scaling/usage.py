"""What a study took so far: the devices at each moment in; hours of all its drivers, kept in its folder, out."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from flamscale.data import storage


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of all drivers of a study together."""

    device: str = ""
    """CPU or GPU."""
    total_s: float = 0.0
    """Time at which a driver was at work, data sets, tokenizers and latents included (seconds)."""
    device_s: float = 0.0
    """The same, times the devices of the cluster (seconds)."""
    held_s: float = 0.0
    """Part of it for which runs held devices, the start of their processes included (seconds)."""

    def __str__(self) -> str:
        held = f"; runs held {self.held_s / self.device_s:.0%} of it" if self.device_s else ""
        return f"{_hours(self.total_s)} in all, {_hours(self.device_s)} of {self.device} time{held}"


def read_usage(folder: Path) -> Usage | None:
    """Returns what the study in a folder took so far, None where no driver was at work."""
    path = _path(folder)
    return Usage(**json.loads(path.read_text())) if path.exists() else None


class Meter:
    """Counts one driver's time from now on, after that of the drivers before it.

    Args:
        folder: the study's.
        device: CPU or GPU.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self._path = _path(folder)
        self.usage = dataclasses.replace(read_usage(folder) or Usage(), device=device)
        """Up to the last count."""
        self._counted = time.monotonic()

    def count(self, held: float, devices: float) -> None:
        """Counts the time since the last count; a driver that is killed loses what came after.

        Args:
            held: devices that runs held in it (count).
            devices: devices that the cluster had (count).
        """
        now = time.monotonic()
        passed_s, self._counted = now - self._counted, now
        self.usage = dataclasses.replace(
            self.usage,
            total_s=self.usage.total_s + passed_s,
            device_s=self.usage.device_s + passed_s * devices,
            held_s=self.usage.held_s + passed_s * held,
        )
        storage.write_bytes(str(self._path), json.dumps(dataclasses.asdict(self.usage), indent=1).encode())


def _path(folder: Path) -> Path:
    return folder / "usage.json"


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
