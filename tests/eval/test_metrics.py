"""Measures of single frames against values known by hand."""

import math

import pytest
import torch

from flamscale.eval.metrics import FrameScores, codebook_usage, frame_psnr, frame_ssim, moving_pixels


def test_psnr_of_a_constant_error_is_minus_20_log10_of_it() -> None:
    truth = torch.rand(3, 3, 8, 8) * 0.5
    assert frame_psnr(truth + 0.1, truth).tolist() == pytest.approx([20.0] * 3, abs=1e-4)


def test_psnr_of_equal_frames_is_capped_at_100_db() -> None:
    truth = torch.rand(2, 3, 8, 8)
    assert frame_psnr(truth, truth).tolist() == [100.0, 100.0]


def test_psnr_over_pixels_ignores_all_others_and_is_nan_without_any() -> None:
    truth, prediction = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    prediction[:, :, 0, 0], prediction[:, :, 1, 1] = 0.1, 0.9
    pixels = torch.zeros(2, 4, 4, dtype=torch.bool)
    pixels[0, 0, 0] = True
    first, second = frame_psnr(prediction, truth, pixels).tolist()
    assert first == pytest.approx(20.0, abs=1e-4)
    assert math.isnan(second)


def test_ssim_is_one_for_equal_frames_and_small_for_noise() -> None:
    truth = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert frame_ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0])
    assert frame_ssim(other, truth).max() < 0.2


def test_ssim_of_one_frame_is_the_same_alone_and_among_others() -> None:
    truth, other = torch.rand(2, 3, 3, 32, 32)
    assert frame_ssim(other[1:2], truth[1:2]).item() == pytest.approx(frame_ssim(other, truth)[1].item(), abs=1e-6)


def test_a_pixel_moves_where_any_channel_left_the_last_context_frame() -> None:
    last = torch.full((1, 3, 2, 2), 0.5)
    truth = last[:, None].repeat(1, 2, 1, 1, 1)
    truth[0, 1, 2, 0, 1] = 0.56
    truth[0, 1, 0, 1, 1] = 0.54
    moving = moving_pixels(truth, last)
    assert moving.nonzero().tolist() == [[0, 1, 0, 1]]


def test_codebook_usage_of_even_and_of_collapsed_indices() -> None:
    assert codebook_usage(torch.arange(8).repeat(3), 8) == pytest.approx((1.0, 8.0))
    assert codebook_usage(torch.full((2, 5), 3), 8) == pytest.approx((1 / 8, 1.0))


def test_scores_average_decibels_of_frames_and_leave_out_frames_without_motion() -> None:
    truth = torch.zeros(1, 2, 3, 16, 16)
    images = truth.clone()
    images[0, 0], images[0, 1] = 0.1, 0.01
    moving = torch.zeros(1, 2, 16, 16, dtype=torch.bool)
    moving[0, 0] = True
    scores = FrameScores()
    scores.add(images, truth, moving)
    assert scores.means("x_")["x_psnr"] == pytest.approx(30.0, abs=1e-4)
    assert scores.means()["moving_psnr"] == pytest.approx(20.0, abs=1e-4)
    assert scores.psnr_by_step() == pytest.approx([20.0, 40.0], abs=1e-4)
