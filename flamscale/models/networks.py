"""The tokenizer's convolutional encoders and decoders: IMPALA with LAPO style, and MAGVIT-v2 style.

An encoder maps frames in [0, 1] [M, 3, H, W] to [M, E, H/d, W/d] for the down-sampling d; a decoder maps features
[M, C, H/d, W/d] to frames centred on 0.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import TokenizerConfig


def build_encoder(config: TokenizerConfig) -> tuple[nn.Module, int]:
    """Returns the encoder that `config` names, and its output channels E."""
    channels = level_channels(config)
    layers: list[nn.Module] = []
    match config.architecture:
        case "impala":
            for before, after in zip([3, *channels], channels, strict=False):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
                layers += [ImpalaBlock(after) for _ in range(config.num_residual_blocks)]
            layers += [nn.ReLU()]
        case "magvit":
            layers += [nn.Conv2d(3, channels[0], 3, padding=1)]
            for before, after in zip(channels, [*channels[1:], channels[-1]], strict=True):
                layers += [MagvitBlock(before) for _ in range(config.num_residual_blocks)]
                layers += [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            layers += [MagvitBlock(channels[-1]), group_norm(channels[-1]), nn.SiLU()]
    patches = nn.Sequential(
        nn.Conv2d(3, config.patch_channels, config.downsample, stride=config.downsample),
        nn.ReLU(),
        nn.Conv2d(config.patch_channels, channels[-1], 1),
    )
    return ParallelSum(nn.Sequential(*layers), patches), channels[-1]


def build_decoder(config: TokenizerConfig) -> nn.Module:
    """Returns the decoder that `config` names."""
    channels = level_channels(config)[::-1]
    layers: list[nn.Module] = [nn.Conv2d(config.feature_channels, channels[0], 3, padding=1)]
    match config.architecture:
        case "impala":
            for before, after in zip(channels, [*channels[1:], channels[-1]], strict=True):
                layers += [ImpalaBlock(before) for _ in range(config.num_residual_blocks)]
                layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            layers += [nn.ReLU()]
        case "magvit":
            for before, after in zip(channels, [*channels[1:], channels[-1]], strict=True):
                layers += [MagvitBlock(before) for _ in range(config.num_residual_blocks)]
                layers += [nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2)]
            layers += [MagvitBlock(channels[-1]), group_norm(channels[-1]), nn.SiLU()]
    patches = nn.Sequential(
        nn.Conv2d(config.feature_channels, config.patch_channels, 1),
        nn.ReLU(),
        nn.Conv2d(config.patch_channels, 3 * config.downsample**2, 1),
        nn.PixelShuffle(config.downsample),
    )
    return ParallelSum(
        nn.Sequential(*layers, nn.Conv2d(channels[-1], 3, 3, padding=1)),
        patches,
    )


def level_channels(config: TokenizerConfig) -> list[int]:
    """Channels of each level, outermost first: doubling from base_channels up to max_channels."""
    num_levels = config.downsample.bit_length() - 1
    return [min(config.base_channels * 2**level, config.max_channels) for level in range(num_levels)]


class ParallelSum(nn.Module):
    """deep(x) + patches(x): beside the convolutions, a small network on each patch alone, which learns tiles at once.

    Without it a tokenizer stays on the plateau of the empty scene for hundreds of steps.
    """

    def __init__(self, deep: nn.Module, patches: nn.Module) -> None:
        super().__init__()
        self.deep = deep
        self.patches = patches

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(x) + self.patches(x)


class ImpalaBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))) (Espeholt et al., arXiv 1802.01561, Figure 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "M E H W"]) -> Float[Tensor, "M E H W"]:
        return x + self.second(F.relu(self.first(F.relu(x))))


class MagvitBlock(nn.Module):
    """Residual block of group norm, SiLU and 3x3 convolutions, twice (Yu et al., arXiv 2310.05737, Appendix A.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "M E H W"]) -> Float[Tensor, "M E H W"]:
        return x + self.layers(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups of at least 4 channels each."""
    return nn.GroupNorm(
        next(g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels >= 4 * g) or g == 1), channels
    )
