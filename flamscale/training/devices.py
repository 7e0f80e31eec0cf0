"""GPUs as their vendors describe them: a device's name and a precision in, its peak rate out; imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One model of GPU; rates are dense, without the data sheets' factor of 2 for sparsity."""

    device_names: tuple[str, ...]
    """As torch.cuda.get_device_name tells them; a slice of a GPU (MIG) has another name."""
    bf16_tflops: float
    """Peak of the tensor cores in bf16 with fp32 sums (TFLOP/s)."""
    tf32_tflops: float
    """Peak of the tensor cores in TF32 (TFLOP/s)."""
    memory_gb: float
    """Memory (10^9 bytes)."""


GPUS = {
    "a100-40gb": Gpu(
        device_names=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
        bf16_tflops=312.0,
        tf32_tflops=156.0,
        memory_gb=40,
    ),
    "a100-80gb": Gpu(
        device_names=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        bf16_tflops=312.0,
        tf32_tflops=156.0,
        memory_gb=80,
    ),
    "b200": Gpu(device_names=("NVIDIA B200",), bf16_tflops=2_250.0, tf32_tflops=1_125.0, memory_gb=180),
    "h100-nvl": Gpu(device_names=("NVIDIA H100 NVL",), bf16_tflops=835.5, tf32_tflops=417.5, memory_gb=94),
    "h100-pcie": Gpu(device_names=("NVIDIA H100 PCIe",), bf16_tflops=756.0, tf32_tflops=378.0, memory_gb=80),
    "h100-sxm": Gpu(device_names=("NVIDIA H100 80GB HBM3",), bf16_tflops=989.4, tf32_tflops=494.7, memory_gb=80),
    "h200": Gpu(device_names=("NVIDIA H200",), bf16_tflops=989.4, tf32_tflops=494.7, memory_gb=141),
    "h200-nvl": Gpu(device_names=("NVIDIA H200 NVL",), bf16_tflops=835.5, tf32_tflops=417.5, memory_gb=141),
    "l40s": Gpu(device_names=("NVIDIA L40S",), bf16_tflops=362.0, tf32_tflops=183.0, memory_gb=48),
    "rtx4090": Gpu(device_names=("NVIDIA GeForce RTX 4090",), bf16_tflops=165.2, tf32_tflops=82.6, memory_gb=24),
}
"""By the name that recipes/plan.py takes.

Source: NVIDIA's data sheets of H100, H200, A100, L40S and HGX B200, and the architecture white papers of Hopper and
Ada (appendix on the RTX 4090), as remembered: compare before relying on B200, the NVL models and L40S.
"""


def gpu_peak_flops(gpu: Gpu, precision: Precision) -> float:
    """Returns the peak (FLOP/s) of a GPU at a stage's precision.

    For fp32 it is TF32's, the fastest arithmetic that takes fp32 tensors: cuDNN's convolutions use it unasked, torch's
    matrix products only where told to. A utilisation measured against it never flatters.
    """
    return 1e12 * (gpu.bf16_tflops if precision == "bf16" else gpu.tf32_tflops)


def peak_flops(device_name: str, precision: Precision) -> float | None:
    """Returns the peak (FLOP/s) of the GPU that torch calls `device_name`, None where it is not in GPUS."""
    for gpu in GPUS.values():
        if device_name in gpu.device_names:
            return gpu_peak_flops(gpu, precision)
    return None
