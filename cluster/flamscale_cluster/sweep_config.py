"""Where a study's runs work; imports nothing heavy."""

from dataclasses import dataclass

from flamscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Where a study's runs work, and how often they may fail."""

    ray: str = ""
    """Ray cluster at HOST:PORT, or auto for the one this process is a job of; empty starts one of this machine."""
    device_share: float = 1.0
    """Share of a GPU, or number of CPU cores, of each run of one worker (0.25: four runs on one GPU)."""
    max_retries: int = 2
    """How often a run that fails is started again (count)."""
    early_stop: float = 0.0
    """Share of its steps from which a run is stopped where its loss is behind those of the others on its data (0 to 1);
    0 stops none. Laws need their bad runs too: leave it at 0 where one is to be fitted."""

    def __post_init__(self) -> None:
        if self.device_share <= 0:
            raise ConfigError(f"device-share must be above 0, got {self.device_share}.")
        if self.max_retries < 0:
            raise ConfigError(f"max-retries must be 0 or more, got {self.max_retries}.")
        if not 0 <= self.early_stop < 1:
            raise ConfigError(f"early-stop must be 0 or more and below 1, got {self.early_stop}.")
