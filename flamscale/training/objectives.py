"""Objectives of the two stages: a batch and a step in, a loss and its terms out."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from flamscale.config import FlamConfig, FlamStageConfig, TokenizerStageConfig
from flamscale.models.flam import Flam
from flamscale.models.flow_decoder import LAST_TIME
from flamscale.models.tokenizer import Tokenizer, to_images
from flamscale.models.world_model import WorldModel
from flamscale.types import Batch

MOVING_THRESHOLD = 0.05
"""Smallest change of any colour channel that counts as motion (share of the full range)."""
CONTRAST_TEMPERATURE = 0.1
"""What cosines are divided by in the contrastive term, as published (arXiv 2412.14295)."""


class TokenizerObjective(nn.Module):
    """Stage 1: pixel MSE, optionally weighted towards moving pixels, optionally with LPIPS (Eq. 1).

    A flow decoder, given noise and times, learns by the squared error of its velocity in place of the pixels'; that is
    the error of the frame it predicts over 1 - t. Only validation lets it draw frames, for mse and psnr. Weights make
    it favour motion where the tokens leave that open.
    """

    def __init__(self, tokenizer: Tokenizer, config: TokenizerStageConfig, perceptual: nn.Module | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        for part in (tokenizer.encoder, tokenizer.to_code):
            for parameter in part.parameters():
                parameter.learning_rate_ratio = config.encoder_lr_ratio  # type: ignore[attr-defined]
        self.perceptual = [perceptual] if perceptual else []  # a list keeps the frozen network out of the parameters

    def forward(
        self,
        images: Float[Tensor, "M 3 H W"],
        weights: Float[Tensor, "M 1 H W"],
        noise: Float[Tensor, "M 3 H W"] | None = None,
        times: Float[Tensor, " M"] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if noise is not None and times is not None:
            return self._match_flow(images, weights, noise, times)
        output = self.tokenizer(images)
        squared_error = (output.reconstruction - images).square()
        loss = (squared_error * weights).mean()
        metrics = _pixel_metrics(squared_error)
        for perceptual in self.perceptual:
            lpips = perceptual(output.reconstruction, images).mean()
            loss = loss + self.config.lpips_weight * lpips
            metrics["lpips"] = lpips.detach()
        return loss, metrics

    def _match_flow(
        self, images: Tensor, weights: Tensor, noise: Tensor, times: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frame_error = self.tokenizer(images, noise, times).reconstruction - images
        squared_error = (frame_error / (1 - times)[:, None, None, None]).square()
        metrics = {"velocity_error": squared_error.detach().mean()}
        if not self.training:
            metrics |= _pixel_metrics((self.tokenizer(images).reconstruction - images).square())
        return (squared_error * weights).mean(), metrics


def _pixel_metrics(squared_error: Tensor) -> dict[str, Tensor]:
    mse = squared_error.detach().mean()
    return {"mse": mse, "psnr": -10.0 * torch.log10(mse)}


class TokenizerInputs:
    """Turns a batch of frames into the arguments of `TokenizerObjective`: frames, weights, and what a flow starts from.

    The seed is that of a flow decoder's noise and times; None for another decoder, which takes none.
    """

    def __init__(
        self,
        median_frame: UInt8[Tensor, "H W 3"],
        config: TokenizerStageConfig,
        device: torch.device,
        flow_seed: int | None = None,
    ) -> None:
        self.median = to_images(median_frame[None]).to(device)
        self.config = config
        self.device = device
        self.flow_seed = flow_seed

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        images = to_images(batch.video.to(self.device))
        moving = ((images - self.median).abs().amax(dim=1, keepdim=True) > MOVING_THRESHOLD).float()
        inputs = {"images": images, "weights": 1.0 + self.config.moving_weight * moving}
        if self.flow_seed is None:
            return inputs
        noise, times = flow_start(self.flow_seed, batch.positions, (batch.video.shape[1], *images.shape[1:]))
        return inputs | {"noise": noise.to(self.device), "times": times.to(self.device)}


def flow_start(
    seed: int, positions: Int[Tensor, " B"], shape: tuple[int, int, int, int]
) -> tuple[Float[Tensor, "M 3 H W"], Float[Tensor, " M"]]:
    """Returns where the flow of each frame of B clips of `shape` [T, 3, H, W] is to be learned: noise, and a time.

    Standard normal and uniform draws that depend on the seed and each clip's position alone, made on the host, so that
    they are the same on any device: on a GPU with large frames, time lost.
    """
    streams = [np.random.Generator(clip_stream(seed, position)) for position in positions.tolist()]
    times = np.stack([stream.random(shape[0], dtype=np.float32) for stream in streams])
    noise = np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])
    return torch.from_numpy(noise).flatten(0, 1), LAST_TIME * torch.from_numpy(times).flatten()


def clip_stream(seed: int, position: int) -> np.random.Philox:
    """Returns the random numbers of the clip at a position in the data order."""
    return np.random.Philox(key=[seed, position])


class FlamObjective(nn.Module):
    """Stage 2: Eq. 6, its squared error as a mean, its KL summed over factors (see `FlamStageConfig`).

    The optional reconstruction term shows the aggregator where each slot is without waiting for the IDM and FDM to
    carry it there. Eq. 6 alone learns slowly to draw an entity on a patch where none was. The optional contrastive term
    (`contrast_slots`) shall bind a slot to its entity; it has not been measured here yet. Where clips keep some of the
    slots, each that a clip is expected to keep costs `slot_cost`.
    """

    def __init__(self, flam: WorldModel, config: FlamStageConfig) -> None:
        super().__init__()
        self.flam = flam
        self.config = config

    def forward(
        self,
        features: Float[Tensor, "B T N C"],
        noise: Float[Tensor, "B T-1 K A"],
        beta: Float[Tensor, ""],
        actions: Int[Tensor, "B T-1 E"] | None = None,
        slot_noise: Float[Tensor, "B K"] | None = None,
        slot_cost: Float[Tensor, ""] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.flam(features, noise, self.config.predict_steps, actions, slot_noise)
        target = features[:, 1:]
        errors = [
            (predicted[:, depth:] - target[:, depth:]).square().mean()  # frames that lie at least depth + 1 ahead
            for depth, predicted in enumerate(output.predictions)
        ]
        prediction_loss = torch.stack(errors).mean()
        kl = output.kl.mean(dim=(0, 1))  # [K]
        loss = prediction_loss + beta * kl.sum()

        copy_error = (features[:, :-1] - target).square().mean()
        masks = output.masks.detach()
        usage = masks.mean(dim=(0, 1, 3))  # [K]
        entropy = -(masks * (masks + 1e-9).log()).sum(dim=2).mean()
        metrics = {
            "prediction_loss": prediction_loss.detach(),
            "copy_ratio": errors[0].detach() / copy_error.clamp_min(1e-9),
            "kl": kl.detach().sum(),
            "beta": beta.detach(),
            "dead_slot_mass": usage.min() * len(usage),
            "assignment_entropy": entropy,
            **{f"kl_{slot}": value for slot, value in enumerate(kl.detach())},
        }
        selection = output.selection
        if selection is not None:
            assert slot_cost is not None
            loss = loss + slot_cost * selection.probability.sum(dim=1).mean()
            metrics["slots_kept"] = selection.kept.detach().sum(dim=2).mean()
        if self.config.reconstruction_weight > 0:
            assert isinstance(self.flam, Flam), "only slots are reconstructed"
            drawn = self.flam.reconstruct(output.slots, selection.kept if selection else None)
            reconstruction_loss = (drawn - features).square().mean()
            loss = loss + self.config.reconstruction_weight * reconstruction_loss
            metrics["reconstruction_loss"] = reconstruction_loss.detach()
        if self.config.contrastive_weight > 0:
            contrastive_loss = contrast_slots(output.slots, self.config.contrastive_clips)
            loss = loss + self.config.contrastive_weight * contrastive_loss
            metrics["contrastive_loss"] = contrastive_loss.detach()
        return loss, metrics


def contrast_slots(slots: Float[Tensor, "B T K D"], num_clips: int) -> Float[Tensor, ""]:
    """Cross-entropy of finding each slot of a frame again among those of the next one in `num_clips` clips (nats).

    A slot's own successive values attract each other, all others repel. Other clips' slots of the same number are among
    these, or a slot's learned first value would be enough to know it by.

    Source: SlotContrast (Manasyan et al., arXiv 2412.14295, Section 3), which contrasts the whole batch. Here it is
    groups of successive clips, so that the loss depends on neither world size nor micro-batch.
    """
    num_clips = math.gcd(num_clips, len(slots))  # fewer only where a clip's cost is counted
    directions = functional.normalize(slots, dim=-1).unflatten(0, (-1, num_clips))
    directions = directions.transpose(1, 2).flatten(2, 3)  # [B / num_clips, T, num_clips x K, D]
    cosines = directions[:, :-1] @ directions[:, 1:].mT
    found = (cosines / CONTRAST_TEMPERATURE).log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)
    return -found.mean()


class FlamInputs:
    """Turns a batch of frames or codebook indices into the arguments of `FlamObjective`: features, noise, beta.

    And true actions, where the batch carries them; noise and cost of the slots, where a clip keeps some of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, flam: WorldModel, config: FlamStageConfig, seed: int, device: torch.device
    ) -> None:
        self.tokenizer = tokenizer.to(device).eval().requires_grad_(False)
        self.action_shape = (config.clip_frames - 1, flam.config.num_actions, flam.config.action_width)
        self.adapts_slots = isinstance(flam.config, FlamConfig) and flam.config.adaptive_slots
        self.config = config
        self.seed = seed
        self.device = device

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        progress = (step - self.config.beta_warmup_start) / self.config.beta_warmup_steps
        warmup = min(max(progress, 0.0), 1.0)
        inputs = {
            "features": self.tokenizer.lookup(self.indices(batch.video.to(self.device))),
            "noise": self.noise(batch.positions).to(self.device),
            "beta": torch.tensor(self.config.beta * warmup, device=self.device),
        }
        if self.adapts_slots:
            inputs["slot_noise"] = self.slot_noise(batch.positions).to(self.device)
            inputs["slot_cost"] = torch.tensor(self.config.slot_cost * warmup, device=self.device)
        return inputs if batch.actions is None else inputs | {"actions": batch.actions.to(self.device)}

    def indices(self, video: Tensor) -> Tensor:
        """Codebook indices [B, T, N] of frames [B, T, H, W, 3], or of indices as they are."""
        if video.dtype != torch.uint8:
            return video
        return self.tokenizer.encode(to_images(video)).unflatten(0, video.shape[:2])

    def noise(self, positions: Tensor) -> Tensor:
        """Standard normal draws [B, T-1, K, A] that depend on the seed and each clip's position alone."""
        streams = (np.random.Generator(clip_stream(self.seed, position)) for position in positions.tolist())
        draws = [stream.standard_normal(self.action_shape, dtype=np.float32) for stream in streams]
        return torch.from_numpy(np.stack(draws))

    def slot_noise(self, positions: Tensor) -> Tensor:
        """Standard logistic draws [B, K] that depend on these alone, too, and have nothing to do with the others."""
        streams = (np.random.Generator(clip_stream(self.seed, position).jumped()) for position in positions.tolist())
        draws = [stream.logistic(size=self.action_shape[1]).astype(np.float32) for stream in streams]
        return torch.from_numpy(np.stack(draws))
