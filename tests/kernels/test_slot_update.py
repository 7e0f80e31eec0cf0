"""Triton's slot update, in the interpreter, against the float64 reference: values, gradients, dispatch."""

import importlib
import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from flamscale_kernels import reference
from flamscale_kernels.dispatch import KernelUnavailableError
from torch import Tensor, library, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

module = importlib.import_module("flamscale_kernels.slot_update")
kernels = importlib.import_module("flamscale_kernels.slot_update_kernels")
slot_update = module.slot_update
triton = partial(slot_update, backend="triton")
Function = Callable[..., tuple[Tensor, Tensor]]


def inputs(num_slots: int = 5, width: int = 20, update_width: int = 12) -> dict[str, Tensor]:
    """Random arguments in float64, the same in every call."""
    random = torch.Generator().manual_seed(0)
    gates = 3 * width
    shapes = {
        "updates": (num_slots, update_width),
        "slots": (num_slots, width),
        "input_weight": (gates, update_width),
        "hidden_weight": (gates, width),
        "input_bias": (gates,),
        "hidden_bias": (gates,),
        "norm_weight": (width,),
        "norm_bias": (width,),
    }
    drawn = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}
    drawn["input_weight"] *= update_width**-0.5
    drawn["hidden_weight"] *= width**-0.5
    return drawn


def evaluated(function: Function, arguments: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Both results and the gradients of a random projection of them, at arguments of another type."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in arguments.items()}
    results = function(**leaves)
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=random, dtype=torch.float64).to(x.dtype) for x in results]
    return [x.detach() for x in (*results, *torch.autograd.grad(results, list(leaves.values()), grads))]


def rms_error_ratio(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


def assert_agrees(arguments: dict[str, Tensor]) -> None:
    expected = evaluated(reference.slot_update, arguments, torch.float64)
    for x, y in zip(evaluated(triton, arguments, torch.float32), expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, torch.float32)
        assert rms_error_ratio(x, y) < 1e-5


def test_the_reference_is_torchs_cell_and_norm() -> None:
    x = inputs()
    cell, norm = nn.GRUCell(12, 20, dtype=torch.float64), nn.LayerNorm(20, dtype=torch.float64)
    names = {"weight_ih": "input_weight", "weight_hh": "hidden_weight", "bias_ih": "input_bias"}
    cell.load_state_dict({theirs: x[ours] for theirs, ours in (names | {"bias_hh": "hidden_bias"}).items()})
    norm.load_state_dict({"weight": x["norm_weight"], "bias": x["norm_bias"]})
    slots = cell(x["updates"], x["slots"])
    assert_close(reference.slot_update(**x), (slots, norm(slots)), rtol=0.0, atol=0.0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("num_slots", "width"), [(1, 2), (1, 300), (2, 20), (17, 3), (17, 33), (17, 300), (66, 20), (66, 64)]
)
def test_values_and_gradients_equal_the_reference_in_odd_shapes(num_slots: int, width: int) -> None:
    assert_agrees(inputs(num_slots, width))


@pytest.mark.usefixtures("poisoned")
def test_the_widest_slots_agree_with_the_reference() -> None:
    assert_agrees(inputs(num_slots=3, width=module.MAX_CHANNELS))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("max_programs", [1, 2, 3])
def test_programs_that_take_several_tiles_sum_over_all_of_them(
    max_programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MAX_PROGRAMS", max_programs)
    monkeypatch.setattr(kernels, "TILE_SIZE", 64)
    assert_agrees(inputs(num_slots=17, width=20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_twice_the_references_own_error(dtype: torch.dtype) -> None:
    arguments = {name: x.to(dtype) for name, x in inputs(num_slots=33, width=40).items()}
    exact = evaluated(reference.slot_update, arguments, torch.float64)
    usual = evaluated(reference.slot_update, arguments, dtype)
    for x, y, expected in zip(evaluated(triton, arguments, dtype), usual, exact, strict=True):
        assert x.dtype == y.dtype
        allowed = 2 * (y.double() - expected).abs().max() + 1e-3 * expected.abs().max()
        assert (x.double() - expected).abs().max() <= allowed


def test_gradients_are_those_of_finite_differences() -> None:
    arguments = inputs(num_slots=2, width=3, update_width=2)
    leaves = [x.requires_grad_() for x in arguments.values()]
    assert torch.autograd.gradcheck(lambda *x: triton(**dict(zip(arguments, x, strict=True))), leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, in the interpreter: a gate of 0 is meant
def test_gates_far_beyond_saturation_stay_finite() -> None:
    arguments = inputs() | {"updates": 1e4 * inputs()["updates"]}
    ours, expected = (evaluated(f, arguments, torch.float32) for f in (triton, reference.slot_update))
    assert_close(ours, expected)
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.usefixtures("poisoned")
def test_layout_in_memory_does_not_matter() -> None:
    arguments = inputs()
    expected = evaluated(triton, arguments, torch.float32)
    gapped = {name: torch.stack((x, x), -1)[..., 0] for name, x in arguments.items()}
    turned = {name: x.T.contiguous().T if x.ndim == 2 else x for name, x in arguments.items()}
    for other in (gapped, turned):
        assert not other["slots"].is_contiguous()
        assert_close(evaluated(triton, other, torch.float32), expected)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("part", [0, 1, None], ids=["slots alone", "norm alone", "both"])
def test_gradients_of_stride_zero_arrive_by_either_result(part: int | None) -> None:
    found = []
    for function in (triton, reference.slot_update):
        leaves = {name: x.requires_grad_() for name, x in inputs().items()}
        new_slots, normed = function(**leaves)
        parts = (new_slots.sum(), normed[:, :3].sum())
        loss = sum(parts) if part is None else parts[part]
        found.append(torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True))
    assert_close(*found)


def test_five_repeats_are_bitwise_equal() -> None:
    arguments = inputs(num_slots=70, width=64)
    first = evaluated(triton, arguments, torch.float32)
    for _ in range(4):
        assert all(torch.equal(x, y) for x, y in zip(evaluated(triton, arguments, torch.float32), first, strict=True))


@pytest.mark.parametrize("part", [0, 1, None])
def test_operators_keep_torchs_contract(part: int | None) -> None:
    x = {name: value.float() for name, value in inputs().items()}
    gates = x["updates"] @ x["input_weight"].T, x["slots"] @ x["hidden_weight"].T
    tensors = [*gates, *list(x.values())[1:2], *list(x.values())[4:]]
    library.opcheck(module.slot_update_forward, (*(t.clone().requires_grad_() for t in tensors), 1e-5))
    grads = [torch.ones(5, 20) if part in (None, i) else None for i in range(2)]
    library.opcheck(module.slot_update_backward, (*tensors[:-1], *grads, 1e-5))


def test_torch_compile_traces_forward_and_backward_whole() -> None:
    traced = partial(inspect.unwrap(slot_update), backend="triton")  # without the tests' own checks of shapes
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    assert_close(evaluated(compiled, inputs(), torch.float32), evaluated(triton, inputs(), torch.float32))


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    expected = evaluated(triton, inputs(), torch.float32)
    recomputed = evaluated(lambda **kwargs: checkpoint(triton, **kwargs, use_reentrant=False), inputs(), torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(recomputed, expected, strict=True))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_autocast_gives_bfloat16_and_gradients_in_the_parameters_type(backend: str) -> None:
    leaves = {name: x.float().requires_grad_() for name, x in inputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = slot_update(**leaves, backend=backend)
    assert [x.dtype for x in results] == [torch.bfloat16] * 2
    sum(x.float().sum() for x in results).backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in leaves.values())


def test_auto_and_reference_are_the_reference_on_a_cpu() -> None:
    expected = reference.slot_update(**inputs())
    for backend in ("auto", "reference"):
        assert_close(slot_update(**inputs(), backend=backend), expected, rtol=0.0, atol=0.0)


def test_triton_on_a_cpu_without_the_interpreter_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelUnavailableError, match="tensors are on cpu"):
        triton(**inputs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (inputs(width=1025), r"slots of 1025 channels exceed 1024 channels"),
        (inputs(num_slots=0), "there is no slot"),
        (inputs() | {"slots": torch.zeros(5, 20)}, r"must share one type.*torch.float64 and torch.float32"),
    ],
)
def test_what_the_kernels_cannot_do_is_told(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(KernelUnavailableError, match=message):
        triton(**arguments)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("updates", (4, 12), "updates must be as many as slots, 5; got 4"),
        ("hidden_weight", (60, 21), r"hidden_weight has shape \(60, 21\); .* it must be \(60, 20\)"),
        ("hidden_bias", (59,), r"hidden_bias has shape \(59,\); .* it must be \(60,\)"),
        ("norm_bias", (19,), r"norm_bias has shape \(19,\); .* it must be \(20,\)"),
    ],
)
def test_shapes_that_do_not_fit_raise_with_what_would_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    unchecked = inspect.unwrap(slot_update)  # without the tests' own checks of shapes
    with pytest.raises(ValueError, match=message):
        unchecked(**inputs() | {name: torch.zeros(shape, dtype=torch.float64)})
