"""The main job as a whole: data, models, stages, evaluation, and what it runs on."""

import re
from dataclasses import dataclass, field
from typing import Literal

from flamscale.config.checks import require
from flamscale.config.data import DataConfig
from flamscale.config.models import FlamConfig, MonolithicConfig, TokenizerConfig
from flamscale.config.stages import FlamStageConfig, TokenizerStageConfig, check_batch_split, world_sizes
from flamscale.errors import ConfigError

MIN_FVD_FRAMES = 9
"""Frames of a clip that I3D's pooling leaves something of (count)."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Rollouts on held-out clips at the end of the job."""

    num_clips: int = 64
    """Held-out clips to roll out (count)."""
    context_frames: int = 2
    """True frames given before the rollout starts (count)."""
    rollout_steps: int = 10
    """Frames predicted autoregressively (count)."""
    frame_stride: int = 1
    """Distance between successive frames (source frames)."""
    num_pictures: int = 4
    """Clips drawn in rollout.gif and the contact sheet (count)."""
    batch_clips: int = 8
    """Clips put through the models at once (count): bounds the memory, changes no number."""
    lpips_weights: str = ""
    """File of LPIPS weights (.safetensors), made by recipes/convert_lpips.py; empty leaves LPIPS out."""
    fvd_weights: str = ""
    """File of I3D weights (.safetensors), made by recipes/convert_i3d.py; empty leaves FVD out."""

    def __post_init__(self) -> None:
        for name in ("num_clips", "context_frames", "rollout_steps", "frame_stride", "num_pictures", "batch_clips"):
            value = getattr(self, name)
            require(value >= 1, f"evaluation.{name.replace('_', '-')} must be at least 1, got {value}.")
        require(
            not self.fvd_weights or self.rollout_steps >= MIN_FVD_FRAMES,
            f"evaluation.rollout-steps must be at least {MIN_FVD_FRAMES} for FVD, got {self.rollout_steps}; predict "
            "more steps, or leave out fvd-weights.",
        )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Ray workers and DeepSpeed ZeRO."""

    num_workers: int = 2
    """Worker processes, one device each (count)."""
    min_workers: int = 0
    """Fewest workers to train with while the cluster has no place for num_workers (count): a run goes on with as many
    as find a place and can share the global batch, and grows again when there is room; 0 for num_workers always."""
    grow_after_s: float = 120.0
    """Time there must have been room for more workers before a run of fewer starts anew with them (seconds)."""
    accelerator: Literal["cpu", "gpu"] = "cpu"
    """What each worker computes on: cpu (gloo) or gpu (NCCL)."""
    cpus_per_worker: int = 1
    """CPU cores Ray reserves for each worker, also its torch threads (count)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: 0 nothing, 1 optimiser states, 2 also gradients, 3 also parameters sharded."""
    max_failures: int = 3
    """Worker failures in one submission that are answered by going on from the newest checkpoint (count)."""
    hang_timeout_s: float = 1800.0
    """Time without a finished step after which a worker writes where its threads stand into the run directory and ends,
    to be started anew (seconds); 0 for never."""
    address: str = "auto"
    """Ray cluster to join: auto (the one this job runs on) or host:port."""
    local_out: bool = False
    """Whether each node has an --out of its own that the others do not see: checkpoints then lie at --copy-to alone,
    to which each node uploads its part."""
    peak_tflops: float = 0.0
    """Peak of one device at the stages' precision (TFLOP/s), for MFU in the records; 0 for what a GPU's name tells."""

    def __post_init__(self) -> None:
        require(self.num_workers >= 1, f"cluster.num-workers must be at least 1, got {self.num_workers}.")
        require(self.min_workers >= 0, f"cluster.min-workers must be 0 or more, got {self.min_workers}.")
        require(self.grow_after_s >= 0, f"cluster.grow-after-s must be 0 or more, got {self.grow_after_s}.")
        require(self.max_failures >= 0, f"cluster.max-failures must be 0 or more, got {self.max_failures}.")
        require(self.hang_timeout_s >= 0, f"cluster.hang-timeout-s must be 0 or more, got {self.hang_timeout_s}.")
        require(self.cpus_per_worker >= 1, f"cluster.cpus-per-worker must be at least 1, got {self.cpus_per_worker}.")
        require(self.peak_tflops >= 0, f"cluster.peak-tflops must be 0 or more, got {self.peak_tflops}.")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A close look at a few steps of each stage, on the first worker; it changes nothing that is learned."""

    steps: str = ""
    """First and last step to profile, counted as in the records (20-22); empty for none. Each step adds megabytes."""

    def __post_init__(self) -> None:
        match = re.fullmatch(r"(\d+)-(\d+)", self.steps)
        require(
            not self.steps or (match is not None and 1 <= int(match[1]) <= int(match[2])),
            f"profile.steps must be the first and last step, as in 20-22, from 1 up, got {self.steps}.",
        )

    @property
    def step_range(self) -> range:
        """The steps to profile, counted from 1."""
        first, last = map(int, self.steps.split("-")) if self.steps else (1, 0)
        return range(first, last + 1)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The main job: stage 1 (tokenizer), stage 2 (FLAM), evaluation."""

    out: str = "runs/pretrain"
    """Run directory: everything the job writes goes here; a directory with checkpoints in it is resumed. Environment
    variables in it ('$TMPDIR/run') are those of each node."""
    copy_to: str = ""
    """URL of a folder (s3://bucket/runs/name) that the run directory is copied to behind training: checkpoints,
    tokenizer, records and results; what a run directory lacks is brought back from there."""
    seed: int = 0
    """Seed of initial weights, data order and sampling (0 to 2**63 - 1)."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer_from: str = ""
    """Run directory, or model/ folder, whose trained tokenizer this run uses, on whichever data it was trained; stage 1
    is then left out."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenizer_stage: TokenizerStageConfig = field(default_factory=TokenizerStageConfig)
    flam: FlamConfig | MonolithicConfig = field(default_factory=FlamConfig)
    flam_stage: FlamStageConfig = field(default_factory=FlamStageConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed must lie between 0 and 2**63 - 1, got {self.seed}.")
        for name in ("tokenizer_stage", "flam_stage"):
            check_batch_split(getattr(self, name), self.cluster.num_workers, name)
        self._check_elastic()
        require(
            bool(self.copy_to) or not self.cluster.local_out,
            "cluster.local-out needs an object store for the checkpoints, got none; pass --copy-to s3://bucket/folder.",
        )
        require(
            self.flam.history_frames < self.flam_stage.clip_frames,
            f"flam.history-frames must be less than flam-stage.clip-frames, or rollouts would look back further than "
            f"training did; got {self.flam.history_frames} and {self.flam_stage.clip_frames}.",
        )
        lpips_weight = self.tokenizer_stage.lpips_weight
        require(
            self.tokenizer.decoder != "flow" or lpips_weight == 0,
            f"tokenizer-stage.lpips-weight {lpips_weight} cannot take effect with tokenizer.decoder flow, which is "
            "trained by its velocity's error alone; set it to 0.",
        )
        self._check_slot_terms()
        for name in ("flam_stage", "evaluation"):
            stride = getattr(self, name).frame_stride
            require(
                self.flam.action != "true" or stride == 1,
                f"{name.replace('_', '-')}.frame-stride must be 1 for a model of true actions, one of which leads from "
                f"a frame to the next, got {stride}.",
            )
        stages = (self.flam_stage,) if self.tokenizer_from else (self.tokenizer_stage, self.flam_stage)
        last = min(stage.num_steps for stage in stages)
        require(
            not self.profile.steps or self.profile.step_range[-1] <= last,
            f"profile.steps must end at step {last} or before, which every stage has, got {self.profile.steps}.",
        )

    def _check_slot_terms(self) -> None:
        stage = self.flam_stage
        for name in ("reconstruction_weight", "contrastive_weight", "slot_cost"):
            weight = getattr(stage, name)
            require(
                isinstance(self.flam, FlamConfig) or weight == 0,
                f"flam-stage.{name.replace('_', '-')} {weight} cannot take effect in a {self.flam.model} model, which "
                "has no slots; set it to 0.",
            )
        require(
            stage.slot_cost == 0 or (isinstance(self.flam, FlamConfig) and self.flam.adaptive_slots),
            f"flam-stage.slot-cost {stage.slot_cost} cannot take effect where all slots are kept; set it to 0, or pass "
            "--flam.adaptive-slots.",
        )
        learns_from_prediction = not isinstance(self.flam, FlamConfig) or self.flam.slots_learn_from == "prediction"
        require(
            learns_from_prediction or stage.reconstruction_weight > 0,
            "flam.slots-learn-from reconstruction needs flam-stage.reconstruction-weight above 0, got 0; pass 1, or "
            "--flam.slots-learn-from prediction.",
        )

    def _check_elastic(self) -> None:
        most, least = self.cluster.num_workers, self.cluster.min_workers
        if not least or any(size < most for size in self.world_sizes):
            return
        fewer = [size for size in self._shared_world_sizes() if size < most]
        remedy = f"the nearest possible: {fewer[-1]}" if fewer else "lower micro-batch, or leave min-workers out"
        raise ConfigError(
            f"cluster.min-workers must allow fewer than num-workers = {most} workers that can share the global batches "
            f"of both stages in whole micro-batches, got {least}; {remedy}."
        )

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of workers this run may have, in rising order: num_workers, and fewer where min_workers allows."""
        most = self.cluster.num_workers
        least = self.cluster.min_workers or most
        return [size for size in self._shared_world_sizes() if least <= size <= most]

    def _shared_world_sizes(self) -> list[int]:
        return sorted(set(world_sizes(self.tokenizer_stage)) & set(world_sizes(self.flam_stage)))
