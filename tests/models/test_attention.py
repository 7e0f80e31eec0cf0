"""Attention's backends: one function, clear errors where a backend cannot be had."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flamscale.errors import ConfigError
from flamscale.models import attention
from flamscale.models.attention import attend
from tests.small_models import FLAM, small_flam


def heads(num_rows: int, seed: int) -> Tensor:
    return torch.randn(2, num_rows, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sdpa_is_attention_written_out() -> None:
    query, key, value = heads(5, 0), heads(7, 1), heads(7, 2)
    weights = torch.softmax(torch.einsum("fqhe,fmhe->fhqm", query, key) * 8**-0.5, dim=-1)
    assert_close(attend(query, key, value, "sdpa"), torch.einsum("fhqm,fmhe->fqhe", weights, value))


def test_flash_attn_that_is_not_installed_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"flash-attn, which is not installed; pip install 'flamscale\[gpu\]'"):
        small_flam(replace(FLAM, attention="flash-attn"))


def test_flash_attn_refuses_tensors_that_are_not_its() -> None:
    with pytest.raises(ConfigError, match=r"takes bf16 or fp16 on CUDA, got torch\.float64 on cpu; .* choose sdpa"):
        attend(heads(5, 0), heads(7, 1), heads(7, 2), "flash-attn")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash-attn runs on CUDA")
def test_flash_attn_equals_sdpa_to_rounding() -> None:
    pytest.importorskip("flash_attn")
    query, key, value = (heads(rows, seed).to("cuda", torch.bfloat16) for seed, rows in enumerate((5, 7, 7)))
    expected = attend(query, key, value, "sdpa")
    assert_close(attend(query, key, value, "flash-attn"), expected, rtol=2e-2, atol=2e-2)
