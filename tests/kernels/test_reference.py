"""The reference operations against their textbook forms, in float64."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from flamscale_kernels.reference import (
    slot_attention,
    slot_attention_masks,
    temporal_attention,
    temporal_attention_packed,
)
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

    means, mass = slot_attention(tokens, queries @ w_k, scale, epsilon=epsilon)
    assert_close(means @ w_v.T, expected, rtol=1e-12, atol=1e-12)
    assert_close(mass, attention.sum(dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon_on", ["mass", "attention"])
def test_biases_and_layer_norm_are_absorbed_too(epsilon_on: Literal["mass", "attention"]) -> None:
    channels, width, heads, scale, epsilon = 6, 4, 2, 4**-0.5, 1e-3
    normed = F.layer_norm(random(2, 7, channels), (channels,))
    gain, shift = random(channels, seed=1), random(channels, seed=2)
    queries = random(2, heads, 3, width, seed=3)
    w_k, w_v = random(heads, width, channels, seed=4), random(heads, width, channels, seed=5)
    b_k, b_v = random(heads, width, seed=6), random(heads, width, seed=7)

    tokens = (normed * gain + shift)[:, None]
    keys, values = tokens @ w_k.mT + b_k[:, None], tokens @ w_v.mT + b_v[:, None]  # [F, H, N, D]
    attention = torch.softmax(queries @ keys.mT * scale, dim=2)
    if epsilon_on == "mass":
        weights = attention / (attention.sum(dim=-1, keepdim=True) + epsilon)
    else:
        weights = (attention + epsilon) / (attention + epsilon).sum(dim=-1, keepdim=True)
    expected = weights @ values

    bias_k, bias_v = b_k + w_k @ shift, b_v + w_v @ shift  # [H, D]
    means, mass = slot_attention(
        normed,
        queries @ (w_k * gain),
        scale,
        logit_bias=scale * torch.einsum("fhkd,hd->fhk", queries, bias_k),
        epsilon=epsilon,
        epsilon_on=epsilon_on,
    )
    share = mass / (mass + epsilon) if epsilon_on == "mass" else torch.ones_like(mass)
    updates = means @ (w_v * gain).mT + share[..., None] * bias_v[:, None]
    assert_close(updates, expected, rtol=1e-12, atol=1e-12)
    own = slot_attention(
        keys.transpose(1, 2), queries, scale, values=values.transpose(1, 2), epsilon=epsilon, epsilon_on=epsilon_on
    )
    assert_close(own, (expected, mass), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("epsilon_on", ["mass", "attention"])
def test_masked_slots_and_tokens_are_as_if_absent(epsilon_on: Literal["mass", "attention"]) -> None:
    tokens, queries = random(2, 7, 4), random(2, 5, 4, seed=1)
    slots, kept = torch.tensor([True, False, True, False, True]), torch.tensor([True] * 4 + [False] * 3)
    means, mass = slot_attention(
        tokens, queries, 0.5, slot_mask=slots.expand(2, -1), token_mask=kept.expand(2, -1), epsilon_on=epsilon_on
    )
    alone = slot_attention(tokens[:, kept], queries[:, slots], 0.5, epsilon_on=epsilon_on)
    assert_close((means[:, slots], mass[:, slots]), alone)
    assert not means[:, ~slots].any()
    assert not mass[:, ~slots].any()


def test_a_frame_without_slots_or_tokens_gives_zeros_and_zero_gradients() -> None:
    for masks in ({"slot_mask": torch.zeros(1, 3).bool()}, {"token_mask": torch.zeros(1, 7).bool()}):
        tokens, queries = random(1, 7, 4).requires_grad_(), random(1, 3, 4, seed=1).requires_grad_()
        means, mass = slot_attention(tokens, queries, 0.5, **masks, epsilon_on="attention")
        (means.sum() + mass.sum()).backward()
        for x in (means, mass, tokens.grad, queries.grad):
            assert_close(x, torch.zeros_like(x), rtol=0.0, atol=0.0)


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
    inputs = [random(1, 4, 2, 1, 4, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(temporal_attention, inputs)
    angles, mask = random(4, 2, seed=3), torch.tensor([[True, False, True, True]])

    def with_options(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        rotary = (angles.cos(), angles.sin())
        return temporal_attention(query, key, value, rotary=rotary, bias=bias, frame_mask=mask)

    assert torch.autograd.gradcheck(with_options, [*inputs, random(1, 4, 4, seed=4).requires_grad_()])


def test_bias_and_mask_equal_torchs_attention_with_an_additive_mask() -> None:
    query, key, value = (random(2, 5, 3, 2, 4, seed=seed) for seed in range(3))
    bias, mask = random(2, 5, 5, seed=3), torch.tensor([[True] * 5, [True, False, True, True, False]])
    mixed = temporal_attention(query, key, value, bias=bias, frame_mask=mask)
    for clip in range(2):
        visible = torch.ones(5, 5, dtype=torch.bool).tril() & mask[clip]
        added = bias.masked_fill(~visible, float("-inf"))
        parts = [x[clip].permute(1, 2, 0, 3) for x in (query, key, value)]  # [S, H, T, E]
        expected = F.scaled_dot_product_attention(*parts, attn_mask=added).permute(2, 0, 1, 3)
        assert_close(mixed[clip, mask[clip]], expected[mask[clip]], rtol=1e-12, atol=1e-12)
        assert not mixed[clip, ~mask[clip]].any()


def test_a_clip_without_any_frame_gives_zeros_and_zero_gradients() -> None:
    x = torch.full((1, 3, 2, 3, 1, 4), float("nan"), dtype=torch.float64, requires_grad=True)
    mixed = temporal_attention_packed(x, frame_mask=torch.zeros(1, 3, dtype=torch.bool))
    assert not mixed.any()
    (grad,) = torch.autograd.grad(mixed.sum(), x)
    assert not grad.any()


def test_rotated_heads_see_how_far_apart_frames_are_and_not_when_they_are() -> None:
    """A rotation of query and key by one more angle each leaves their product."""
    query, key, value = (random(2, 5, 3, 2, 4, seed=seed) for seed in range(3))
    angles = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.01], dtype=torch.float64)
    early, late = (
        temporal_attention(query, key, value, rotary=(x.cos(), x.sin())) for x in (angles, angles + random(2, seed=3))
    )
    assert_close(early, late, rtol=1e-12, atol=1e-12)
    assert not torch.isclose(early[:, 1:], temporal_attention(query, key, value)[:, 1:]).any()


def test_half_precision_masks_without_overflow() -> None:
    query, key, value = (30 * random(1, 4, 2, 1, 4, seed=seed) for seed in range(3))
    mixed = temporal_attention(query.half(), key.half(), value.half())
    assert mixed.dtype == torch.float16
    assert mixed.isfinite().all()


def test_packed_attention_is_that_of_its_parts() -> None:
    packed, mask = random(2, 5, 3, 3, 2, 4), torch.ones(2, 5, dtype=torch.bool).tril(2)
    options = {"rotary": (random(5, 2, seed=1), random(5, 2, seed=2)), "bias": random(2, 5, 5, seed=3)}
    expected = temporal_attention(*packed.unbind(3), **options, frame_mask=mask)
    assert torch.equal(temporal_attention_packed(packed, **options, frame_mask=mask), expected)


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
