"""Whole settings of the main job by name: a preset's name in, its `PretrainConfig` (without data URL) out."""

from flamscale.config import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    FlamConfig,
    FlamStageConfig,
    PretrainConfig,
    TokenizerConfig,
    TokenizerStageConfig,
)


def quickstart() -> PretrainConfig:
    """64 x 64 MultiGrid with four agents on two CPU cores: minutes."""
    return PretrainConfig(
        data=DataConfig(cache_mib=256),
        tokenizer=TokenizerConfig(
            image_size=64, downsample=8, base_channels=8, max_channels=64, num_residual_blocks=1, feature_channels=32
        ),
        tokenizer_stage=TokenizerStageConfig(
            num_steps=800,
            global_batch=32,
            micro_batch=16,
            learning_rate=5e-3,
            schedule="cosine",
            warmup_steps=50,
            moving_weight=8.0,
            encoder_lr_ratio=0.1,
            log_every=50,
            validate_every=400,
            validation_clips=128,
            checkpoint_every=400,
        ),
        flam=FlamConfig(
            num_slots=6,
            width=64,
            action_width=16,
            num_heads=4,
            num_blocks=1,
            history_frames=3,
            slot_iterations=1,
            mlp_ratio=2,
        ),
        flam_stage=FlamStageConfig(
            num_steps=3_000,
            beta_warmup_start=1_500,
            beta_warmup_steps=500,
            reconstruction_weight=1.0,
            global_batch=32,
            micro_batch=16,
            clip_frames=4,
            learning_rate=3e-3,
            adam_betas=(0.9, 0.95),
            schedule="cosine",
            warmup_steps=50,
            log_every=100,
            validate_every=1_000,
            validation_clips=128,
            checkpoint_every=1_000,
        ),
        cluster=ClusterConfig(num_workers=2, zero_stage=2),
    )


def multigrid() -> PretrainConfig:
    """The paper's MultiGrid setting: 128 x 128, four agents, K = 4 (arXiv 2602.16229, Section 5 and Appendix A).

    The paper's LPIPS term is off, since it needs a file of weights: make one with recipes/convert_lpips.py, then pass
    --tokenizer-stage.lpips-weight 1 --tokenizer-stage.lpips-weights FILE.
    """
    return PretrainConfig(
        tokenizer=TokenizerConfig(image_size=128, downsample=16),
        tokenizer_stage=TokenizerStageConfig(num_steps=100_000, global_batch=64, micro_batch=64),
        flam=FlamConfig(num_slots=4, width=256, action_width=64),
        flam_stage=FlamStageConfig(
            num_steps=300_000,
            global_batch=32,
            micro_batch=32,
            predict_steps=5,
            beta=2e-4 / (64 * 128),  # the paper's, over N*C: its squared error is a sum, ours a mean
        ),
        cluster=ClusterConfig(num_workers=1, accelerator="gpu", cpus_per_worker=8, zero_stage=0),
    )


def procgen() -> PretrainConfig:
    """The paper's Procgen setting: 224 x 224, K = 16 (arXiv 2602.16229, Section 5 and Appendix A).

    The paper's LPIPS term is off, since it needs a file of weights: make one with recipes/convert_lpips.py, then pass
    --tokenizer-stage.lpips-weight 1 --tokenizer-stage.lpips-weights FILE.
    """
    return PretrainConfig(
        tokenizer=TokenizerConfig(image_size=224, downsample=16),
        tokenizer_stage=TokenizerStageConfig(num_steps=100_000, global_batch=64, micro_batch=64),
        flam=FlamConfig(num_slots=16, width=256, action_width=16),
        flam_stage=FlamStageConfig(
            num_steps=300_000,
            global_batch=32,
            micro_batch=32,
            predict_steps=5,
            beta=2e-4 / (196 * 128),  # the paper's, over N*C: its squared error is a sum, ours a mean
        ),
        cluster=ClusterConfig(num_workers=1, accelerator="gpu", cpus_per_worker=8, zero_stage=0),
    )


def large() -> PretrainConfig:
    """224 x 224 real or mixed video on 64 GPUs: hundreds of millions of parameters, bf16, ZeRO-3, K = 16."""
    return PretrainConfig(
        data=DataConfig(window_shards=64, prefetch_batches=4),
        tokenizer=TokenizerConfig(
            architecture="magvit", image_size=224, downsample=16, base_channels=128, max_channels=512
        ),
        tokenizer_stage=TokenizerStageConfig(
            num_steps=200_000, global_batch=1_024, micro_batch=16, warmup_steps=2_000, precision="bf16"
        ),
        flam=FlamConfig(
            num_slots=16, width=1_024, action_width=64, num_heads=16, num_blocks=8, activation_checkpointing=True
        ),
        flam_stage=FlamStageConfig(
            num_steps=500_000,
            global_batch=512,
            micro_batch=8,
            clip_frames=16,
            learning_rate=3e-4,
            schedule="cosine",
            warmup_steps=5_000,
            adam_betas=(0.9, 0.95),
            weight_decay=0.05,
            precision="bf16",
            predict_steps=5,
        ),
        evaluation=EvaluationConfig(num_clips=256),
        cluster=ClusterConfig(num_workers=64, accelerator="gpu", cpus_per_worker=12, zero_stage=3),
    )


PRESETS = {"quickstart": quickstart, "multigrid": multigrid, "procgen": procgen, "large": large}
