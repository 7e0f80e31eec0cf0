"""LPIPS: two batches of images in, the perceptual distance of each pair out; frozen, and torch alone.

The weights come from one safetensors file that recipes/convert_lpips.py makes; it names its network and carries a
checksum of its tensors.
"""

from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.errors import CheckpointError, ConfigError
from flamscale.models.weight_file import WeightFile, save_weights

Network = Literal["vgg16", "alexnet"]
MIN_IMAGE_SIZE = {"vgg16": 16, "alexnet": 31}
"""Smallest height and width that the pooling leaves something of (pixels)."""

_WIDTHS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}  # channels behind each stage
_REMEDY = "make the file with recipes/convert_lpips.py"
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for [-1, 1]


class Lpips(nn.Module):
    """Learned distance between the features of a classifier, at five depths.

    Source: Zhang et al., arXiv 1801.03924, Eq. 1, version 0.1 of the authors' weights. Features are divided by
    max(norm, 1e-10), there by norm + 1e-10: the same value, and finite gradients where no feature is active.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.stages = nn.ModuleList(_alexnet() if network == "alexnet" else _vgg16())
        self.heads = nn.ParameterList([torch.zeros(width) for width in _WIDTHS[network]])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "M 3 H W"], targets: Float[Tensor, "M 3 H W"]) -> Float[Tensor, " M"]:
        """Returns the distance of each image in [0, 1] to its target, in fp32 whatever the convolutions compute in.

        Raises:
            ConfigError: the images are too small for the network.
        """
        pairs = zip(self.heads, self._features(images), self._features(targets), strict=True)
        layers = [
            ((_normalize(image) - _normalize(target)).square() * head.float().view(-1, 1, 1))
            .sum(dim=1)
            .mean(dim=(1, 2))
            for head, image, target in pairs
        ]
        return torch.stack(layers).sum(dim=0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Features [M, C, h, w] behind each stage, of images in [0, 1]."""
        check_image_size(self.network, min(images.shape[-2:]))
        x = (2 * images.float() - 1 - self.shift.float()) / self.scale.float()
        x = x.to(self.heads[0].dtype)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def save(self, path: Path) -> None:
        """Writes the weights; the file is whole or absent."""
        save_weights(path, self.network, self.state_dict())

    @classmethod
    def load(cls, path: Path) -> "Lpips":
        """Reads the network that `save` wrote, frozen, in eval mode, on the CPU.

        Raises:
            ConfigError: the file is missing or cannot be read.
            CheckpointError: it is damaged, or no file of LPIPS weights.
        """
        file = WeightFile.read(path, "LPIPS", _REMEDY)
        network = file.network
        if network not in ("vgg16", "alexnet"):
            raise CheckpointError(
                f"Expected LPIPS weights of vgg16 or alexnet in {path}, found network {network!r} in its metadata; "
                f"{_REMEDY}."
            )
        model = cls(cast(Network, network))
        file.load_into(model)
        return model


def check_image_size(network: Network, size: int, remedy: str = "leave lpips-weight at 0") -> None:
    """Raises ConfigError where images of that height or width (pixels) are too small for the network."""
    if size < MIN_IMAGE_SIZE[network]:
        raise ConfigError(
            f"LPIPS with {network} needs images of at least {MIN_IMAGE_SIZE[network]} x {MIN_IMAGE_SIZE[network]} "
            f"pixels, got {size}; use larger frames, or {remedy}."
        )


def _normalize(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-10)


def _alexnet() -> list[nn.Sequential]:
    return [
        nn.Sequential(*_conv(3, 64, 11, stride=4, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 2), *_conv(64, 192, 5, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, 2), *_conv(192, 384, 3, padding=1)),
        nn.Sequential(*_conv(384, 256, 3, padding=1)),
        nn.Sequential(*_conv(256, 256, 3, padding=1)),
    ]


def _vgg16() -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    before = 3
    for width, count in zip(_WIDTHS["vgg16"], (2, 2, 3, 3, 3), strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for _ in range(count):
            layers += _conv(before, width, 3, padding=1)
            before = width
        stages.append(nn.Sequential(*layers))
    return stages


def _conv(before: int, after: int, size: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(before, after, size, stride, padding), nn.ReLU(inplace=True)]
