"""Every setting of a run, as frozen dataclasses: the recipes' flags, `config.json`, and the arguments of all parts.

Imports nothing heavy, so that `--help` answers at once. A part is built by passing its config to its class.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from flamscale.errors import ConfigError

MIN_FVD_FRAMES = 9
"""Frames of a clip that I3D's pooling leaves something of (count)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which shards to read, and how."""

    url: tuple[str, ...] = ()
    """Folder or s3:// URL of the data set: the one that holds manifest.arrow; several are mixed."""
    weights: tuple[float, ...] = ()
    """How often each of several data sets is drawn from (any unit); if not given, by its number of clips."""
    latents: tuple[str, ...] = ()
    """Folder or URL of each data set's latents, from recipes/tokenize_shards.py: stage 2 reads them in place of video
    and needs the tokenizer they were made by, see tokenizer_from."""
    window_shards: int = 16
    """Shards whose clips are shuffled together (count); reads stay near-sequential inside a window."""
    num_processes: int = 0
    """Processes that read and decode for each worker (count); 0 leaves it to a thread of the worker."""
    decode_backend: Literal["auto", "pyav", "torchcodec", "opencv"] = "auto"
    """What decodes video: auto (PyAV, the fastest on short clips), or one of them; the latter two: extra decode."""
    decode_threads: int = 1
    """Clips decoded at once in each of them (count)."""
    prefetch_batches: int = 2
    """Micro-batches read ahead of training by each of them (count); 0 reads in the training thread."""
    shard_cache: str = ""
    """Folder on local disk for copies of an object store's shards, shared by a node's workers; empty for none."""
    shard_cache_gib: float = 64.0
    """Size of all these copies together (GiB); the least recently used go first."""
    cache_mib: int = 0
    """Memory a worker process may fill with whole decoded samples (MiB); 0 decodes just the frames of each clip."""
    max_bad_fraction: float = 0.01
    """Share of the samples a worker reads that may turn out damaged before the run stops with an error (0 to 1); one
    sample always may, unless this is 0."""

    def __post_init__(self) -> None:
        _require(
            not self.weights or (len(self.weights) == len(self.url) and min(self.weights) > 0),
            f"data.weights must be one positive number for each of the {len(self.url)} data sets, got {self.weights}.",
        )
        _require(
            len(set(self.url)) == len(self.url) and all(self.url),
            f"data.url must name each data set once, got {self.url}.",
        )
        _require(
            not self.latents or len(self.latents) == len(self.url),
            f"data.latents must name one folder for each of the {len(self.url)} data sets, got {self.latents}.",
        )
        _require(self.num_processes >= 0, f"data.num-processes must be 0 or more, got {self.num_processes}.")
        _require(self.decode_threads >= 1, f"data.decode-threads must be at least 1, got {self.decode_threads}.")
        _require(
            self.num_processes == 0 or self.prefetch_batches >= 1,
            f"data.num-processes {self.num_processes} needs data.prefetch-batches of at least 1, got 0.",
        )
        _require(self.shard_cache_gib > 0, f"data.shard-cache-gib must be above 0, got {self.shard_cache_gib}.")
        _require(self.window_shards >= 1, f"data.window-shards must be at least 1, got {self.window_shards}.")
        _require(self.prefetch_batches >= 0, f"data.prefetch-batches must be 0 or more, got {self.prefetch_batches}.")
        _require(self.cache_mib >= 0, f"data.cache-mib must be 0 or more, got {self.cache_mib}.")
        _require(
            0 <= self.max_bad_fraction <= 1,
            f"data.max-bad-fraction must lie between 0 and 1, got {self.max_bad_fraction}.",
        )

    @property
    def encodes_ahead(self) -> bool:
        """Whether the loader encodes stage 2's videos, once, and keeps that: a cache that processes do not share."""
        return not self.latents and self.cache_mib > 0 and self.num_processes == 0

    @property
    def encodes_each_clip(self) -> bool:
        """Whether stage 2 encodes every clip as it comes."""
        return not self.latents and not self.encodes_ahead


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Stage 1 model: frame -> N patch tokens of C channels -> frame (Eq. 1)."""

    architecture: Literal["impala", "magvit"] = "impala"
    """impala: IMPALA encoder with LAPO-style decoder, for simulated video; magvit: MAGVIT-v2 style, for real video."""
    image_size: int = 128
    """Height and width of a frame (pixels)."""
    downsample: int = 16
    """Pixels a token covers along each side (a power of two)."""
    base_channels: int = 32
    """Channels of the first encoder level (count); deeper levels double it up to max_channels."""
    max_channels: int = 256
    """Channels of the deepest levels (count)."""
    num_residual_blocks: int = 2
    """Residual blocks a level (count)."""
    patch_channels: int = 256
    """Hidden channels of the patch-wise path beside the convolutions (count)."""
    feature_channels: int = 128
    """Channels C of the features the decoder and FLAM see (count)."""
    fsq_levels: tuple[int, ...] = (4, 4, 4, 4, 4)
    """Quantisation levels of each FSQ dimension; their product is the codebook size."""

    def __post_init__(self) -> None:
        _require(
            self.downsample >= 2 and self.downsample & (self.downsample - 1) == 0,
            f"tokenizer.downsample must be a power of two from 2 up, got {self.downsample}.",
        )
        _require(
            self.image_size > 0 and self.image_size % self.downsample == 0,
            f"tokenizer.image-size must be divisible by tokenizer.downsample, got {self.image_size} and "
            f"{self.downsample}; make shards of another size, or choose another down-sampling.",
        )
        for name in ("base_channels", "max_channels", "num_residual_blocks", "patch_channels", "feature_channels"):
            value = getattr(self, name)
            _require(value >= 1, f"tokenizer.{name.replace('_', '-')} must be at least 1, got {value}.")
        _require(
            bool(self.fsq_levels) and min(self.fsq_levels) >= 2,
            f"tokenizer.fsq-levels must each be at least 2, got {self.fsq_levels}.",
        )

    @property
    def num_tokens(self) -> int:
        """Tokens N of one frame."""
        return (self.image_size // self.downsample) ** 2


@dataclass(frozen=True, kw_only=True)
class FlamConfig:
    """Stage 2 model: factorizer, IDM, FDM and aggregator on frozen features (Eq. 2-5)."""

    num_slots: int = 4
    """Slots K, the number of factors the scene is split into (count)."""
    width: int = 256
    """Model width D of slots and tokens (channels)."""
    action_width: int = 64
    """Width A of one factor's latent action (channels); the paper keeps K*A = D."""
    num_heads: int = 8
    """Attention heads of every transformer block (count)."""
    num_blocks: int = 2
    """Blocks in each of IDM, FDM and aggregator (count)."""
    history_frames: int = 7
    """Frames, the current one included, that a rollout looks back on (count); fewer than a clip has."""
    slot_iterations: int = 3
    """Slot-attention iterations I of the factorizer, each followed by temporal attention (count)."""
    mlp_ratio: int = 4
    """Hidden width of every MLP over its model width (ratio)."""
    activation_checkpointing: bool = False
    """Recompute the factorizer's iterations in the backward pass: less memory, about a third more compute."""
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """Slot and temporal attention: auto (Triton on CUDA, else torch), triton (that, or an error), reference (torch)."""
    attention: Literal["sdpa", "flash-attn"] = "sdpa"
    """All other attention by sdpa (torch) or flash-attn (half precision on CUDA; extra gpu)."""

    def __post_init__(self) -> None:
        _require(self.num_slots >= 1, f"flam.num-slots (K) must be at least 1, got {self.num_slots}.")
        for name in (
            "width",
            "action_width",
            "num_heads",
            "num_blocks",
            "history_frames",
            "slot_iterations",
            "mlp_ratio",
        ):
            value = getattr(self, name)
            _require(value >= 1, f"flam.{name.replace('_', '-')} must be at least 1, got {value}.")
        _require(
            self.width % (2 * self.num_heads) == 0,
            f"flam.width must be divisible by twice flam.num-heads, got {self.width} and {self.num_heads}.",
        )


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
            _require(value >= 1, f"{name.replace('_', '-')} of a stage must be at least 1, got {value}.")
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
            _require(value >= 0, f"{name.replace('_', '-')} of a stage must be 0 or more, got {value}.")
        _require(
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
        _require(self.moving_weight >= 0, f"moving-weight must be 0 or more, got {self.moving_weight}.")
        _require(self.lpips_weight >= 0, f"lpips-weight must be 0 or more, got {self.lpips_weight}.")
        _require(
            self.lpips_weight == 0 or self.lpips_weights != "",
            f"lpips-weight is {self.lpips_weight}, which needs a file of LPIPS weights, and lpips-weights names none; "
            "make one with recipes/convert_lpips.py, or set lpips-weight to 0.",
        )
        _require(
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "reconstruction_weight"):
            value = getattr(self, name)
            _require(value >= 0, f"{name.replace('_', '-')} must be 0 or more, got {value}.")
        _require(self.beta_warmup_start >= 0, f"beta-warmup-start must be 0 or more, got {self.beta_warmup_start}.")
        _require(self.beta_warmup_steps >= 1, f"beta-warmup-steps must be at least 1, got {self.beta_warmup_steps}.")
        _require(
            1 <= self.predict_steps < self.clip_frames,
            f"predict-steps must lie between 1 and clip-frames - 1 = {self.clip_frames - 1}, got {self.predict_steps}.",
        )


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
            _require(value >= 1, f"evaluation.{name.replace('_', '-')} must be at least 1, got {value}.")
        _require(
            not self.fvd_weights or self.rollout_steps >= MIN_FVD_FRAMES,
            f"evaluation.rollout-steps must be at least {MIN_FVD_FRAMES} for FVD, got {self.rollout_steps}; predict "
            "more steps, or leave out fvd-weights.",
        )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Ray workers and DeepSpeed ZeRO."""

    num_workers: int = 2
    """Worker processes, one device each (count)."""
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
    peak_tflops: float = 0.0
    """Peak of one device at the stages' precision (TFLOP/s), for MFU in the records; 0 for what a GPU's name tells."""

    def __post_init__(self) -> None:
        _require(self.num_workers >= 1, f"cluster.num-workers must be at least 1, got {self.num_workers}.")
        _require(self.max_failures >= 0, f"cluster.max-failures must be 0 or more, got {self.max_failures}.")
        _require(self.hang_timeout_s >= 0, f"cluster.hang-timeout-s must be 0 or more, got {self.hang_timeout_s}.")
        _require(self.cpus_per_worker >= 1, f"cluster.cpus-per-worker must be at least 1, got {self.cpus_per_worker}.")
        _require(self.peak_tflops >= 0, f"cluster.peak-tflops must be 0 or more, got {self.peak_tflops}.")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A close look at a few steps of each stage, on the first worker; it changes nothing that is learned."""

    steps: str = ""
    """First and last step to profile, counted as in the records (20-22); empty for none. Each step adds megabytes."""

    def __post_init__(self) -> None:
        match = re.fullmatch(r"(\d+)-(\d+)", self.steps)
        _require(
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
    """Run directory: everything the job writes goes here; a directory with checkpoints in it is resumed."""
    copy_to: str = ""
    """URL of a folder (s3://bucket/runs/name) that the run directory is copied to behind training: checkpoints,
    tokenizer, records and results; what a run directory lacks is brought back from there."""
    seed: int = 0
    """Seed of initial weights, data order and sampling (0 to 2**63 - 1)."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer_from: str = ""
    """Run directory, or model/ folder, whose trained tokenizer this run uses; stage 1 is then left out."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenizer_stage: TokenizerStageConfig = field(default_factory=TokenizerStageConfig)
    flam: FlamConfig = field(default_factory=FlamConfig)
    flam_stage: FlamStageConfig = field(default_factory=FlamStageConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, f"seed must lie between 0 and 2**63 - 1, got {self.seed}.")
        for name in ("tokenizer_stage", "flam_stage"):
            check_batch_split(getattr(self, name), self.cluster.num_workers, name)
        _require(
            self.flam.history_frames < self.flam_stage.clip_frames,
            f"flam.history-frames must be less than flam-stage.clip-frames, or rollouts would look back further than "
            f"training did; got {self.flam.history_frames} and {self.flam_stage.clip_frames}.",
        )
        stages = (self.flam_stage,) if self.tokenizer_from else (self.tokenizer_stage, self.flam_stage)
        last = min(stage.num_steps for stage in stages)
        _require(
            not self.profile.steps or self.profile.step_range[-1] <= last,
            f"profile.steps must end at step {last} or before, which every stage has, got {self.profile.steps}.",
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


def to_json(config: Any) -> str:
    """Returns a config dataclass as indented JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """Builds the config dataclass `kind`, nested ones included, from the dict that `dataclasses.asdict` made of it."""
    arguments = {}
    for item in dataclasses.fields(kind):
        if item.name not in values:
            continue
        value = values[item.name]
        if dataclasses.is_dataclass(item.type):
            value = from_dict(item.type, value)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        arguments[item.name] = value
    return kind(**arguments)
