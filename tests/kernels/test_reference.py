"""The reference operations against their textbook forms, in float64."""

import pytest
import torch
import torch.nn.functional as F
from flamscale_kernels.reference import slot_attention, slot_attention_masks, temporal_attention
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.testing import assert_close


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scattered(x: Tensor) -> Tensor:
    """The same values, with strides of another layout and a gap between elements."""
    padded = torch.zeros(*x.shape[::-1], 2, dtype=x.dtype)[..., 0].permute(*reversed(range(x.ndim)))
    return padded.copy_(x)


@pytest.mark.parametrize(("num_slots", "num_tokens"), [(1, 1), (3, 7), (5, 1), (4, 16)])
def test_absorbed_projections_equal_explicit_keys_and_values(num_slots: int, num_tokens: int) -> None:
    channels, width, scale, epsilon = 6, 8, 8**-0.5, 1e-6
    tokens, slots = random(2, num_tokens, channels), random(2, num_slots, width, seed=1)
    w_q, w_k, w_v = random(width, width, seed=2), random(width, channels, seed=3), random(width, channels, seed=4)

    keys, values, queries = tokens @ w_k.T, tokens @ w_v.T, slots @ w_q.T
    attention = torch.softmax(keys @ queries.mT * scale, dim=-1)  # [F, N, K]
    weights = attention / (attention.sum(dim=1, keepdim=True) + epsilon)
    expected = weights.mT @ values

    means, mass = slot_attention(tokens, queries @ w_k, scale, epsilon)
    assert_close(means @ w_v.T, expected, rtol=1e-12, atol=1e-12)
    assert_close(mass, attention.sum(dim=1), rtol=1e-12, atol=1e-12)


def test_every_token_is_shared_out_whole_among_the_slots() -> None:
    tokens, queries = random(2, 9, 5), 10 * random(2, 4, 5, seed=1)
    masks = slot_attention_masks(tokens, queries, 0.7)
    assert masks.shape == (2, 4, 9)
    assert masks.min() >= 0
    assert_close(masks.sum(dim=1), torch.ones(2, 9, dtype=torch.float64))
    _, mass = slot_attention(tokens, queries, 0.7)
    assert_close(mass, masks.sum(dim=-1))


def test_a_slot_that_wins_no_token_reads_zero_and_not_nan() -> None:
    tokens = torch.ones(1, 5, 2, dtype=torch.float64)
    queries = torch.tensor([[[1e4, 0.0], [-1e4, 0.0]]], dtype=torch.float64)
    means, mass = slot_attention(tokens, queries, 1.0)
    assert mass[0, 1] == 0
    assert_close(means, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]], dtype=torch.float64), rtol=1e-6, atol=0.0)


def test_frames_do_not_mix_in_slot_attention() -> None:
    tokens, queries = random(3, 7, 4), random(3, 2, 4, seed=1)
    means, mass = slot_attention(tokens, queries, 0.5)
    alone, alone_mass = slot_attention(tokens[1:2], queries[1:2], 0.5)
    assert_close(means[1:2], alone)
    assert_close(mass[1:2], alone_mass)


def test_gradients_of_slot_attention_are_those_of_finite_differences() -> None:
    inputs = [random(2, 5, 3).requires_grad_(), random(2, 3, 3, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda tokens, queries: slot_attention(tokens, queries, 0.6), inputs)
    assert torch.autograd.gradcheck(lambda tokens, queries: slot_attention_masks(tokens, queries, 0.6), inputs)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 17, 33])
@pytest.mark.parametrize(("num_sequences", "num_heads", "width"), [(1, 1, 4), (3, 2, 6), (7, 3, 5)])
def test_temporal_attention_equals_torchs_causal_attention_of_each_sequence(
    num_frames: int, num_sequences: int, num_heads: int, width: int
) -> None:
    query, key, value = (random(2, num_frames, num_sequences, num_heads, width, seed=seed) for seed in range(3))
    mixed = temporal_attention(query, key, value)
    for clip in range(2):
        for sequence in range(num_sequences):
            parts = [x[clip, :, sequence].transpose(0, 1) for x in (query, key, value)]  # [H, T, E]
            expected = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(0, 1)
            assert_close(mixed[clip, :, sequence], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frame", [1, 2, 4])
def test_temporal_attention_never_looks_at_the_future(frame: int) -> None:
    before = [random(2, 5, 3, 2, 4, seed=seed) for seed in range(3)]
    after = [x.clone() for x in before]
    for seed, x in enumerate(after, start=3):
        x[:, frame:] = 100 * random(2, 5 - frame, 3, 2, 4, seed=seed)
    first, second = temporal_attention(*before), temporal_attention(*after)
    assert_close(first[:, :frame], second[:, :frame], rtol=1e-14, atol=1e-14)
    assert not torch.isclose(first[:, frame:], second[:, frame:]).any()


def test_gradients_of_temporal_attention_are_those_of_finite_differences() -> None:
    inputs = [random(1, 4, 2, 1, 3, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(temporal_attention, inputs)


def test_layout_in_memory_does_not_matter() -> None:
    tokens, queries = random(2, 7, 4), random(2, 3, 4, seed=1)
    assert not scattered(tokens).is_contiguous()
    assert_close(slot_attention(scattered(tokens), scattered(queries), 0.5), slot_attention(tokens, queries, 0.5))
    sequences = [random(2, 5, 3, 2, 4, seed=seed) for seed in range(3)]
    assert_close(temporal_attention(*map(scattered, sequences)), temporal_attention(*sequences))
    fused = random(2, 5, 3, 3, 2, 4)  # the three projections in one tensor, as the models hold them
    parts = fused.unbind(dim=3)
    assert_close(temporal_attention(*parts), temporal_attention(*(part.contiguous() for part in parts)))


def test_wrong_shapes_are_caught_in_tests() -> None:
    with pytest.raises(TypeCheckError, match="queries"):
        slot_attention(random(2, 7, 4), random(2, 3, 5), 1.0)
