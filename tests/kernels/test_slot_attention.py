"""Triton's slot attention, in the interpreter, against the float64 reference: values, gradients, dispatch."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from flamscale_kernels import reference
from flamscale_kernels.dispatch import KernelUnavailableError
from torch import Tensor, library
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

module = importlib.import_module("flamscale_kernels.slot_attention")
slot_attention = module.slot_attention
DIFFERENTIABLE = ("tokens", "queries", "values", "logit_bias")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shape and options of one call; `own_tokens` gives each head its own tokens and values."""

    num_frames: int = 2
    num_tokens: int = 17
    num_slots: int = 3
    channels: int = 20
    heads: int | None = None
    own_tokens: bool = False
    value_channels: int | None = None
    bias: bool = False
    masks: tuple[str, ...] = ()
    weighted: bool = False
    epsilon_on: str = "mass"

    def inputs(self) -> dict[str, Any]:
        """Random arguments in float64, the same in every call."""
        random = torch.Generator().manual_seed(0)
        heads = () if self.heads is None else (self.heads,)
        token = (self.num_frames, self.num_tokens, *(heads if self.own_tokens else ()))
        slot = (self.num_frames, *heads, self.num_slots)
        shapes = {"tokens": (*token, self.channels), "queries": (*slot, self.channels)}
        if self.value_channels:
            shapes["values"] = (*token, self.value_channels)
        if self.bias:
            shapes["logit_bias"] = slot
        inputs: dict[str, Any] = {
            name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()
        }
        for name in self.masks:
            count = self.num_slots if name == "slot_mask" else self.num_tokens
            inputs[name] = torch.rand(self.num_frames, count, generator=random) < 0.6
            inputs[name][0] = False  # a frame without any
            inputs[name][1:, 0] = True
        if self.weighted:
            inputs["token_weight"] = 3 * torch.rand(self.num_frames, self.num_tokens, generator=random)
        return inputs | {"scale": self.channels**-0.5, "epsilon": 1e-3, "epsilon_on": self.epsilon_on}


def evaluated(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    """Means, masses and the gradients of a random projection of both, at inputs of another type."""
    inputs = {name: x.to(dtype) if name in DIFFERENTIABLE else x for name, x in inputs.items()}
    leaves = [inputs[name].requires_grad_() for name in DIFFERENTIABLE if name in inputs]
    results = function(**inputs)
    random = torch.Generator().manual_seed(1)
    grads = [torch.randn(x.shape, generator=random, dtype=torch.float64).to(x.dtype) for x in results]
    return [x.detach() for x in (*results, *torch.autograd.grad(results, leaves, grads))]


def triton(**inputs: Any) -> tuple[Tensor, Tensor]:
    return slot_attention(**inputs, backend="triton")


def rms_error_ratio(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


def assert_agrees(case: Case) -> None:
    inputs = case.inputs()
    expected = evaluated(reference.slot_attention, inputs, torch.float64)
    for x, y in zip(evaluated(triton, inputs, torch.float32), expected, strict=True):
        assert x.shape == y.shape
        assert x.dtype == torch.float32
        if y.any():
            assert rms_error_ratio(x, y) < 1e-5
        else:  # a single slot's share of each token is 1, whatever the logits
            assert x.abs().max() < 1e-5


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("num_tokens", [1, 5, 17, 33, 70])
@pytest.mark.parametrize("num_slots", [1, 3, 16, 33])
@pytest.mark.parametrize("channels", [8, 20, 64])
def test_values_and_gradients_equal_the_reference_in_odd_shapes(num_tokens: int, num_slots: int, channels: int) -> None:
    assert_agrees(Case(num_tokens=num_tokens, num_slots=num_slots, channels=channels))


VARIANTS = {
    "epsilon on the attention": Case(epsilon_on="attention"),
    "values of their own": Case(value_channels=12),
    "values wider than keys": Case(value_channels=40, num_tokens=70),
    "logit bias": Case(bias=True),
    "slot mask": Case(masks=("slot_mask",)),
    "token mask": Case(masks=("token_mask",)),
    "token weight, own values": Case(weighted=True, value_channels=12),
    "token weight, heads, epsilon on the attention": Case(weighted=True, heads=2, epsilon_on="attention"),
    "both masks, epsilon on the attention": Case(masks=("slot_mask", "token_mask"), epsilon_on="attention", bias=True),
    "heads on shared tokens": Case(heads=2),
    "heads on shared tokens and values": Case(heads=3, value_channels=12, epsilon_on="attention"),
    "heads with their own tokens": Case(heads=2, own_tokens=True),
    "heads with their own keys and values": Case(heads=2, own_tokens=True, value_channels=12, num_tokens=70),
    "heads, bias and masks": Case(heads=2, own_tokens=True, bias=True, masks=("slot_mask", "token_mask")),
}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", VARIANTS.values(), ids=VARIANTS)
def test_values_and_gradients_equal_the_reference_in_every_variant(case: Case) -> None:
    assert_agrees(case)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "case",
    [
        Case(num_slots=33, channels=520, num_tokens=5, num_frames=1),
        Case(num_slots=64, channels=1024, num_tokens=3, num_frames=1),
        Case(num_slots=20, channels=300, value_channels=600, heads=2, num_tokens=5, num_frames=1),
        Case(num_slots=5, channels=40, value_channels=1024, num_tokens=5, num_frames=1),
    ],
)
def test_tiles_of_half_precision_cover_every_column_of_wide_shapes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = importlib.import_module("flamscale_kernels.slot_attention_launch")
    tiles = launch.tiles
    monkeypatch.setattr(launch, "tiles", lambda k, c, v, itemsize, backward: tiles(k, c, v, 2, backward=backward))
    assert_agrees(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case", [Case(num_tokens=70), Case(heads=2, own_tokens=True, value_channels=12, epsilon_on="attention")]
)
def test_half_precision_errs_no_more_than_twice_the_references_own_error(case: Case, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype) if name in DIFFERENTIABLE else x for name, x in case.inputs().items()}
    exact = evaluated(reference.slot_attention, inputs, torch.float64)
    usual = evaluated(reference.slot_attention, inputs, dtype)
    for x, y, expected in zip(evaluated(triton, inputs, dtype), usual, exact, strict=True):
        assert x.dtype == y.dtype
        allowed = 2 * (y.double() - expected).abs().max() + 1e-3 * expected.abs().max()
        assert (x.double() - expected).abs().max() <= allowed


def test_gradients_are_those_of_finite_differences() -> None:
    case = Case(num_frames=1, num_tokens=4, num_slots=2, channels=3, value_channels=2, bias=True)
    inputs = case.inputs()
    leaves = [inputs.pop(name).requires_grad_() for name in DIFFERENTIABLE]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return triton(**dict(zip(DIFFERENTIABLE, values, strict=True)), **inputs)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_layout_in_memory_does_not_matter() -> None:
    case = Case(heads=2, own_tokens=True, value_channels=12)
    inputs = case.inputs()
    expected = evaluated(triton, inputs, torch.float32)
    gapped = {
        name: torch.stack((x, x), -1)[..., 0] if isinstance(x, Tensor) else x for name, x in inputs.items()
    }  # no contiguous dimension
    swapped = {
        name: x.transpose(0, 2).contiguous().transpose(0, 2) if isinstance(x, Tensor) else x
        for name, x in inputs.items()
    }  # frames inside heads
    for other in (gapped, swapped):
        assert not other["tokens"].is_contiguous()
        for x, y in zip(evaluated(triton, other, torch.float32), expected, strict=True):
            assert torch.equal(x, y)


def test_tensors_expanded_over_frames_are_read_in_place() -> None:
    inputs = Case().inputs()
    once = {name: inputs[name][:1].float().requires_grad_() for name in ("tokens", "queries")}
    expanded = {name: x.expand(3, -1, -1) for name, x in once.items()}
    results = []
    for function in (triton, reference.slot_attention):
        means, mass = function(**expanded, scale=0.3)
        results.append([means, mass, *torch.autograd.grad(means.square().sum() + mass.sum(), list(once.values()))])
    assert_close(*results)


def test_gradients_of_stride_zero_arrive() -> None:
    inputs = Case().inputs()
    results = []
    for function in (triton, reference.slot_attention):
        tokens, queries = inputs["tokens"].clone().requires_grad_(), inputs["queries"].clone().requires_grad_()
        means, mass = function(tokens=tokens, queries=queries, scale=0.3)
        (means.sum() + mass[:, 0].sum()).backward()
        results.append((tokens.grad, queries.grad))
    assert_close(*results)


@pytest.mark.parametrize("part", [0, 1])
def test_either_result_alone_gives_gradients(part: int) -> None:
    inputs = Case().inputs()
    results = []
    for function in (triton, reference.slot_attention):
        tokens, queries = inputs["tokens"].clone().requires_grad_(), inputs["queries"].clone().requires_grad_()
        function(tokens=tokens, queries=queries, scale=0.3)[part].square().sum().backward()
        results.append((tokens.grad, queries.grad))
    assert_close(*results)


def test_tokens_that_need_no_gradient_cost_no_memory_for_one() -> None:
    tokens, queries = torch.randn(2, 5, 1, 4), torch.randn(2, 1, 3, 4)
    options = (None, None, None, None)
    means, mass = module.slot_attention_forward(tokens, queries, *options, 0.5, 1e-6, False)
    rest = (means, mass, torch.ones_like(means), None, 0.5, 1e-6, False)
    without = module.slot_attention_backward(tokens, queries, *options, *rest, False)
    weighted = module.slot_attention_backward(tokens, queries, *options, *rest, True)
    assert without[2].numel() == 0
    assert weighted[2].shape == (2, 2, 1, 3, 5)
    assert torch.equal(without[0], weighted[0])

    slots = torch.randn(2, 3, 4, requires_grad=True)
    triton(tokens=torch.randn(2, 5, 4), queries=slots, scale=0.5)[0].sum().backward()
    assert slots.grad is not None


def test_five_repeats_are_bitwise_equal() -> None:
    inputs = Case(num_tokens=70, bias=True).inputs()
    first = evaluated(triton, inputs, torch.float32)
    for _ in range(4):
        assert all(torch.equal(x, y) for x, y in zip(evaluated(triton, inputs, torch.float32), first, strict=True))


@pytest.mark.parametrize("full", [False, True])
def test_operators_keep_torchs_contract(full: bool) -> None:
    case = Case(num_tokens=5, channels=4)
    if full:
        case = replace(
            case, heads=2, own_tokens=True, value_channels=6, bias=True, masks=("token_mask",), weighted=True
        )
    inputs = {name: x.float() if name in DIFFERENTIABLE else x for name, x in case.inputs().items()}
    if not full:
        inputs |= {"tokens": inputs["tokens"].unsqueeze(2), "queries": inputs["queries"].unsqueeze(1)}
    tensors = [inputs[name].requires_grad_() if name in inputs else None for name in DIFFERENTIABLE]
    arguments = (*tensors, inputs.get("token_mask"), inputs.get("token_weight"))
    library.opcheck(module.slot_attention_forward, (*arguments, 0.5, 1e-6, full))
    results = module.slot_attention_forward(*arguments, 0.5, 1e-6, full)
    detached = [None if x is None else x.detach() for x in (*arguments, *results)]
    grads = torch.ones_like(results[0]), (torch.ones_like(results[1]) if full else None)
    library.opcheck(module.slot_attention_backward, (*detached, *grads, 0.5, 1e-6, full, full))


def test_torch_compile_traces_forward_and_backward_whole() -> None:
    traced = partial(inspect.unwrap(slot_attention), backend="triton")  # without the tests' own checks of shapes
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    inputs = Case(masks=("slot_mask", "token_mask")).inputs()
    expected = evaluated(triton, inputs, torch.float32)
    assert_close(evaluated(compiled, inputs, torch.float32), expected)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    inputs = Case().inputs()
    expected = evaluated(triton, inputs, torch.float32)
    recomputed = evaluated(lambda **kwargs: checkpoint(triton, **kwargs, use_reentrant=False), inputs, torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(recomputed, expected, strict=True))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_autocast_gives_means_of_its_type_and_masses_in_float32(backend: str) -> None:
    tokens, queries = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means, mass = slot_attention(tokens, queries, 0.5, backend=backend)
    assert (means.dtype, mass.dtype) == (torch.bfloat16, torch.float32)
    means.float().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.dtype == torch.float32


def test_auto_and_reference_are_the_reference_on_a_cpu() -> None:
    inputs = Case(masks=("slot_mask",)).inputs()
    expected = reference.slot_attention(**inputs)
    for backend in ("auto", "reference"):
        assert_close(slot_attention(**inputs, backend=backend), expected, rtol=0.0, atol=0.0)


def test_triton_on_a_cpu_without_the_interpreter_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelUnavailableError, match="tensors are on cpu"):
        slot_attention(torch.randn(1, 5, 4), torch.randn(1, 3, 4), 0.5, backend="triton")


@pytest.mark.parametrize(
    ("tokens", "queries", "message"),
    [
        (torch.zeros(1, 5, 4), torch.zeros(1, 65, 4), "65 slots of 4 channels exceed"),
        (torch.zeros(1, 5, 1025), torch.zeros(1, 3, 1025), "3 slots of 1025 channels exceed"),
        (torch.zeros(1, 5, 4).double(), torch.zeros(1, 3, 4), r"must share one type.*float32, torch.float64"),
        (torch.zeros(1, 0, 4), torch.zeros(1, 3, 4), "no element"),
    ],
)
def test_what_the_kernels_cannot_do_is_told(tokens: Tensor, queries: Tensor, message: str) -> None:
    with pytest.raises(KernelUnavailableError, match=message):
        slot_attention(tokens, queries, 0.5, backend="triton")


def test_shapes_that_do_not_fit_raise_with_what_would_fit() -> None:
    with pytest.raises(ValueError, match=r"tokens has shape \(2, 5, 3, 4\).*\(2, 5, 4\) or \(2, 5, 2, 4\)"):
        slot_attention(torch.zeros(2, 5, 3, 4), torch.zeros(2, 2, 3, 4), 0.5)
