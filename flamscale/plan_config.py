"""What recipes/plan.py is asked: the GPUs to plan for, and what to assume of them; imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from flamscale.config import StageConfig, check_batch_split, world_sizes
from flamscale.errors import ConfigError
from flamscale.training.devices import GPUS

DEFAULT_MFU = 0.3
MOST_GPUS = 1_024


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Question and assumptions; nothing of a plan is measured, but what is given here as measured."""

    stage: Literal["tokenizer", "flam"] = "flam"
    """Stage to plan."""
    gpu: str = "h100-sxm"
    """Kind of GPU: a100-40gb, a100-80gb, b200, h100-nvl, h100-pcie, h100-sxm, h200, h200-nvl, l40s or rtx4090."""
    num_gpus: tuple[int, ...] = ()
    """Numbers of GPUs (counts); if not given, the powers of two up to 1,024 that can share the global batch."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    mfu: float = 0.0
    """Assumed model FLOP utilisation (0 to 1); 0.3 if neither this nor clips_per_s is given."""
    clips_per_s: float = 0.0
    """Measured rate of one GPU (clips/s) to go by in place of a utilisation; 0 for none."""
    clip_kib: float = 0.0
    """Size of the file a clip is read from (KiB); 0 takes it from the data set's manifest, where one is given."""
    num_clips: int = 0
    """Clips to train on (count); 0 for the stage's own steps x global batch."""
    storage_mib_per_s: float = 1_024.0
    """Assumed rate at which all workers together write a checkpoint (MiB/s)."""
    out: str = ""
    """File to write the plan to as well (JSON); empty for none."""

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ConfigError(f"gpu must be one of {', '.join(GPUS)}, got {self.gpu}.")
        if self.mfu and self.clips_per_s:
            raise ConfigError(
                f"mfu {self.mfu} cannot take effect beside clips-per-s {self.clips_per_s}, which tells the step time "
                "already; leave one of them out."
            )
        if not 0 <= self.mfu <= 1:
            raise ConfigError(f"mfu must lie between 0 and 1, got {self.mfu}.")
        for name in ("clips_per_s", "clip_kib", "num_clips"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}.")
        if self.storage_mib_per_s <= 0:
            raise ConfigError(f"storage-mib-per-s must be above 0, got {self.storage_mib_per_s}.")
        if any(count < 1 for count in self.num_gpus):
            raise ConfigError(f"num-gpus must each be at least 1, got {' '.join(map(str, self.num_gpus))}.")

    def gpu_counts(self, stage: StageConfig) -> tuple[int, ...]:
        """Returns the numbers of GPUs to plan for.

        Raises:
            ConfigError: one of those given cannot share the stage's global batch.
        """
        for count in self.num_gpus:
            check_batch_split(stage, count, f"{self.stage}-stage")
        powers = tuple(count for count in world_sizes(stage) if count <= MOST_GPUS and count.bit_count() == 1)
        return self.num_gpus or powers
