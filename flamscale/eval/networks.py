"""Frozen networks that measure pictures and clips: an evaluation's settings in, LPIPS and I3D out, as far as wanted."""

from dataclasses import dataclass
from pathlib import Path

import torch

from flamscale.config import EvaluationConfig
from flamscale.models.i3d import I3d
from flamscale.models.lpips import Lpips, check_image_size


@dataclass(frozen=True)
class MeasuringNetworks:
    """What there is to measure with; None where no weights are given."""

    lpips: Lpips | None = None
    i3d: I3d | None = None

    @classmethod
    def load(cls, config: EvaluationConfig, image_size: int, device: torch.device | None = None) -> "MeasuringNetworks":
        """Reads the weight files that the settings name, for frames `image_size` pixels high and wide.

        Raises:
            FlamError: a file is missing, damaged or of something else, or the frames are too small for LPIPS.
        """
        lpips = Lpips.load(Path(config.lpips_weights)).to(device) if config.lpips_weights else None
        if lpips is not None:
            check_image_size(lpips.network, image_size, "leave out evaluation.lpips-weights")
        i3d = I3d.load(Path(config.fvd_weights)).to(device) if config.fvd_weights else None
        return cls(lpips, i3d)
