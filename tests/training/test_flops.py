"""Counted model FLOPs against sums worked out by hand from the equations' shapes, and what records make of them."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from flamscale.config import ClusterConfig, FlamConfig, FlamStageConfig, PretrainConfig, TokenizerConfig
from flamscale.presets import PRESETS
from flamscale.training.devices import GPUS, gpu_peak_flops, peak_flops
from flamscale.training.flops import Compute, count_clip_flops, device_peak_flops

SMALL = PretrainConfig(
    tokenizer=TokenizerConfig(image_size=64, downsample=8, base_channels=8, max_channels=32, feature_channels=32),
    flam=FlamConfig(
        num_slots=3, width=64, action_width=16, num_heads=4, num_blocks=1, history_frames=3, slot_iterations=2
    ),
    flam_stage=FlamStageConfig(clip_frames=5, predict_steps=2, reconstruction_weight=1.0),
    cluster=ClusterConfig(num_workers=1),
)
"""Every term is on, and no term is so large that it would hide another's error."""


def one_worker(preset: str) -> PretrainConfig:
    return replace(PRESETS[preset](), cluster=ClusterConfig(num_workers=1))


def linear(rows: int, *widths: int) -> int:
    """Multiplications and additions of `rows` vectors through layers of these widths."""
    return sum(2 * rows * before * after for before, after in pairwise(widths))


def spatial_attention(frames: int, queries: int, keys: int, width: int) -> int:
    projections = 2 * linear(frames * queries, width, width) + linear(frames * keys, width, 2 * width)
    return projections + 4 * frames * queries * keys * width


def temporal_attention(frames: int, slots: int, width: int) -> int:
    return (
        linear(frames * slots, width, 3 * width) + linear(frames * slots, width, width) + 4 * slots * frames**2 * width
    )


def flam_by_hand(config: PretrainConfig) -> tuple[int, int]:
    """Forward and backward of one clip's features; a product's backward is two of its size where both sides learn."""
    flam, stage = config.flam, config.flam_stage
    frames, slots, width, mlp = stage.clip_frames, flam.num_slots, flam.width, flam.mlp_ratio * flam.width
    tokens, channels = config.tokenizer.num_tokens, config.tokenizer.feature_channels

    def factorizer(frames: int) -> tuple[int, int]:
        rows, shares = frames * slots, 2 * frames * slots * tokens * width
        gru = 2 * linear(rows, width, 3 * width)
        iteration = 3 * linear(rows, width, width) + 2 * shares + gru + linear(rows, width, mlp, width)
        iteration += temporal_attention(frames, slots, width)
        learned = linear(frames * tokens, channels, width) + flam.slot_iterations * iteration
        return learned, 2 * linear(rows, width, width) + shares  # the masks, through which nothing learns

    def aggregator(frames: int) -> tuple[int, int]:
        block = spatial_attention(frames, tokens, slots + 1, width) + linear(frames * tokens, width, mlp, width)
        first = linear(frames * tokens, channels, width)
        return first + flam.num_blocks * block + linear(frames * tokens, width, channels), first

    steps = frames - 1
    idm_block = spatial_attention(steps, slots, slots, width) + linear(steps * slots, width, width)
    idm_block += linear(steps * slots, width, mlp, width)
    idm = flam.num_blocks * idm_block + 2 * linear(steps * slots, width, flam.action_width)
    fdm_block = spatial_attention(steps, slots, slots, width) + temporal_attention(steps, slots, width)
    fdm_block += linear(steps * slots, width, mlp, width)
    fdm = linear(steps * slots, flam.action_width, width) + flam.num_blocks * fdm_block
    fdm += linear(steps * slots, width, width)

    drawn, first_layer = aggregator(steps)
    learned, unlearned = factorizer(frames)
    forward = learned + unlearned + idm + stage.predict_steps * (fdm + drawn)
    backward = 2 * (learned + idm + stage.predict_steps * (fdm + drawn)) - first_layer  # true features learn nothing
    again, masks = factorizer(steps)
    forward += (stage.predict_steps - 1) * (again + masks)
    backward += (stage.predict_steps - 1) * 2 * again
    if stage.reconstruction_weight > 0:
        drawn, first_layer = aggregator(frames)
        forward += drawn
        backward += 2 * drawn - first_layer
    return forward, backward


def convolution(size: int, before: int, after: int, kernel: int = 3) -> int:
    return 2 * size**2 * kernel**2 * before * after


def impala_encoder_by_hand(config: TokenizerConfig) -> tuple[int, int]:
    """One frame's forward, and the part of it that works on pixels, through which nothing learns."""
    size, before, total, on_pixels = config.image_size, 3, 0, 0
    for level in range(config.downsample.bit_length() - 1):
        after = min(config.base_channels * 2**level, config.max_channels)
        total += convolution(size, before, after)
        on_pixels = on_pixels or total
        size, before = size // 2, after
        total += 2 * config.num_residual_blocks * convolution(size, after, after)
    patch = linear(config.num_tokens, 3 * config.downsample**2, config.patch_channels)
    total += patch + linear(config.num_tokens, config.patch_channels, before)
    return total + linear(config.num_tokens, before, len(config.fsq_levels)), on_pixels + patch


def impala_decoder_by_hand(config: TokenizerConfig) -> int:
    """One frame's forward, from codes to pixels."""
    num_levels, size = config.downsample.bit_length() - 1, config.image_size // config.downsample
    channels = [min(config.base_channels * 2**level, config.max_channels) for level in reversed(range(num_levels))]
    total = linear(config.num_tokens, len(config.fsq_levels), config.feature_channels)
    total += convolution(size, config.feature_channels, channels[0])
    for before, after in zip(channels, [*channels[1:], channels[-1]], strict=True):
        total += 2 * config.num_residual_blocks * convolution(size, before, before)
        total += convolution(size, before, after, kernel=4)
        size *= 2
    total += convolution(size, channels[-1], 3)
    return total + linear(config.num_tokens, config.feature_channels, config.patch_channels, 3 * config.downsample**2)


def flow_network_by_hand(config: TokenizerConfig) -> tuple[int, int]:
    """One frame's forward at one time, and the part of it that works on the times, through which nothing learns."""
    size, channels = config.image_size // 2, []
    for level in range(config.downsample.bit_length() - 1):
        channels.append(2 * min(config.base_channels * 2**level, config.max_channels))
    width = channels[-1]
    total = linear(1, 10, width, width) + convolution(size, 24, channels[0]) + convolution(size, channels[0], 12)
    for level, count in enumerate(channels):
        total += 2 * (2 * convolution(size >> level, count, count) + linear(1, width, 2 * count))  # down and up
        if level:
            total += 2 * convolution(size >> level, channels[level - 1], count, kernel=4)
    return total + linear(config.num_tokens, config.feature_channels, width), linear(1, 10, width)


@pytest.mark.parametrize(
    "config", [SMALL, one_worker("quickstart"), one_worker("multigrid")],
    ids=["small", "quickstart", "multigrid"],
)  # fmt: skip
def test_stage_2_counts_what_the_equations_shapes_say(config: PretrainConfig) -> None:
    counted = count_clip_flops(config, "flam", encodes_video=False)
    assert (counted.forward, counted.backward) == pytest.approx(flam_by_hand(config), rel=0.01)


@pytest.mark.parametrize("config", [SMALL, one_worker("procgen")], ids=["small", "procgen"])
def test_stage_1_counts_what_the_layers_shapes_say(config: PretrainConfig) -> None:
    counted = count_clip_flops(config, "tokenizer")
    encoder, on_pixels = impala_encoder_by_hand(config.tokenizer)
    decoder = impala_decoder_by_hand(config.tokenizer)
    assert counted.forward == pytest.approx(encoder + decoder, rel=0.01)
    assert counted.backward == pytest.approx(2 * (encoder + decoder) - on_pixels, rel=0.01)


@pytest.mark.parametrize("config", [SMALL, one_worker("quickstart")], ids=["small", "quickstart"])
def test_a_flow_decoder_costs_its_draft_and_one_pass_of_its_network_a_frame_in_training(config: PretrainConfig) -> None:
    flow = count_clip_flops(replace(config, tokenizer=replace(config.tokenizer, decoder="flow")), "tokenizer")
    regression = count_clip_flops(config, "tokenizer")
    network, on_times = flow_network_by_hand(config.tokenizer)
    assert flow.forward - regression.forward == network
    assert flow.backward - regression.backward == 2 * network - on_times


def test_the_frozen_tokenizer_costs_its_encoders_forward_for_every_frame() -> None:
    video, features = (count_clip_flops(SMALL, "flam", encodes_video=encodes) for encodes in (True, False))
    encoder, _ = impala_encoder_by_hand(SMALL.tokenizer)
    assert video.forward - features.forward == pytest.approx(SMALL.flam_stage.clip_frames * encoder, rel=0.01)
    assert video.backward == features.backward


def test_adaptive_slots_cost_the_network_that_chooses_them() -> None:
    flam = SMALL.flam
    adaptive = count_clip_flops(replace(SMALL, flam=replace(flam, adaptive_slots=True)), "flam")
    plain = count_clip_flops(SMALL, "flam")
    chooser = linear(flam.num_slots, flam.width, flam.mlp_ratio * flam.width, flam.width, 1)
    assert (adaptive.forward - plain.forward, adaptive.backward - plain.backward) == (chooser, 2 * chooser)


def test_neither_checkpointing_nor_kernels_change_model_flops() -> None:
    expected = count_clip_flops(SMALL, "flam")
    for changes in ({"activation_checkpointing": True}, {"kernels": "triton"}):
        assert count_clip_flops(replace(SMALL, flam=replace(SMALL.flam, **changes)), "flam") == expected


def test_counting_leaves_the_random_numbers_of_the_run_alone() -> None:
    before = torch.get_rng_state()
    count_clip_flops(SMALL, "flam")
    assert torch.equal(torch.get_rng_state(), before)


def test_lpips_counts_with_the_network_it_uses() -> None:
    stage = replace(SMALL.tokenizer_stage, lpips_weight=1.0, lpips_weights="anywhere")
    config = replace(SMALL, tokenizer_stage=stage)
    vgg16, alexnet = (count_clip_flops(config, "tokenizer", lpips=network) for network in ("vgg16", "alexnet"))
    assert vgg16.total > alexnet.total > count_clip_flops(SMALL, "tokenizer").total


def test_peaks_are_known_by_the_names_torch_gives() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == pytest.approx(989.4e12)
    assert peak_flops("NVIDIA H200", "fp32") == pytest.approx(494.7e12)
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None
    assert peak_flops("Intel(R) Xeon(R)", "fp32") is None
    for gpu in GPUS.values():
        assert gpu_peak_flops(gpu, "bf16") > gpu_peak_flops(gpu, "fp32")


def test_a_cpu_has_a_peak_only_where_one_is_stated() -> None:
    assert device_peak_flops(torch.device("cpu"), "fp32") is None
    assert device_peak_flops(torch.device("cpu"), "fp32", stated_tflops=0.5) == 0.5e12


def test_rates_are_those_of_one_device() -> None:
    assert Compute(10**9, None).rates(clips_per_s=8.0, num_devices=4) == {"model_tflops_per_s": pytest.approx(0.002)}
    assert Compute(10**9, 1e10).rates(8.0, 4)["mfu"] == pytest.approx(0.2)
