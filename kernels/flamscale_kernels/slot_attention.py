"""Slot attention on the device that the tensors are on: Triton's kernels as one differentiable torch operation.

Tokens, queries and masks come in as the reference takes them; the choice of implementation is dispatch.py's.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, library

from flamscale_kernels import reference
from flamscale_kernels.dispatch import Backend, is_interpreted, on_device_of, use_triton

MAX_SLOTS = 64
MAX_CHANNELS = 1024


def slot_attention(
    tokens: Float[Tensor, "F N *Ht C"],
    queries: Float[Tensor, "F *H K C"],
    scale: float,
    *,
    values: Float[Tensor, "F N *Hv V"] | None = None,
    logit_bias: Float[Tensor, "F *H K"] | None = None,
    slot_mask: Bool[Tensor, "F K"] | None = None,
    token_mask: Bool[Tensor, "F N"] | None = None,
    token_weight: Float[Tensor, "F N"] | None = None,
    epsilon: float = 1e-6,
    epsilon_on: Literal["mass", "attention"] = "mass",
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "F *H K V"], Float[Tensor, "F *H K"]]:
    """One slot-attention read: softmax over slots, renormalise over tokens, weighted mean of the values.

    Arguments and results are `reference.slot_attention`'s, which is the specification. Under autocast, tokens,
    queries and values are cast to its type. The Triton kernels are differentiable once, in every floating argument.

    Args:
        tokens, queries, scale, values, logit_bias, slot_mask, token_mask, token_weight, epsilon,
            epsilon_on: see the reference.
        backend: which implementation runs; see `dispatch.Backend`.

    Raises:
        ValueError: shapes that do not fit one another.
        KernelUnavailableError: `backend` is "triton", which the device or these tensors rule out.
    """
    _check_shapes(tokens, queries, values, logit_bias, slot_mask, token_mask, token_weight)
    if torch.is_autocast_enabled(tokens.device.type):
        dtype = torch.get_autocast_dtype(tokens.device.type)
        tokens, queries = tokens.to(dtype), queries.to(dtype)
        values = None if values is None else values.to(dtype)
    if not use_triton(backend, tokens.device, _unsupported(tokens, queries, values)):
        return reference.slot_attention(
            tokens,
            queries,
            scale,
            values=values,
            logit_bias=logit_bias,
            slot_mask=slot_mask,
            token_mask=token_mask,
            token_weight=token_weight,
            epsilon=epsilon,
            epsilon_on=epsilon_on,
        )
    one_head = queries.ndim == 3
    if slot_mask is not None:
        excluded = ~slot_mask if one_head else ~slot_mask[:, None]
        if logit_bias is None:
            logit_bias = torch.zeros(queries.shape[:-1], device=queries.device)
        logit_bias = logit_bias.masked_fill(excluded, float("-inf"))
    means, mass = slot_attention_forward(
        tokens if tokens.ndim == 4 else tokens.unsqueeze(2),
        queries.unsqueeze(1) if one_head else queries,
        values if values is None or values.ndim == 4 else values.unsqueeze(2),
        logit_bias.unsqueeze(1) if logit_bias is not None and one_head else logit_bias,
        token_mask,
        None if token_weight is None else token_weight.detach(),
        scale,
        epsilon,
        epsilon_on == "attention",
    )
    return (means.squeeze(1), mass.squeeze(1)) if one_head else (means, mass)


def _check_shapes(
    tokens: Tensor,
    queries: Tensor,
    values: Tensor | None,
    logit_bias: Tensor | None,
    slot_mask: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
) -> None:
    """Raises where a kernel would read past a tensor's end."""
    num_frames, *heads, num_slots, channels = queries.shape
    num_tokens = tokens.shape[1]
    allowed: dict[str, tuple[Tensor | None, list[tuple[int, ...]]]] = {
        "tokens": (tokens, [(num_frames, num_tokens, channels), (num_frames, num_tokens, *heads, channels)]),
        "logit_bias": (logit_bias, [(num_frames, *heads, num_slots)]),
        "slot_mask": (slot_mask, [(num_frames, num_slots)]),
        "token_mask": (token_mask, [(num_frames, num_tokens)]),
        "token_weight": (token_weight, [(num_frames, num_tokens)]),
    }
    if values is not None:
        width = values.shape[-1]
        allowed["values"] = values, [(num_frames, num_tokens, width), (num_frames, num_tokens, *heads, width)]
    for name, (tensor, shapes) in allowed.items():
        if tensor is not None and tuple(tensor.shape) not in shapes:
            expected = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
            raise ValueError(
                f"slot_attention: {name} has shape {tuple(tensor.shape)}; "
                f"with queries {tuple(queries.shape)} it must be {expected}"
            )


def _unsupported(tokens: Tensor, queries: Tensor, values: Tensor | None) -> str | None:
    """Returns what about these tensors the kernels cannot do, None where they can do it."""
    kinds = {x.dtype for x in (tokens, queries, values) if x is not None}
    possible = {torch.float16, torch.bfloat16, torch.float32} | ({torch.float64} if is_interpreted() else set())
    channels = max(queries.shape[-1], 0 if values is None else values.shape[-1])
    if len(kinds) > 1 or not kinds <= possible:
        allowed, given = (", ".join(sorted(map(str, some))) for some in (possible, kinds))
        return f"tokens, queries and values must share one type of {allowed}, and they have {given}"
    if queries.shape[-2] > MAX_SLOTS or channels > MAX_CHANNELS:
        return f"{queries.shape[-2]} slots of {channels} channels exceed {MAX_SLOTS} slots or {MAX_CHANNELS} channels"
    if 0 in queries.shape or 0 in tokens.shape or (values is not None and 0 in values.shape):
        return "a tensor has no element"
    return None


@library.custom_op("flamscale_kernels::slot_attention_forward", mutates_args=())
def slot_attention_forward(
    tokens: Tensor,
    queries: Tensor,
    values: Tensor | None,
    logit_bias: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
    scale: float,
    epsilon: float,
    epsilon_on_attention: bool,
) -> tuple[Tensor, Tensor]:
    """Means [F, H, K, V] and masses [F, H, K] by the forward kernel; -inf in the bias takes a slot out.

    Shapes: tokens [F, N, H or 1, C], queries [F, H, K, C], values [F, N, H or 1, V], logit_bias [F, H, K], token_mask
    and token_weight [F, N].
    """
    from flamscale_kernels import slot_attention_kernels as kernels
    from flamscale_kernels import slot_attention_launch as launch

    tokens, queries, values = _with_whole_rows(tokens), _with_whole_rows(queries), _with_whole_rows(values)
    num_frames, num_heads, num_slots, channels = queries.shape
    width = channels if values is None else values.shape[-1]
    block = launch.tiles(num_slots, channels, None if values is None else width, tokens.element_size(), backward=False)
    means, mass = _empty_results(tokens, queries, values)
    grid = (num_frames * num_heads * -(-width // block.values),)
    with on_device_of(tokens):
        kernels.slot_attention_forward_kernel[grid](
            tokens, queries, values, _contiguous(logit_bias), _contiguous(token_mask), _contiguous(token_weight),
            means, mass, num_heads, tokens.shape[1], scale, epsilon, *_strides(tokens, queries, values),
            **launch.constants(
                block, num_slots, channels, width, tokens.dtype,
                epsilon_on_attention=epsilon_on_attention, backward=False,
            ),
            num_warps=block.num_warps,
        )  # fmt: skip
    return means, mass


@slot_attention_forward.register_fake
def _(
    tokens: Tensor,
    queries: Tensor,
    values: Tensor | None,
    logit_bias: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
    scale: float,
    epsilon: float,
    epsilon_on_attention: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_results(tokens, queries, values)


@library.custom_op("flamscale_kernels::slot_attention_backward", mutates_args=())
def slot_attention_backward(
    tokens: Tensor,
    queries: Tensor,
    values: Tensor | None,
    logit_bias: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
    means: Tensor,
    mass: Tensor,
    grad_means: Tensor,
    grad_mass: Tensor | None,
    scale: float,
    epsilon: float,
    epsilon_on_attention: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and logit_bias, and what the tokens' gradient takes [F, 2, H, K, N], by the backward kernel.

    The last holds each value's share in each mean and the gradients of the unscaled logits; it and the bias's gradient
    have no element where nothing needs them.
    """
    from flamscale_kernels import slot_attention_kernels as kernels
    from flamscale_kernels import slot_attention_launch as launch

    tokens, queries, values = _with_whole_rows(tokens), _with_whole_rows(queries), _with_whole_rows(values)
    num_frames, num_heads, num_slots, channels = queries.shape
    width = means.shape[-1]
    block = launch.tiles(num_slots, channels, None if values is None else width, tokens.element_size(), backward=True)
    grad_queries, grad_bias, weights = _empty_gradients(tokens, queries, logit_bias, needs_weights)
    grid = (num_frames * num_heads * -(-channels // block.columns),)
    with on_device_of(tokens):
        kernels.slot_attention_backward_kernel[grid](
            tokens, queries, values, _contiguous(logit_bias), _contiguous(token_mask),
            _contiguous(token_weight), means, mass, grad_means.contiguous(), _contiguous(grad_mass),
            grad_queries, None if logit_bias is None else grad_bias, weights if needs_weights else None,
            num_heads, tokens.shape[1], weights.stride(-2), scale, epsilon, *_strides(tokens, queries, values),
            **launch.constants(
                block, num_slots, channels, width, tokens.dtype,
                epsilon_on_attention=epsilon_on_attention, backward=True,
            ),
            num_warps=block.num_warps,
        )  # fmt: skip
    return grad_queries, grad_bias, weights


@slot_attention_backward.register_fake
def _(
    tokens: Tensor,
    queries: Tensor,
    values: Tensor | None,
    logit_bias: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
    means: Tensor,
    mass: Tensor,
    grad_means: Tensor,
    grad_mass: Tensor | None,
    scale: float,
    epsilon: float,
    epsilon_on_attention: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(tokens, queries, logit_bias, needs_weights)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.epsilon, ctx.epsilon_on_attention = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_means: Tensor | None, grad_mass: Tensor | None) -> tuple[Tensor | None, ...]:
    tokens, queries, values, logit_bias, token_mask, token_weight, means, mass = ctx.saved_tensors
    if grad_means is None:
        grad_means = torch.zeros_like(means)
    needs_tokens, _, needs_values, needs_bias = ctx.needs_input_grad[:4]
    grad_queries, grad_bias, weights = slot_attention_backward(
        tokens, queries, values, logit_bias, token_mask, token_weight, means, mass, grad_means, grad_mass,
        ctx.scale, ctx.epsilon, ctx.epsilon_on_attention, needs_tokens or needs_values,
    )  # fmt: skip
    grad_tokens = grad_values = None
    if needs_tokens and values is None:
        grad_tokens = _over_slots(weights, torch.stack((grad_means, queries), dim=1), tokens)
    elif needs_tokens:
        grad_tokens = _over_slots(weights[:, 1:], queries.unsqueeze(1), tokens)
    if needs_values:
        grad_values = _over_slots(weights[:, :1], grad_means.unsqueeze(1), values)
    if needs_bias:
        grad_bias = grad_bias.to(logit_bias.dtype)
    return grad_tokens, grad_queries, grad_values, grad_bias if needs_bias else None, *[None] * 5


slot_attention_forward.register_autograd(_backward, setup_context=_save_for_backward)


def _over_slots(weights: Tensor, rows: Tensor, inputs: Tensor) -> Tensor:
    """Returns the gradient of `inputs`: weights [F, i, H, K, N] times rows [F, i, H, K, C], summed over i and slots.

    Where all heads share the inputs, it is summed over heads too.
    """
    if inputs.shape[2] == 1:
        return torch.einsum("fihkn,fihkc->fnc", weights, rows).unsqueeze(2)
    return torch.einsum("fihkn,fihkc->fnhc", weights, rows)


def _empty_results(tokens: Tensor, queries: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor]:
    width = (queries if values is None else values).shape[-1]
    means = torch.empty((*queries.shape[:-1], width), dtype=tokens.dtype, device=tokens.device)
    return means, torch.empty(queries.shape[:-1], dtype=_accumulator(tokens), device=tokens.device)


def _empty_gradients(
    tokens: Tensor, queries: Tensor, logit_bias: Tensor | None, needs_weights: bool
) -> tuple[Tensor, Tensor, Tensor]:
    num_frames, num_heads, num_slots, _ = queries.shape
    num_tokens = tokens.shape[1]
    row = (num_tokens + 15) // 16 * 16  # every row starts aligned, for wide stores
    shape = (num_frames, 2, num_heads, num_slots, row) if needs_weights else (0, 2, num_heads, num_slots, row)
    grad_queries = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    bias_shape = (0,) if logit_bias is None else queries.shape[:-1]
    grad_bias = torch.empty(bias_shape, dtype=_accumulator(tokens), device=queries.device)
    weights = torch.empty(shape, dtype=tokens.dtype, device=tokens.device)
    return grad_queries, grad_bias, weights[..., :num_tokens]


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _with_whole_rows(x: Any) -> Any:
    """Returns the tensor with its last dimension contiguous, which is all that the kernels ask of a layout."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _strides(tokens: Tensor, queries: Tensor, values: Tensor | None) -> tuple[int, ...]:
    """Strides of tokens, queries and values as the kernels take them; 0 over the heads of what all heads share."""
    shared = [0 if x.shape[2] == 1 else x.stride(2) for x in (tokens, tokens if values is None else values)]
    other = tokens if values is None else values
    return (
        *tokens.stride()[:2], shared[0],
        *queries.stride()[:3],
        *other.stride()[:2], shared[1],
    )  # fmt: skip
