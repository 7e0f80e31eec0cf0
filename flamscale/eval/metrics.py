"""Measures of one frame or one run: two images in, PSNR, SSIM and LPIPS out; indices in, codebook usage out.

Images are float [F, 3, H, W] in [0, 1]. Every measure is taken of single frames first; `FrameScores` averages them.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from flamscale.models.lpips import Lpips
from flamscale.training.objectives import MOVING_THRESHOLD

MAX_PSNR_DB = 100.0
"""PSNR of two equal frames (dB): the mean squared error is kept from falling below 1e-10."""


def frame_psnr(
    prediction: Float[Tensor, "F 3 H W"], truth: Float[Tensor, "F 3 H W"], pixels: Bool[Tensor, "F H W"] | None = None
) -> Float[Tensor, "F"]:
    """Returns the PSNR of every frame (dB, float64), over the given pixels only; NaN where a frame has none of them."""
    squared_error = (prediction.double() - truth.double()).square().mean(dim=1)  # [F, H, W]
    if pixels is None:
        mse = squared_error.mean(dim=(1, 2))
    else:
        mse = (squared_error * pixels).sum(dim=(1, 2)) / pixels.sum(dim=(1, 2))
    return -10.0 * torch.log10(mse.clamp_min(10.0 ** (-MAX_PSNR_DB / 10.0)))


def frame_ssim(prediction: Float[Tensor, "F 3 H W"], truth: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F"]:
    """Returns the SSIM of every frame (Gaussian window of 11 pixels, sigma 1.5; Wang et al., 2004)."""
    ssim = structural_similarity_index_measure(prediction, truth, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return ssim.reshape(-1)


def moving_pixels(truth: Float[Tensor, "B S 3 H W"], last_context: Float[Tensor, "B 3 H W"]) -> Bool[Tensor, "B S H W"]:
    """Returns where each true frame differs from the clip's last context frame: what a rollout has to predict."""
    return (truth - last_context[:, None]).abs().amax(dim=2) > MOVING_THRESHOLD


def codebook_usage(indices: Int[Tensor, "..."], codebook_size: int) -> tuple[float, float]:
    """Returns the share of codebook entries that occur at all, and the perplexity of their distribution (entries)."""
    counts = torch.bincount(indices.flatten(), minlength=codebook_size).double()
    shares = counts[counts > 0] / counts.sum()
    return len(shares) / codebook_size, float(torch.exp(-(shares * shares.log()).sum()))


@dataclass
class FrameScores:
    """Scores of the S predicted frames of clips, gathered batch by batch as [B, S]; LPIPS only with a network."""

    network: Lpips | None = None
    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    moving_psnr: list[Tensor] = field(default_factory=list)
    lpips: list[Tensor] = field(default_factory=list)

    def add(
        self,
        images: Float[Tensor, "B S 3 H W"],
        truth: Float[Tensor, "B S 3 H W"],
        moving: Bool[Tensor, "B S H W"],
    ) -> None:
        """Scores images against the truth, and once more where the truth moves."""
        batch = images.shape[:2]
        images, truth, moving = images.flatten(0, 1), truth.flatten(0, 1), moving.flatten(0, 1)
        self.psnr.append(frame_psnr(images, truth).unflatten(0, batch).cpu())
        self.ssim.append(frame_ssim(images, truth).unflatten(0, batch).cpu())
        self.moving_psnr.append(frame_psnr(images, truth, moving).unflatten(0, batch).cpu())
        if self.network is not None:
            self.lpips.append(self.network(images, truth).unflatten(0, batch).cpu())

    def means(self, prefix: str = "") -> dict[str, float]:
        """Returns the means over frames and clips; moving-pixel PSNR over the frames with motion, NaN without any."""
        moving_psnr = torch.cat(self.moving_psnr)
        scores = {
            f"{prefix}psnr": mean(self.psnr),
            f"{prefix}ssim": mean(self.ssim),
            f"{prefix}moving_psnr": mean([moving_psnr[~moving_psnr.isnan()]]),
        }
        return scores | ({f"{prefix}lpips": mean(self.lpips)} if self.lpips else {})

    def psnr_by_clip(self) -> Float[Tensor, " B"]:
        """Returns the mean PSNR of each clip (dB)."""
        return torch.cat(self.psnr).mean(dim=1)

    def ssim_by_clip(self) -> Float[Tensor, " B"]:
        """Returns the mean SSIM of each clip."""
        return torch.cat(self.ssim).mean(dim=1)

    def by_clip(self) -> dict[str, list[float]]:
        """Returns each clip's mean PSNR (dB), SSIM and, with a network, LPIPS: what intervals are made of."""
        found = {"psnr": self.psnr_by_clip(), "ssim": self.ssim_by_clip()}
        if self.lpips:
            found["lpips"] = torch.cat(self.lpips).mean(dim=1)
        return {name: values.tolist() for name, values in found.items()}

    def psnr_by_step(self) -> list[float]:
        """Returns the mean PSNR of each prediction horizon, nearest first (dB)."""
        return torch.cat(self.psnr).mean(dim=0).tolist()


def mean(parts: list[Tensor]) -> float:
    """Returns the mean of all values; NaN where there are none."""
    return torch.cat([part.flatten() for part in parts]).double().mean().item()
