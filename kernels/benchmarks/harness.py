"""What every benchmark shares: peers and a case in; times, peak memory and share of the copy bandwidth out.

A benchmark first checks every peer against float64 and stops where one is wrong: no speed is printed beside a red
number. Times are medians with the 20th and 80th percentile of `triton.testing.do_bench`, which flushes the L2 cache
between runs.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
ERROR_RATIO = 0.01
"""Largest root-mean-square error of a peer in bf16, over the reference's root mean square (ratio)."""

Forward = Callable[..., Tensor]


class GateError(RuntimeError):
    """A peer's numbers are wrong."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds: median, 20th and 80th percentile."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one peer takes on one case.

    Attributes:
        forward, backward, both: times; `both` runs one after the other, as training does.
        peak_mib: memory allocated beyond the inputs at the worst moment of forward and backward (MiB).
        copy_share: bytes that any implementation has to move, over `both`, over the measured copy bandwidth; None where
            the benchmark states no such bytes.
    """

    peer: str
    forward: Timing
    backward: Timing
    both: Timing
    peak_mib: float
    copy_share: float | None


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Returns the root-mean-square error over the reference's root mean square."""
    reference = reference.double()
    return ((value.double() - reference).square().mean() / reference.square().mean()).sqrt().item()


def gate(peer: str, forward: Forward, reference: Forward, inputs: Sequence[Tensor]) -> None:
    """Compares values and gradients of a peer with the reference in float64.

    Raises:
        GateError: an error beyond ERROR_RATIO.
    """
    outcomes = []
    for function, dtype in ((forward, None), (reference, torch.float64)):
        leaves = [(x if dtype is None else x.to(dtype)).detach().clone().requires_grad_() for x in inputs]
        output = function(*leaves)
        weight = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
        outcomes.append([output, *torch.autograd.grad(output, leaves, weight.to(output.dtype))])
    for number, (value, expected) in enumerate(zip(*outcomes, strict=True)):
        error = relative_error(value, expected)
        if not error <= ERROR_RATIO:
            what = "the output" if number == 0 else f"gradient {number}"
            raise GateError(f"{peer}: {what} is off by {error:.2%} of float64, allowed is {ERROR_RATIO:.0%}.")


def measure(
    peer: str,
    forward: Forward,
    inputs: Sequence[Tensor],
    floor_bytes: int | None = None,
    copy_gb_s: float | None = None,
) -> Row:
    """Times a peer; its gradients go to all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = forward(*leaves)
    gradient = torch.randn_like(output)

    def backward() -> None:
        torch.autograd.grad(output, leaves, gradient, retain_graph=True)

    def both() -> None:
        torch.autograd.grad(forward(*leaves), leaves, gradient)

    both()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    times = [time_ms(lambda: forward(*leaves)), time_ms(backward), time_ms(both)]
    share = None
    if floor_bytes is not None and copy_gb_s is not None:
        share = floor_bytes / (times[2].median_ms * 1e-3) / (copy_gb_s * 1e9)
    return Row(peer=peer, forward=times[0], backward=times[1], both=times[2], peak_mib=peak_mib, copy_share=share)


def time_ms(function: Callable[[], Any]) -> Timing:
    """Times a function on the GPU, with the L2 cache flushed before every run."""
    from triton.testing import do_bench

    median, low, high = do_bench(function, warmup=200, rep=500, quantiles=[0.5, 0.2, 0.8])
    return Timing(median_ms=median, low_ms=low, high_ms=high)


def copy_bandwidth_gb_s() -> float:
    """Returns the bytes a device-to-device copy of 1 GiB reads and writes a second (GB/s)."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_ms(lambda: target.copy_(source)).median_ms * 1e-3) / 1e9


def environment() -> dict[str, str]:
    """Device and versions that a figure depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton")}
    return {"device": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda), **versions}


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line a peer, speed-ups as ratios over the first row, ours."""
    lines = [
        "| peer | forward ms | backward ms | both ms (20-80 %) | ours is faster by | peak MiB | share of copy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = "" if row.copy_share is None else f"{row.copy_share:.0%}"
        lines.append(
            f"| {row.peer} | {row.forward.median_ms:.3f} | {row.backward.median_ms:.3f} | {row.both.median_ms:.3f} "
            f"({row.both.low_ms:.3f}-{row.both.high_ms:.3f}) | {row.both.median_ms / rows[0].both.median_ms:.2f} x "
            f"| {row.peak_mib:.0f} | {share} |"
        )
    return "\n".join(lines)


def publish(name: str, cases: dict[str, list[Row]], extra: dict[str, Any]) -> None:
    """Prints the tables and writes results/NAME.json."""
    for case, rows in cases.items():
        print(f"\n{case}\n\n{table(rows)}")
    content = {"command": " ".join(["python", *sys.argv]), "environment": environment(), **extra}
    content["cases"] = {case: [asdict(row) for row in rows] for case, rows in cases.items()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def run(main: Callable[[], None]) -> None:
    """Runs a benchmark; a red gate or a missing GPU is one sentence and exit code 1."""
    try:
        main()
    except GateError as error:
        sys.exit(f"No speed is reported: {error}")


def need_gpu() -> None:
    """Ends the program where there is no GPU to time."""
    if not torch.cuda.is_available():
        sys.exit("Expected a CUDA GPU to time, found none; run this on a GPU machine, or pass --gate-only.")
