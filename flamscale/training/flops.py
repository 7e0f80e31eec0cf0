"""Model FLOPs: a config in, the floating-point operations of one clip out; and the rates that follow in a record."""

from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flamscale.config import PretrainConfig
from flamscale.models.lpips import Network
from flamscale.models.tokenizer import Tokenizer
from flamscale.training.devices import Precision, peak_flops
from flamscale.training.sizes import Stage, build_objective, empty_inputs


@dataclass(frozen=True)
class ClipFlops:
    """Model FLOPs of one clip: matrix products and convolutions, a multiplication and its addition as two."""

    forward: int
    """Forward pass, frozen networks included."""
    backward: int
    """Backward pass."""

    @property
    def total(self) -> int:
        return self.forward + self.backward


def count_clip_flops(
    config: PretrainConfig, stage: Stage, *, encodes_video: bool = True, lpips: Network = "vgg16"
) -> ClipFlops:
    """Counts the real objective's operations on fake tensors.

    Every operation runs as torch's own: the counter does not see Triton's kernels, and what fused attention and
    activation checkpointing compute a second time is no model FLOP (Chowdhery et al., arXiv 2204.02311, Appendix B).
    Causal attention counts as the full square of frames. Additions, norms and activations do not count.

    Args:
        config: the run.
        stage: which of its stages.
        encodes_video: stage 2 also runs the frozen tokenizer's encoder on every clip.
        lpips: network of stage 1's LPIPS term, if it has one.
    """
    flam = replace(config.flam, kernels="reference", attention="sdpa", activation_checkpointing=False)
    config = replace(config, flam=flam)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        objective, inputs = build_objective(config, stage, lpips), empty_inputs(config, stage, num_clips=1)
        with forward:
            loss, _ = objective(**inputs)
            if stage == "flam" and encodes_video:
                Tokenizer(config.tokenizer).encode(_empty_frames(config))
        with backward:
            loss.backward()
    return ClipFlops(forward.get_total_flops(), backward.get_total_flops())


def _empty_frames(config: PretrainConfig) -> torch.Tensor:
    size = config.tokenizer.image_size
    return torch.empty(config.flam_stage.clip_frames, 3, size, size)


@dataclass(frozen=True)
class Compute:
    """What a stage's records say of its use of the devices."""

    flops_per_clip: int
    """Model FLOPs of one clip, forward and backward (count)."""
    peak_flops: float | None
    """Peak of one device (FLOP/s); None where it is not known."""

    def rates(self, clips_per_s: float, num_devices: int) -> dict[str, float]:
        """Returns the model FLOP rate of one device and, where the peak is known, its share of the peak (MFU)."""
        rate = self.flops_per_clip * clips_per_s / num_devices
        rates = {"model_tflops_per_s": rate / 1e12}
        return rates | ({"mfu": rate / self.peak_flops} if self.peak_flops else {})


def device_peak_flops(device: torch.device, precision: Precision, stated_tflops: float = 0.0) -> float | None:
    """Returns the peak of a device (FLOP/s): as stated, or as its name tells, None for a CPU or an unknown GPU."""
    if stated_tflops:
        return 1e12 * stated_tflops
    return peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
