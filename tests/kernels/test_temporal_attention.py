"""Triton's temporal attention, in the interpreter, against the float64 reference: values, gradients, dispatch."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from flamscale_kernels import reference
from flamscale_kernels.dispatch import KernelUnavailableError
from torch import Tensor, library
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

module = importlib.import_module("flamscale_kernels.temporal_attention")
launch = importlib.import_module("flamscale_kernels.temporal_attention_launch")
settings = launch.settings
temporal_attention = module.temporal_attention
temporal_attention_packed = module.temporal_attention_packed


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shape and options of one call."""

    num_clips: int = 2
    num_frames: int = 5
    num_sequences: int = 3
    num_heads: int = 2
    width: int = 16
    rotary: bool = False
    bias: bool = False
    masked: bool = False

    def packed(self) -> Tensor:
        """Random query, key and value in one tensor [B, T, S, 3, H, E] of float64, the same in every call."""
        shape = (self.num_clips, self.num_frames, self.num_sequences, 3, self.num_heads, self.width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def options(self) -> dict[str, Any]:
        """Random keyword arguments in float64, the same in every call."""
        random = torch.Generator().manual_seed(1)
        options: dict[str, Any] = {}
        if self.rotary:
            angles = 3 * torch.randn(self.num_frames, self.width // 2, generator=random, dtype=torch.float64)
            options["rotary"] = (angles.cos(), angles.sin())
        if self.bias:
            shape = (self.num_heads, self.num_frames, self.num_frames)
            options["bias"] = torch.randn(shape, generator=random, dtype=torch.float64)
        if self.masked:
            mask = torch.rand(self.num_clips, self.num_frames, generator=random) < 0.6
            mask[0] = False  # a clip without any frame
            options["frame_mask"] = mask
        return options


EVERY_OPTION = Case(rotary=True, bias=True, masked=True)


def moved(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    moved = dict(options)
    if "rotary" in options:
        moved["rotary"] = tuple(x.to(dtype) for x in options["rotary"])
    if "bias" in options:
        moved["bias"] = options["bias"].to(dtype).requires_grad_()
    return moved


def evaluated(
    function: Callable[..., Tensor], case: Case, dtype: torch.dtype, packed: bool = False, **keywords: Any
) -> list[Tensor]:
    """Output, and the gradients of a random projection of it to query, key and value in one tensor, and to the bias."""
    query_key_value = case.packed().to(dtype).requires_grad_()
    options = moved(case.options(), dtype)
    inputs = (query_key_value,) if packed else query_key_value.unbind(3)
    output = function(*inputs, **options, **keywords)
    leaves = [query_key_value] + ([options["bias"]] if case.bias else [])
    random = torch.Generator().manual_seed(2)
    grad = torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def rms_error_ratio(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm())


def assert_agrees(case: Case) -> None:
    expected = evaluated(reference.temporal_attention, case, torch.float64)
    results = evaluated(temporal_attention_packed, case, torch.float32, packed=True, backend="triton")
    for x, y in zip(results, expected, strict=True):
        assert x.shape == y.shape
        assert x.dtype == torch.float32
        if y.any():
            assert rms_error_ratio(x, y) < 1e-5
        else:  # a single frame's weight is 1, whatever the logits
            assert x.abs().max() < 1e-5


@pytest.fixture(autouse=True)
def _launched_as_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives float32 and float64, in which results are compared, the launch settings that training runs with."""
    monkeypatch.setattr(launch, "settings", lambda num_frames, width, _: settings(num_frames, width, torch.bfloat16))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", [{}, {"rotary": True, "bias": True, "masked": True}], ids=["plain", "options"])
@pytest.mark.parametrize("width", [16, 24, 32])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 17, 33, 64])
def test_values_and_gradients_equal_the_reference_in_odd_shapes(
    num_frames: int, width: int, options: dict[str, bool]
) -> None:
    assert_agrees(Case(num_frames=num_frames, width=width, **options))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("num_frames", [5, 17, 33])
@pytest.mark.parametrize("width", [80, 128])
def test_values_and_gradients_equal_the_reference_with_wide_heads(num_frames: int, width: int) -> None:
    assert_agrees(Case(num_clips=1, num_frames=num_frames, num_sequences=2, num_heads=1, width=width, rotary=True))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("num_frames", [2, 5, 17, 33])
def test_float32_settings_agree_with_the_reference(num_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "settings", settings)
    assert_agrees(replace(EVERY_OPTION, num_frames=num_frames, width=24))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("num_frames", [1, 6, 20, 40])
def test_one_projection_gives_what_its_parts_give(num_frames: int) -> None:
    """The parts are strided views of one tensor here."""
    case = replace(EVERY_OPTION, num_frames=num_frames)
    parts = evaluated(temporal_attention, case, torch.float32, backend="triton")
    packed = evaluated(temporal_attention_packed, case, torch.float32, packed=True, backend="triton")
    assert all(torch.equal(x, y) for x, y in zip(parts, packed, strict=True))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("option", ["rotary", "bias", "masked"])
@pytest.mark.parametrize("num_frames", [4, 16, 32])
def test_every_option_alone_agrees_with_the_reference(num_frames: int, option: str) -> None:
    assert_agrees(Case(num_frames=num_frames, **{option: True}))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("num_clips", "num_sequences"), [(1, 1), (3, 1), (2, 19)])
@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_packed_groups_hold_any_number_of_sequences(num_frames: int, num_clips: int, num_sequences: int) -> None:
    """Up to 16 // T sequences share a group and 4 groups a program: the last ones are rarely full."""
    assert_agrees(replace(EVERY_OPTION, num_clips=num_clips, num_frames=num_frames, num_sequences=num_sequences))


@pytest.mark.usefixtures("poisoned")
def test_an_odd_width_goes_without_rotation() -> None:
    assert_agrees(Case(width=17, bias=True))
    with pytest.raises(ValueError, match="even head width"):
        temporal_attention(*Case(width=17).packed().unbind(3), rotary=(torch.ones(5, 8), torch.ones(5, 8)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_frames", [5, 33])
def test_half_precision_errs_at_most_twice_as_much_as_the_reference_in_it(num_frames: int, dtype: torch.dtype) -> None:
    case = replace(EVERY_OPTION, num_frames=num_frames, width=24)
    rounded = Case.packed(case).to(dtype).double()
    exact = reference.temporal_attention(*rounded.unbind(3), **case.options())
    same = evaluated(reference.temporal_attention, case, dtype)
    results = evaluated(temporal_attention, case, dtype, backend="triton")
    expected = evaluated(reference.temporal_attention, case, torch.float64)
    assert results[0].dtype == dtype
    assert (results[0] - exact).abs().max() <= 2 * (same[0] - exact).abs().max() + 1e-3 * exact.abs().max()
    for x, reference_x, y in zip(results[1:], same[1:], expected[1:], strict=True):
        assert x.dtype == dtype
        assert (x - y).abs().max() <= 2 * (reference_x - y).abs().max() + 1e-3 * y.abs().max()


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_missing_frame_has_no_influence_whatever_it_holds(backend: str) -> None:
    """Not even NaN, in values or gradients; its own output and gradients are 0."""
    case = Case(masked=True, rotary=True)
    options = moved(case.options(), torch.float32)
    missing = ~options["frame_mask"]
    clean = case.packed().float()
    dirty = clean.clone()
    dirty[missing] = float("nan")
    results = []
    for x in (clean.requires_grad_(), dirty.requires_grad_()):
        output = temporal_attention_packed(x, **options, backend=backend)
        results.append((output, *torch.autograd.grad(output.square().sum(), x)))
        assert not output[missing].any()
        assert not results[-1][1][missing].any()
    assert_close(results[0], results[1], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("num_frames", [6, 20, 40])
def test_later_frames_have_no_influence(num_frames: int) -> None:
    before = Case(num_frames=num_frames).packed().float()
    after = before.clone()
    after[:, 4:] = 100 * torch.randn(after[:, 4:].shape, generator=torch.Generator().manual_seed(3))
    first, second = (temporal_attention_packed(x, backend="triton") for x in (before, after))
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.isclose(first[:, 4:], second[:, 4:]).any()


@pytest.mark.usefixtures("poisoned")
def test_every_layout_in_memory_gives_the_same() -> None:
    case = Case(num_frames=7, width=24)
    parts = [part.contiguous() for part in case.packed().float().unbind(3)]
    expected = temporal_attention(*parts, backend="triton")
    layouts = [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),  # frames inside sequences
        lambda x: x.permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4),  # heads outermost
        lambda x: x.mT.contiguous().mT,  # the last dimension is not dense: this one alone is copied
        lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    ]
    for layout in layouts:
        inputs = [layout(parts[0]), parts[1], layout(parts[2])]
        assert not inputs[0].is_contiguous()
        output = temporal_attention(*inputs, backend="triton")
        assert output.is_contiguous()
        assert torch.equal(output, expected)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("packed", [False, True])
def test_a_gradient_may_be_one_number_everywhere(packed: bool) -> None:
    """The gradient of a sum has stride 0 in every dimension."""
    function, module_function = (
        (temporal_attention_packed, reference.temporal_attention_packed)
        if packed
        else (temporal_attention, reference.temporal_attention)
    )
    grads = []
    for run, keywords, dtype in (
        (function, {"backend": "triton"}, torch.float32),
        (module_function, {}, torch.float64),
    ):
        x = Case().packed().to(dtype).requires_grad_()
        run(*((x,) if packed else x.unbind(3)), **keywords).sum().backward()
        grads.append(x.grad)
    assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-5)


def test_the_packed_gradient_is_one_dense_tensor() -> None:
    x = Case().packed().float().requires_grad_()
    (grad,) = torch.autograd.grad(temporal_attention_packed(x, backend="triton").sum(), x)
    assert grad.is_contiguous()


@pytest.mark.parametrize("num_frames", [5, 20])
def test_repeats_are_equal_bit_for_bit(num_frames: int) -> None:
    case = replace(EVERY_OPTION, num_clips=1, num_frames=num_frames)
    first, *others = (evaluated(temporal_attention, case, torch.float32, backend="triton") for _ in range(5))
    for other in others:
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("num_frames", [2, 3])
def test_gradients_are_those_of_finite_differences(num_frames: int) -> None:
    case = Case(num_clips=1, num_frames=num_frames, num_sequences=2, num_heads=1, width=2, rotary=True, bias=True)
    options = case.options()
    inputs = (case.packed().requires_grad_(), options["bias"].requires_grad_())

    def function(query_key_value: Tensor, bias: Tensor) -> Tensor:
        rotary = options["rotary"]
        return temporal_attention_packed(query_key_value, rotary=rotary, bias=bias, backend="triton")

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("case", [Case(), EVERY_OPTION], ids=["plain", "options"])
def test_the_operations_are_registered_as_torch_wants(case: Case) -> None:
    options = moved(case.options(), torch.float32)
    cos, sin = options.get("rotary", (None, None))
    rest = (cos, sin, options.get("bias"), options.get("frame_mask"))
    packed = case.packed().float().requires_grad_()
    parts = [part.detach().clone().requires_grad_() for part in packed.unbind(3)]
    library.opcheck(module._attention, (*parts, *rest))
    library.opcheck(module._attention_packed, (packed, *rest))


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_as_one_graph(packed: bool) -> None:
    function = inspect.unwrap(temporal_attention_packed if packed else temporal_attention)  # no shape checks to trace

    def traced(query_key_value: Tensor, **keywords: Any) -> Tensor:
        return function(*((query_key_value,) if packed else query_key_value.unbind(3)), **keywords, backend="triton")

    torch.compiler.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    expected = evaluated(traced, EVERY_OPTION, torch.float32, packed=True)
    results = evaluated(compiled, EVERY_OPTION, torch.float32, packed=True)
    assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


def test_activation_checkpointing_gives_the_same() -> None:
    def checkpointed(*inputs: Tensor, **keywords: Any) -> Tensor:
        return checkpoint(temporal_attention, *inputs, use_reentrant=False, backend="triton", **keywords)

    expected = evaluated(temporal_attention, EVERY_OPTION, torch.float32, backend="triton")
    results = evaluated(checkpointed, EVERY_OPTION, torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_autocast_gives_bfloat16_and_gradients_in_the_parameters_type(backend: str) -> None:
    x = Case().packed().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [
            temporal_attention_packed(x, backend=backend),
            temporal_attention(*x.unbind(3), backend=backend),
        ]
    expected = reference.temporal_attention_packed(x)
    for output in outputs:
        assert output.dtype == torch.bfloat16
        assert_close(output.float(), expected, rtol=2e-2, atol=2e-2)
    outputs[0].sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 5, 3, 3, 2, 16), (2, 5, 0, 3, 2, 16)])
def test_no_sequences_give_an_empty_result(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    bias = torch.zeros(2, 5, 5, requires_grad=True)
    output = temporal_attention_packed(x, bias=bias, backend="triton")
    assert output.shape == (*shape[:3], *shape[4:])
    grad, grad_bias = torch.autograd.grad(output.sum(), (x, bias))
    assert grad.shape == shape
    assert not grad_bias.any()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_reference_runs_on_a_cpu_unless_triton_is_asked_for(backend: str) -> None:
    case = replace(EVERY_OPTION, width=8)
    expected = reference.temporal_attention(*case.packed().unbind(3), **case.options())
    assert torch.equal(temporal_attention(*case.packed().unbind(3), **case.options(), backend=backend), expected)
    assert torch.equal(temporal_attention_packed(case.packed(), **case.options(), backend=backend), expected)


def test_triton_without_interpreter_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="run on CUDA"):
        temporal_attention_packed(Case().packed(), backend="triton")


@pytest.mark.parametrize(
    ("case", "said"), [(Case(num_frames=65), "up to 64 frames; got 65"), (Case(width=130), "up to 128 wide; got 130")]
)
def test_what_the_kernels_cannot_do_falls_back_or_raises(case: Case, said: str) -> None:
    packed = case.packed()
    with pytest.raises(KernelUnavailableError, match=said):
        temporal_attention_packed(packed, backend="triton")
    with pytest.raises(KernelUnavailableError, match=said):
        temporal_attention(*packed.unbind(3), backend="triton")
    assert torch.equal(temporal_attention_packed(packed), reference.temporal_attention_packed(packed))


def test_learned_angles_and_mixed_types_are_the_references() -> None:
    case = Case(rotary=True)
    cos, sin = case.options()["rotary"]
    with pytest.raises(KernelUnavailableError, match="no gradient to rotary"):
        temporal_attention_packed(case.packed(), rotary=(cos.requires_grad_(), sin), backend="triton")
    query, key, value = case.packed().unbind(3)
    with pytest.raises(KernelUnavailableError, match="one type"):
        temporal_attention(query, key.float(), value, backend="triton")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bias": torch.zeros(2, 4, 4)}, "bias must be"),
        ({"frame_mask": torch.ones(2, 4, dtype=torch.bool)}, "frame_mask must be"),
        ({"rotary": (torch.ones(5, 8), torch.ones(5, 4))}, "sine must be"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_kernel_reads_past_their_end(
    options: dict[str, Any], said: str
) -> None:
    unchecked = inspect.unwrap(temporal_attention_packed)  # no shape checks of the tests
    with pytest.raises(ValueError, match=said):
        unchecked(Case().packed(), **options, backend="triton")
