"""Slot update on the device that the tensors are on: torch's products, and between them one pass of Triton's kernels.

What the pass saves, computed and not measured: let E be the bytes of the slots in bf16. Under bf16 autocast, eager
torch moves 23 E forward (GRU cell 13, the norm in float32 with its two casts 10) and 38 E backward (norm, casts and the
norm's weights 16, the sum of both results' gradients 3, GRU cell 13, biases 6), in bf16 throughout 15 E and 27 E; the
kernels move 9 E and 16 E, and partial sums of 6,336 D bytes, written and read. For 512 frames of 16 slots of 256
channels, at a copy's 4.3 TB/s, that is 60 against 25 microseconds an iteration, beside 77 for all its products. Smaller
batches wait for launches: 4 forward and 8 backward become 1 and 4.

What follows the norm stays torch's. The MLP's first bias is in cuBLAS's product already, and a GELU apart from the
product reads and writes as much in any kernel: one would save the sum of the bias's gradient, 4 E of 24 E. The residual
sum fused with the next norm would move 8 E instead of 32 E under autocast (13 E in bf16 throughout); it would tie the
MLP to the attention that comes after it, and is not done.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, library
from torch.nn import functional

from flamscale_kernels import reference
from flamscale_kernels.dispatch import Backend, is_interpreted, on_device_of, use_triton

MAX_CHANNELS = 1024


def slot_update(
    updates: Float[Tensor, "R U"],
    slots: Float[Tensor, "R D"],
    *,
    input_weight: Float[Tensor, "3*D U"],
    hidden_weight: Float[Tensor, "3*D D"],
    input_bias: Float[Tensor, "3*D"],
    hidden_bias: Float[Tensor, "3*D"],
    norm_weight: Float[Tensor, "D"],
    norm_bias: Float[Tensor, "D"],
    epsilon: float = 1e-5,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "R D"], Float[Tensor, "R D"]]:
    """GRU cell on every slot, and the layer norm of what it gives.

    Arguments and results are `reference.slot_update`'s, which is the specification. Under autocast, slots and products
    are of its type, and so are the results; weights and biases stay as they are. The Triton kernels are differentiable
    once, in every tensor.

    Args:
        updates, slots, input_weight, hidden_weight, input_bias, hidden_bias, norm_weight, norm_bias, epsilon: see the
            reference.
        backend: which implementation runs; see `dispatch.Backend`.

    Raises:
        ValueError: shapes that do not fit one another.
        KernelUnavailableError: `backend` is "triton", which the device or these tensors rule out.
    """
    weights = {
        "input_weight": input_weight,
        "hidden_weight": hidden_weight,
        "input_bias": input_bias,
        "hidden_bias": hidden_bias,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
    }
    _check_shapes(updates, slots, weights)
    if torch.is_autocast_enabled(slots.device.type):
        dtype = torch.get_autocast_dtype(slots.device.type)
        updates, slots = updates.to(dtype), slots.to(dtype)
    if not use_triton(backend, slots.device, _unsupported(updates, slots)):
        return reference.slot_update(updates, slots, **weights, epsilon=epsilon)
    return slot_update_forward(
        functional.linear(updates, input_weight),
        functional.linear(slots, hidden_weight),
        slots,
        input_bias,
        hidden_bias,
        norm_weight,
        norm_bias,
        epsilon,
    )


def _check_shapes(updates: Tensor, slots: Tensor, weights: dict[str, Tensor]) -> None:
    """Raises where a kernel would read past a tensor's end."""
    num_rows, width = slots.shape
    gates = 3 * width
    expected = {
        "input_weight": (gates, updates.shape[1]),
        "hidden_weight": (gates, width),
        "input_bias": (gates,),
        "hidden_bias": (gates,),
        "norm_weight": (width,),
        "norm_bias": (width,),
    }
    if len(updates) != num_rows:
        raise ValueError(f"slot_update: updates must be as many as slots, {num_rows}; got {len(updates)}")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"slot_update: {name} has shape {tuple(weights[name].shape)}; with updates {tuple(updates.shape)} and "
                f"slots {tuple(slots.shape)} it must be {shape}"
            )


def _unsupported(updates: Tensor, slots: Tensor) -> str | None:
    """Returns what about these tensors the kernels cannot do, None where they can do it."""
    possible = {torch.float16, torch.bfloat16, torch.float32} | ({torch.float64} if is_interpreted() else set())
    if updates.dtype != slots.dtype or slots.dtype not in possible:
        allowed = ", ".join(sorted(map(str, possible)))
        return f"updates and slots must share one type of {allowed}, and they have {updates.dtype} and {slots.dtype}"
    if slots.shape[1] > MAX_CHANNELS:
        return f"slots of {slots.shape[1]} channels exceed {MAX_CHANNELS} channels"
    if 0 in slots.shape:
        return "there is no slot or no channel"
    return None


@library.custom_op("flamscale_kernels::slot_update_forward", mutates_args=())
def slot_update_forward(
    input_gates: Tensor,
    hidden_gates: Tensor,
    slots: Tensor,
    input_bias: Tensor,
    hidden_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """New slots and their layer norm [R, D] by the forward kernel, from products [R, 3 D] without their biases."""
    from flamscale_kernels import slot_update_kernels as kernels

    new_slots, normed = _empty_like(slots, slots)
    options = kernels.constants(slots.shape[1], slots.dtype)
    inputs = input_gates, hidden_gates, slots, input_bias, hidden_bias, norm_weight, norm_bias
    with on_device_of(slots):
        kernels.slot_update_forward_kernel[(-(-len(slots) // options["ROW_BLOCK"]),)](
            *(x.contiguous() for x in inputs), new_slots, normed, len(slots), epsilon,
            **options, num_warps=kernels.NUM_WARPS,
        )  # fmt: skip
    return new_slots, normed


@slot_update_forward.register_fake
def _(input_gates: Tensor, hidden_gates: Tensor, slots: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    new_slots, normed = _empty_like(slots, slots)
    return new_slots, normed


@library.custom_op("flamscale_kernels::slot_update_backward", mutates_args=())
def slot_update_backward(
    input_gates: Tensor,
    hidden_gates: Tensor,
    slots: Tensor,
    input_bias: Tensor,
    hidden_bias: Tensor,
    norm_weight: Tensor,
    grad_new_slots: Tensor | None,
    grad_normed: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of both products and the old slots, and sums [6, D] over the slots, by the backward kernel.

    The sums are the gradients of the biases of reset gate, update gate, candidate's input side and candidate's hidden
    side, then of the norm's weight and bias.
    """
    from flamscale_kernels import slot_update_kernels as kernels

    grad_input_gates, grad_hidden_gates, grad_slots = _empty_like(input_gates, hidden_gates, slots)
    width = slots.shape[1]
    options = kernels.constants(width, slots.dtype)
    num_programs = min(kernels.MAX_PROGRAMS, -(-len(slots) // options["ROW_BLOCK"]))
    sums = torch.empty((num_programs, 6, width), dtype=_accumulator(slots), device=slots.device)
    inputs = input_gates, hidden_gates, slots, input_bias, hidden_bias, norm_weight, grad_new_slots, grad_normed
    with on_device_of(slots):
        kernels.slot_update_backward_kernel[(num_programs,)](
            *(None if x is None else x.contiguous() for x in inputs),
            grad_input_gates, grad_hidden_gates, grad_slots, sums, len(slots), epsilon,
            **options, num_warps=kernels.NUM_WARPS,
        )  # fmt: skip
    return grad_input_gates, grad_hidden_gates, grad_slots, sums.sum(dim=0)


@slot_update_backward.register_fake
def _(input_gates: Tensor, hidden_gates: Tensor, slots: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.empty((6, slots.shape[1]), dtype=_accumulator(slots), device=slots.device)
    grad_input_gates, grad_hidden_gates, grad_slots = _empty_like(input_gates, hidden_gates, slots)
    return grad_input_gates, grad_hidden_gates, grad_slots, sums


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_new_slots: Tensor | None, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, norm_bias = ctx.saved_tensors
    *grads, sums = slot_update_backward(*tensors, grad_new_slots, grad_normed, ctx.epsilon)
    _, _, _, input_bias, hidden_bias, norm_weight = tensors
    reset, update, proposed, recalled, weight, bias = sums.unbind(0)
    return (
        *grads,
        torch.cat((reset, update, proposed)).to(input_bias.dtype),
        torch.cat((reset, update, recalled)).to(hidden_bias.dtype),
        weight.to(norm_weight.dtype),
        bias.to(norm_bias.dtype),
        None,
    )


slot_update_forward.register_autograd(_backward, setup_context=_save_for_backward)


def _empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns contiguous tensors of these shapes and types."""
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
