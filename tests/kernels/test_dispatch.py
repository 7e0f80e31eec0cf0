"""Dispatch: which implementation runs where, and what is said when the one asked for cannot."""

import pytest
import torch
from flamscale_kernels import dispatch
from flamscale_kernels.dispatch import KernelUnavailableError, use_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[True, False], ids=["interpreted", "compiled"])
def interpreted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param else "0")
    return request.param


def test_auto_takes_triton_on_cuda_alone(interpreted: bool) -> None:
    assert use_triton("auto", CUDA)
    assert not use_triton("auto", CPU)


def test_auto_takes_the_reference_for_what_the_kernel_cannot_do(interpreted: bool) -> None:
    assert not use_triton("auto", CUDA, unsupported="65 frames are too many")


def test_the_reference_runs_wherever_it_is_asked_for(interpreted: bool) -> None:
    assert not use_triton("reference", CUDA)
    assert not use_triton("reference", CPU)


def test_triton_runs_on_cpu_tensors_in_its_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert use_triton("triton", CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match=r"run on CUDA, and the tensors are on cpu; use kernels 'auto'"):
        use_triton("triton", CPU)


def test_triton_that_cannot_do_it_says_why(interpreted: bool) -> None:
    with pytest.raises(KernelUnavailableError, match=r"^Triton kernels were asked for, but 65 frames are too many\.$"):
        use_triton("triton", CUDA, unsupported="65 frames are too many")


def test_without_triton_the_reference_runs_and_a_wish_for_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert not use_triton("auto", CUDA)
    with pytest.raises(KernelUnavailableError, match=r"Triton is not installed; pip install 'triton>=3\.6'"):
        use_triton("triton", CUDA)
