"""The tokenizer's flow decoder: features and noise in, one of the frames that the features allow out.

Beyond the paper, and not measured yet: neither that frames become sharper, nor what that costs in PSNR. A sample cannot
come as close to the truth on average as the mean of all samples does, which is what the regression decoder draws.
"""

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import TokenizerConfig
from flamscale.models.networks import build_decoder, group_norm, level_channels

LAST_TIME = 0.95
"""Training's times lie below it (0: noise, 1: frame), since a velocity's error, the frame's over 1 - t, has no bound;
20 steps, the most that TokenizerConfig takes, go no further."""
NUM_FREQUENCIES = 5
"""Waves that stand for a time (count)."""


class FlowDecoder(nn.Module):
    """Rectified flow from noise to a frame, given the frame's features (Liu et al., arXiv 2209.03003; Lipman et al.,
    arXiv 2210.02747).

    At x_t = (1 - t) noise + t x the network predicts the frame x, and so the velocity (x - x_t) / (1 - t): a network of
    few channels can draw a frame, but not pass on noise (Li & He, arXiv 2511.13720). That a flow may decode, and train
    the encoder by its loss alone, is DiTo's idea (Chen et al., arXiv 2501.18593); unlike there, tokens are discrete and
    the network is small. All frames are drawn from the same noise, so that what stands still does not flicker.
    """

    noise: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.num_steps = config.flow_steps
        self.draft = build_decoder(config)
        self.network = FlowNetwork(config)
        shape = (3, config.image_size, config.image_size)
        noise = np.random.Generator(np.random.Philox(0)).standard_normal(shape, dtype=np.float32)
        self.register_buffer("noise", torch.tensor(noise))  # kept with the weights: the same frames everywhere

    def forward(self, features: Float[Tensor, "M C h w"]) -> Float[Tensor, "M 3 H W"]:
        """Returns frames centred on 0, by Euler's method: the same features give the same frame."""
        draft = self.draft(features)
        x = self.noise.expand_as(draft)
        for step in range(self.num_steps):
            times = torch.full((len(x),), step / self.num_steps, device=x.device)
            frame = self.network(x, times, features, draft)
            x = x + (frame - x) / (self.num_steps - step)  # the velocity at t = step / num_steps, over num_steps
        return x

    def predict(
        self,
        features: Float[Tensor, "M C h w"],
        x: Float[Tensor, "M 3 H W"],
        noise: Float[Tensor, "M 3 H W"],
        times: Float[Tensor, " M"],
    ) -> Float[Tensor, "M 3 H W"]:
        """Returns the frames that the network predicts at x_t, on the way from noise to the frames x centred on 0."""
        share = times[:, None, None, None]
        return self.network((1 - share) * noise + share * x, times, features, self.draft(features))


class FlowNetwork(nn.Module):
    """U-Net that improves on a draft of the frame, knowing a noisy one, the time, and the features.

    The draft is the regression decoder's, made once a frame: features in pixels. The network works on patches of 2 x 2
    pixels, down to the token grid, where it meets the features themselves.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        channels, pixels = [2 * count for count in level_channels(config)], 3 * 2 * 2
        width = channels[-1]
        self.time = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.first = nn.Conv2d(2 * pixels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(TimedBlock(count, width) for count in channels)
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in pairwise(channels)
        )
        self.features = nn.Conv2d(config.feature_channels, width, 1)
        self.up = nn.ModuleList(TimedBlock(count, width) for count in channels)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1) for fine, coarse in pairwise(channels)
        )
        self.last = nn.Sequential(group_norm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], pixels, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "M 3 H W"],
        times: Float[Tensor, " M"],
        features: Float[Tensor, "M C h w"],
        draft: Float[Tensor, "M 3 H W"],
    ) -> Float[Tensor, "M 3 H W"]:
        time = self.time(waves(times).to(x.dtype))
        hidden = self.first(F.pixel_unshuffle(torch.cat([x, draft], dim=1), 2))
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=False):
            skips.append(block(hidden, time))
            hidden = shrink(skips[-1])
        hidden = self.down[-1](hidden, time) + self.features(features)
        hidden = self.up[-1](hidden, time)
        for level in reversed(range(len(skips))):
            hidden = self.up[level](self.grow[level](hidden) + skips[level], time)
        return draft + F.pixel_shuffle(self.last(hidden), 2)


def waves(times: Float[Tensor, " M"]) -> Float[Tensor, "M W"]:
    """Returns sines and cosines of times between 0 and 1, from half a wave on up in octaves."""
    angles = math.pi * times[:, None] * 2 ** torch.arange(NUM_FREQUENCIES, device=times.device)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimedBlock(nn.Module):
    """MagvitBlock whose second norm is scaled and shifted by the time, as in Dhariwal & Nichol, arXiv 2105.05233."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.norm = group_norm(channels)
        self.time = nn.Linear(time_channels, 2 * channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "M E H W"], time: Float[Tensor, "M D"]) -> Float[Tensor, "M E H W"]:
        scale, shift = self.time(time)[..., None, None].chunk(2, dim=1)
        return x + self.second(F.silu(self.norm(self.first(x)) * (1 + scale) + shift))
