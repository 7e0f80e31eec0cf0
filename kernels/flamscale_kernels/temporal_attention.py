"""Causal temporal attention: the public operation, which runs Triton kernels on CUDA and the reference elsewhere.

The kernels read the tensors in the layout the model holds, rotate and add the bias on chip, and keep no logits. They
are registered as custom operations of torch, which torch.compile and activation checkpointing take whole.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, library

from flamscale_kernels import reference
from flamscale_kernels.dispatch import Backend, use_triton

Rotary = tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]
"""Cosine and sine of every frame's angles."""


def temporal_attention(
    query: Float[Tensor, "B T S H E"],
    key: Float[Tensor, "B T S H E"],
    value: Float[Tensor, "B T S H E"],
    *,
    rotary: Rotary | None = None,
    bias: Float[Tensor, "H T T"] | None = None,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "B T S H E"]:
    """Causal attention of every sequence over its own frames: `reference.temporal_attention`, which see.

    Args:
        query, key, value: S independent sequences of T frames, in any layout; the output is contiguous.
        rotary: cosine and sine of the angles that rotate query and key.
        bias: added to the scaled logits.
        frame_mask: False where a clip has no frame.
        backend: "triton" runs up to 64 frames and heads up to 128 wide.

    Raises:
        KernelUnavailableError: `backend` is "triton", which cannot run here or with these tensors.
        ValueError: shapes do not fit together.
    """
    _check(query.shape, rotary, bias, frame_mask)
    if not query.shape == key.shape == value.shape:
        raise ValueError(
            f"query, key and value must have one shape; got {[*map(list, (query.shape, key.shape, value.shape))]}"
        )
    query, key, value = _autocast(query), _autocast(key), _autocast(value)
    if not use_triton(backend, query.device, _mixed_types(query, key, value) or _unsupported(query, rotary)):
        return reference.temporal_attention(query, key, value, rotary=rotary, bias=bias, frame_mask=frame_mask)
    cos, sin = rotary or (None, None)
    return _attention(query, key, value, cos, sin, bias, frame_mask)


def temporal_attention_packed(
    query_key_value: Float[Tensor, "B T S 3 H E"],
    *,
    rotary: Rotary | None = None,
    bias: Float[Tensor, "H T T"] | None = None,
    frame_mask: Bool[Tensor, "B T"] | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "B T S H E"]:
    """`temporal_attention` of one projection's output; its gradient comes as one tensor too, without a copy.

    Args:
        query_key_value: query, key and value along axis 3.
        rotary, bias, frame_mask, backend: as in `temporal_attention`.

    Raises:
        KernelUnavailableError: `backend` is "triton", which cannot run here or with these tensors.
        ValueError: shapes do not fit together.
    """
    _check(query_key_value.select(3, 0).shape, rotary, bias, frame_mask)
    query_key_value = _autocast(query_key_value)
    if not use_triton(backend, query_key_value.device, _unsupported(query_key_value, rotary)):
        return reference.temporal_attention_packed(query_key_value, rotary=rotary, bias=bias, frame_mask=frame_mask)
    cos, sin = rotary or (None, None)
    return _attention_packed(query_key_value, cos, sin, bias, frame_mask)


def _check(
    shape: torch.Size, rotary: tuple[Tensor, Tensor] | None, bias: Tensor | None, frame_mask: Tensor | None
) -> None:
    """Raises ValueError where an option's shape would make a kernel read past its end."""
    num_clips, num_frames, _, num_heads, width = shape
    expected = {
        "cosine": (rotary and rotary[0], (num_frames, width // 2)),
        "sine": (rotary and rotary[1], (num_frames, width // 2)),
        "bias": (bias, (num_heads, num_frames, num_frames)),
        "frame_mask": (frame_mask, (num_clips, num_frames)),
    }
    for name, (tensor, wanted) in expected.items():
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ValueError(f"{name} must be {list(wanted)} for heads of {list(shape)}; got {list(tensor.shape)}")
    if rotary is not None and width % 2:
        raise ValueError(f"rotary needs an even head width; got {width}")


def _autocast(x: Tensor) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def _unsupported(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> str | None:
    """Returns what about a tensor [B, T, .., E] and the angles the kernels cannot do."""
    if x.shape[1] > 64:
        return f"they take up to 64 frames; got {x.shape[1]}"
    if x.shape[-1] > 128:
        return f"they take heads up to 128 wide; got {x.shape[-1]}"
    if x.dtype == torch.float64 and x.device.type == "cuda":
        return "they have no float64"
    if rotary is not None and (rotary[0].requires_grad or rotary[1].requires_grad):
        return "they give no gradient to rotary's angles"
    return None


def _mixed_types(query: Tensor, key: Tensor, value: Tensor) -> str | None:
    if query.dtype == key.dtype == value.dtype:
        return None
    return f"query, key and value must have one type; got {query.dtype}, {key.dtype} and {value.dtype}"


@library.custom_op("flamscale_kernels::temporal_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    bias: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    from flamscale_kernels import temporal_attention_launch as launch

    return launch.forward(query, key, value, cos, sin, bias, frame_mask)


@_attention.register_fake
def _(query: Tensor, *_: Tensor | None) -> Tensor:
    return query.new_empty(query.shape)


@library.custom_op("flamscale_kernels::temporal_attention_backward", mutates_args=())
def _attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    bias: Tensor | None,
    frame_mask: Tensor | None,
    grad_output: Tensor,
    wants_grad_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from flamscale_kernels import temporal_attention_launch as launch

    grads = [torch.empty(query.shape, dtype=query.dtype, device=query.device) for _ in range(3)]
    options = cos, sin, bias, frame_mask
    grad_bias = launch.backward(query, key, value, *options, grad_output, grads, wants_grad_bias)
    return grads[0], grads[1], grads[2], grad_bias


@_attention_backward.register_fake
def _(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_query, grad_key, grad_value = (query.new_empty(query.shape) for _ in range(3))
    return grad_query, grad_key, grad_value, _fake_grad_bias(query, rest[4], rest[7])


@library.custom_op("flamscale_kernels::temporal_attention_packed", mutates_args=())
def _attention_packed(
    query_key_value: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    bias: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    from flamscale_kernels import temporal_attention_launch as launch

    query, key, value = query_key_value.unbind(3)
    return launch.forward(query, key, value, cos, sin, bias, frame_mask)


@_attention_packed.register_fake
def _(query_key_value: Tensor, *_: Tensor | None) -> Tensor:
    return query_key_value.new_empty(query_key_value.select(3, 0).shape)


@library.custom_op("flamscale_kernels::temporal_attention_packed_backward", mutates_args=())
def _attention_packed_backward(
    query_key_value: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    bias: Tensor | None,
    frame_mask: Tensor | None,
    grad_output: Tensor,
    wants_grad_bias: bool,
) -> tuple[Tensor, Tensor]:
    from flamscale_kernels import temporal_attention_launch as launch

    grad = torch.empty(query_key_value.shape, dtype=query_key_value.dtype, device=query_key_value.device)
    options = cos, sin, bias, frame_mask
    query, key, value = query_key_value.unbind(3)
    return grad, launch.backward(query, key, value, *options, grad_output, grad.unbind(3), wants_grad_bias)


@_attention_packed_backward.register_fake
def _(query_key_value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return query_key_value.new_empty(query_key_value.shape), _fake_grad_bias(query_key_value, rest[2], rest[5])


def _fake_grad_bias(query: Tensor, bias: Tensor | None, wanted: bool) -> Tensor:
    return query.new_empty(0) if bias is None or not wanted else bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    wants_grad_bias = ctx.needs_input_grad[5]
    *grads, grad_bias = _attention_backward(*ctx.saved_tensors, grad_output, wants_grad_bias)
    return *grads, None, None, grad_bias if wants_grad_bias else None, None


def _backward_packed(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    wants_grad_bias = ctx.needs_input_grad[3]
    grad, grad_bias = _attention_packed_backward(*ctx.saved_tensors, grad_output, wants_grad_bias)
    return grad, None, None, grad_bias if wants_grad_bias else None, None


_attention.register_autograd(_backward, setup_context=_save)
_attention_packed.register_autograd(_backward_packed, setup_context=_save)
