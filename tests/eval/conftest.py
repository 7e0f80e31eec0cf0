"""Tiny untrained models and clips of a square that moves over a fixed background."""

import pytest
import torch
from torch import Tensor, nn

from flamscale.config import EvaluationConfig, FlamConfig, TokenizerConfig
from flamscale.eval.rollout import RolloutEvaluation, evaluate_rollouts
from flamscale.models.flam import Flam
from flamscale.models.i3d import I3d
from flamscale.models.tokenizer import Tokenizer

TOKENIZER = TokenizerConfig(
    image_size=16,
    downsample=4,
    base_channels=4,
    max_channels=8,
    num_residual_blocks=1,
    feature_channels=8,
    fsq_levels=(3, 3),
)
FLAM = FlamConfig(num_slots=3, width=16, action_width=4, num_heads=2, num_blocks=1, slot_iterations=1)
EVALUATION = EvaluationConfig(num_clips=5, context_frames=2, rollout_steps=3, num_pictures=2, batch_clips=2)


@pytest.fixture(scope="session")
def models() -> tuple[Tokenizer, Flam]:
    torch.manual_seed(0)
    return Tokenizer(TOKENIZER), Flam(FLAM, TOKENIZER)


@pytest.fixture(scope="session")
def clips() -> Tensor:
    """uint8 [5, 5, 16, 16, 3]: a white square at another place in every frame, on grey."""
    frames = torch.full((5, 5, 16, 16, 3), 100, dtype=torch.uint8)
    for clip in range(5):
        for step in range(5):
            frames[clip, step, clip : clip + 4, 2 * step : 2 * step + 4] = 255
    return frames


@pytest.fixture(scope="session")
def median_frame() -> Tensor:
    return torch.full((16, 16, 3), 100, dtype=torch.uint8)


@pytest.fixture(scope="session")
def evaluation(models: tuple[Tokenizer, Flam], clips: Tensor, median_frame: Tensor) -> RolloutEvaluation:
    return evaluate_rollouts(*models, clips, median_frame, EVALUATION)


class Brightness(I3d):
    """The brightness of each frame, in milliseconds, where I3D's logits take a second a clip."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, video: Tensor) -> Tensor:
        return video.mean(dim=(2, 3, 4))


@pytest.fixture
def brightness_for_i3d() -> I3d:
    return Brightness()
