"""Triton's kernels and the reference ops train alike."""

from dataclasses import replace

import pytest
import torch
from flamscale_kernels.dispatch import Backend
from torch import Tensor
from torch.testing import assert_close

from flamscale.config import FlamStageConfig
from flamscale.models.flam import Flam
from flamscale.training.objectives import FlamObjective
from tests.small_models import FLAM, TOKENIZER


def losses(kernels: Backend, device: str, dtype: torch.dtype, num_steps: int) -> Tensor:
    """Losses of a few steps of stage 2 on the same random features."""
    torch.manual_seed(0)
    flam = Flam(replace(FLAM, kernels=kernels), TOKENIZER)
    stage = FlamStageConfig(clip_frames=3, reconstruction_weight=0.5)
    objective = FlamObjective(flam, stage).to(device)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    features = torch.randn(2, 3, TOKENIZER.num_tokens, TOKENIZER.feature_channels).to(device)
    noise = torch.randn(2, 2, FLAM.num_slots, FLAM.action_width).to(device)
    found = []
    for _ in range(num_steps):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss, _ = objective(features, noise, torch.tensor(1e-3, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found).cpu()


def test_three_steps_in_the_interpreter_equal_the_reference() -> None:
    expected = losses("reference", "cpu", torch.float32, 3)
    assert_close(losses("triton", "cpu", torch.float32, 3), expected, rtol=1e-4, atol=0.0)
    assert expected[-1] < expected[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bf16 kernels run on CUDA")
def test_fifty_steps_in_bf16_differ_no_more_than_rounding_makes_them() -> None:
    exact = losses("reference", "cuda", torch.float32, 50)
    rounded, ours = (losses(kernels, "cuda", torch.bfloat16, 50) for kernels in ("reference", "triton"))
    assert (ours - exact).abs().mean() <= 2 * (rounded - exact).abs().mean() + 1e-3 * exact.abs().mean()
