"""The two stages of training: batches, optimiser, losses, and when to log, validate and save."""

from dataclasses import dataclass
from typing import Literal

from flamscale.config.checks import require
from flamscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of training: batches, optimiser, and how often to log, validate and save."""

    num_steps: int = 100_000
    """Optimiser steps (count)."""
    global_batch: int = 32
    """Clips in one optimiser step, over all workers (count); the same whatever the world size."""
    micro_batch: int = 32
    """Clips a worker puts through the model at once (count); accumulation makes up the rest of its share."""
    clip_frames: int = 8
    """Frames T of one clip (count)."""
    frame_stride: int = 1
    """Distance between successive frames of a clip (source frames)."""
    clip_hop: int = 1
    """Distance between the first frames of successive clips of one sample (source frames)."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW (a step)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or cosine down to min_lr_ratio at the last step."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises from 0 (count)."""
    min_lr_ratio: float = 0.05
    """Learning rate at the end of the cosine schedule, over its peak (ratio)."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on matrices only (a step, times the learning rate)."""
    grad_clip: float = 1.0
    """Largest global gradient norm (L2); larger gradients are scaled down to it; 0 leaves them as they are."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; optimiser states stay fp32."""
    log_every: int = 50
    """Steps between two records in metrics.jsonl (count)."""
    validate_every: int = 1_000
    """Steps between two passes over validation clips (count); 0 for never."""
    validation_clips: int = 256
    """Clips of one validation pass, over all workers (count); rounded up to whole global batches, see num_clips of
    the validation records."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints (count)."""
    spike_factor: float = 0.0
    """A loss this many times the median of the last 200 counts as bad as one that is not finite (ratio); 0 for never.
    Training then goes back to the newest checkpoint and leaves out the data before the bad step."""
    max_rewinds: int = 3
    """How often a stage may go back so before it ends with an error (count)."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept (count)."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept for good (count); 0 for none."""

    def __post_init__(self) -> None:
        for name in (
            "num_steps", "global_batch", "micro_batch", "clip_frames", "frame_stride", "clip_hop",
            "log_every", "validation_clips", "checkpoint_every", "keep_checkpoints",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= 1, f"{name.replace('_', '-')} of a stage must be at least 1, got {value}.")
        for name in (
            "learning_rate",
            "warmup_steps",
            "weight_decay",
            "grad_clip",
            "validate_every",
            "keep_every",
            "max_rewinds",
        ):
            value = getattr(self, name)
            require(value >= 0, f"{name.replace('_', '-')} of a stage must be 0 or more, got {value}.")
        require(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"spike-factor of a stage must be 0 or above 1, got {self.spike_factor}.",
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerStageConfig(StageConfig):
    """Stage 1: pixel MSE, optionally LPIPS."""

    clip_frames: int = 1
    """Frames T of one clip (count); 1 trains on single frames."""
    global_batch: int = 64
    """Clips in one optimiser step, over all workers (count); the same whatever the world size."""
    moving_weight: float = 0.0
    """Extra weight on pixels that differ from the median frame (times the plain weight); 0 is the plain pixel MSE."""
    encoder_lr_ratio: float = 1.0
    """Learning rate of the encoder over the rest's (ratio); 0.1 keeps codes from merging early on small scenes."""
    lpips_weight: float = 0.0
    """Weight of the LPIPS term (1 in the paper); needs lpips_weights, 0 leaves the term out."""
    lpips_weights: str = ""
    """File of LPIPS weights (.safetensors, VGG16 or AlexNet), made by recipes/convert_lpips.py; never downloaded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.moving_weight >= 0, f"moving-weight must be 0 or more, got {self.moving_weight}.")
        require(self.lpips_weight >= 0, f"lpips-weight must be 0 or more, got {self.lpips_weight}.")
        require(
            self.lpips_weight == 0 or self.lpips_weights != "",
            f"lpips-weight is {self.lpips_weight}, which needs a file of LPIPS weights, and lpips-weights names none; "
            "make one with recipes/convert_lpips.py, or set lpips-weight to 0.",
        )
        require(
            self.lpips_weight > 0 or self.lpips_weights == "",
            f"lpips-weights {self.lpips_weights} cannot take effect with lpips-weight 0; leave it out, or pass "
            "--tokenizer-stage.lpips-weight 1.",
        )


@dataclass(frozen=True, kw_only=True)
class FlamStageConfig(StageConfig):
    """Stage 2: Eq. 6 with beta annealing and multi-step prediction.

    Eq. 6 as written here: the squared error is a mean over clips, frames, tokens and channels, the KL a mean over
    clips and frames of its sum over factors and action channels. Beta therefore lies N*C below a summed Eq. 6's.
    """

    beta: float = 1e-6
    """Weight of the KL in Eq. 6 after warm-up (loss units a nat)."""
    beta_warmup_start: int = 0
    """Step at which beta starts to rise from 0 (count)."""
    beta_warmup_steps: int = 1
    """Steps over which beta rises linearly to its value (count)."""
    predict_steps: int = 1
    """Prediction depth P: the loss averages predictions 1 to P steps ahead, each fed with the one before (count)."""
    reconstruction_weight: float = 0.0
    """Weight of a term beyond Eq. 6: the error of each frame drawn from its own slots over the static scene (ratio)."""
    contrastive_weight: float = 0.0
    """Weight of a term beyond Eq. 6: each slot shall be like itself in the next frame and unlike all others (loss units
    a nat; SlotContrast, arXiv 2412.14295); 0 leaves it out."""
    contrastive_clips: int = 8
    """Clips whose slots that term tells from one another (count); micro-batch is a multiple of it. Without effect on
    others."""
    slot_cost: float = 0.0
    """Weight of a term beyond Eq. 6: the expected number of slots that a clip keeps, with flam.adaptive-slots (loss
    units a slot); it rises as beta does; 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "reconstruction_weight", "contrastive_weight", "slot_cost"):
            value = getattr(self, name)
            require(value >= 0, f"{name.replace('_', '-')} must be 0 or more, got {value}.")
        require(self.beta_warmup_start >= 0, f"beta-warmup-start must be 0 or more, got {self.beta_warmup_start}.")
        require(self.beta_warmup_steps >= 1, f"beta-warmup-steps must be at least 1, got {self.beta_warmup_steps}.")
        require(self.contrastive_clips >= 1, f"contrastive-clips must be at least 1, got {self.contrastive_clips}.")
        require(
            self.contrastive_weight == 0 or self.micro_batch % self.contrastive_clips == 0,
            f"micro-batch must be a multiple of contrastive-clips = {self.contrastive_clips}, got {self.micro_batch}; "
            "change one of them, or set contrastive-weight to 0.",
        )
        require(
            1 <= self.predict_steps < self.clip_frames,
            f"predict-steps must lie between 1 and clip-frames - 1 = {self.clip_frames - 1}, got {self.predict_steps}.",
        )


def check_batch_split(stage: StageConfig, world_size: int, name: str) -> None:
    """Raises ConfigError unless global_batch = world_size x micro_batch x a whole number of accumulation steps."""
    unit = stage.micro_batch * world_size
    if stage.global_batch % unit:
        below = stage.global_batch // unit * unit
        nearest = " or ".join(str(size) for size in (below, below + unit) if size)
        fewer = [count for count in world_sizes(stage) if count < world_size]
        more = [count for count in world_sizes(stage) if count > world_size]
        workers = " or ".join(map(str, fewer[-1:] + more[:1]))
        raise ConfigError(
            f"{name}.global-batch must be a multiple of micro-batch x workers = {stage.micro_batch} x {world_size}, "
            f"got {stage.global_batch}; the nearest possible: {nearest}"
            f"{f'; of workers: {workers}' if workers else ''}."
        )


def world_sizes(stage: StageConfig) -> list[int]:
    """Returns the numbers of workers that can share the global batch in whole micro-batches, in rising order."""
    shares, rest = divmod(stage.global_batch, stage.micro_batch)
    return [] if rest else [count for count in range(1, shares + 1) if shares % count == 0]
