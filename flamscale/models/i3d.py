"""I3D: clips in, the 400 Kinetics logits of each out; the frozen network that FVD measures by, and torch alone.

The weights come from one safetensors file that recipes/convert_i3d.py makes; it carries a checksum of its tensors.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flamscale.config import MIN_FVD_FRAMES
from flamscale.errors import CheckpointError, ConfigError
from flamscale.models.weight_file import WeightFile, save_weights

NETWORK = "i3d-kinetics-400"
IMAGE_SIZE = 224
NUM_CLASSES = 400
_REMEDY = "make the file with recipes/convert_i3d.py"
_MIXED = (  # channels of the 1x1, 1x1 -> 3x3, 1x1 -> 3x3 and pool -> 1x1 branches
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


class I3d(nn.Module):
    """Inflated Inception-v1 on RGB, trained on Kinetics-400.

    Source: Carreira and Zisserman, arXiv 1705.07750; the network of FVD's authors (arXiv 1812.01717). Their batch norms
    are part of the convolutions here.
    """

    def __init__(self) -> None:
        super().__init__()
        mixed, before = [], 192
        for channels in _MIXED:
            mixed.append(_Mixed(before, channels))
            before = channels[0] + channels[2] + channels[4] + channels[5]
        self.stages = nn.Sequential(
            _Unit(3, 64, 7, stride=2),
            _MaxPool((1, 3, 3), (1, 2, 2)),
            _Unit(64, 64, 1),
            _Unit(64, 192, 3),
            _MaxPool((1, 3, 3), (1, 2, 2)),
            *mixed[:2],
            _MaxPool((3, 3, 3), (2, 2, 2)),
            *mixed[2:7],
            _MaxPool((2, 2, 2), (2, 2, 2)),
            *mixed[7:],
        )
        self.logits = nn.Conv3d(before, NUM_CLASSES, 1)
        self.eval().requires_grad_(False)

    def forward(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B 400"]:
        """Returns the logits of clips of frames in [0, 1], which are resized to 224 x 224 pixels.

        Raises:
            ConfigError: the clips are too short for the network.
        """
        if video.shape[1] < MIN_FVD_FRAMES:
            raise ConfigError(f"I3D needs clips of at least {MIN_FVD_FRAMES} frames, got {video.shape[1]}.")
        images = 2 * video.float().flatten(0, 1) - 1
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
        x = self.stages(images.unflatten(0, video.shape[:2]).transpose(1, 2))  # [B, C, T/8, 7, 7]
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean(dim=(2, 3, 4))

    def save(self, path: Path) -> None:
        """Writes the weights; the file is whole or absent."""
        save_weights(path, NETWORK, self.state_dict())

    @classmethod
    def load(cls, path: Path) -> "I3d":
        """Reads the network that `save` wrote, frozen, in eval mode, on the CPU.

        Raises:
            ConfigError: the file is missing or cannot be read.
            CheckpointError: it is damaged, or no file of I3D weights.
        """
        file = WeightFile.read(path, "I3D", _REMEDY)
        if file.network != NETWORK:
            raise CheckpointError(
                f"Expected I3D weights of {NETWORK} in {path}, found network {file.network!r} in its metadata; "
                f"{_REMEDY}."
            )
        model = cls()
        file.load_into(model)
        return model


class _Unit(nn.Module):
    """Convolution over as many pixels as there are, and ReLU."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, size, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(_pad(x, self.conv.kernel_size, self.conv.stride)))


class _MaxPool(nn.Module):
    """Largest value of a window; beyond the edge there is 0, which is no more than any value behind a ReLU."""

    def __init__(self, size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad(x, self.size, self.stride), self.size, self.stride)


class _Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, before: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _Unit(before, channels[0], 1),
                nn.Sequential(_Unit(before, channels[1], 1), _Unit(channels[1], channels[2], 3)),
                nn.Sequential(_Unit(before, channels[3], 1), _Unit(channels[3], channels[4], 3)),
                nn.Sequential(_MaxPool((3, 3, 3), (1, 1, 1)), _Unit(before, channels[5], 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _pad(x: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pads with zeros as TensorFlow's SAME does: ceil(n / stride) windows, the odd zero at the end."""
    padding: list[int] = []
    for length, window, step in zip(x.shape[:1:-1], size[::-1], stride[::-1], strict=True):
        missing = max((-(-length // step) - 1) * step + window - length, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(x, padding)
