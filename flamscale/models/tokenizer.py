"""Tokenizer: frames in, N patch tokens of C channels out, and back (stage 1, Eq. 1)."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from flamscale.config import TokenizerConfig
from flamscale.models.flow_decoder import FlowDecoder
from flamscale.models.networks import build_decoder, build_encoder


def to_images(frames: UInt8[Tensor, "*batch H W 3"]) -> Float[Tensor, "M 3 H W"]:
    """uint8 frames of any batch shape -> float images in [0, 1]."""
    return frames.flatten(0, -4).permute(0, 3, 1, 2).float().div(255.0)


@dataclass(frozen=True)
class TokenizerOutput:
    """Reconstruction in [0, 1], quantised features z, and codebook indices of M frames."""

    reconstruction: Float[Tensor, "M 3 H W"]
    features: Float[Tensor, "M N C"]
    indices: Int[Tensor, "M N"]


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of a few bounded channels to a fixed number of levels (FSQ); gradients pass straight through.

    Source: Mentzer et al., arXiv 2309.15505, Section 3.1 and Appendix A.1.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        level_counts = torch.tensor(levels)
        basis = torch.cat([torch.ones(1, dtype=torch.long), level_counts.cumprod(0)[:-1]])
        self.register_buffer("levels", level_counts)
        self.register_buffer("basis", basis)
        self.codebook_size = math.prod(levels)

    def forward(self, x: Float[Tensor, "... L"]) -> tuple[Float[Tensor, "... L"], Int[Tensor, "..."]]:
        """Returns codes in [-1, 1] and their codebook indices."""
        half = (self.levels - 1) * 0.5 * (1 + 1e-3)
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(x + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        indices = ((rounded.detach().round().long() + self.levels // 2) * self.basis).sum(dim=-1)
        return rounded / (self.levels // 2), indices

    def codes(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... L"]:
        """Returns the codes in [-1, 1] of codebook indices."""
        digits = indices[..., None] // self.basis % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)


class Tokenizer(nn.Module):
    """CNN encoder -> FSQ -> features z -> CNN decoder, or a flow (Eq. 1, arXiv 2602.16229).

    Features are the codes projected to C channels and layer-normalised without affine, so that ||z||^2 = C for every
    tokenizer and the squared error of Eq. 6 has one scale.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, encoder_channels = build_encoder(config)
        to_code = nn.Linear(encoder_channels, len(config.fsq_levels))
        nn.init.normal_(to_code.weight, std=encoder_channels**-0.5)  # codes spread over all levels from the start
        self.to_code = nn.Sequential(nn.LayerNorm(encoder_channels), to_code)
        self.fsq = FiniteScalarQuantizer(config.fsq_levels)
        self.to_features = nn.Linear(len(config.fsq_levels), config.feature_channels)
        self.decoder = FlowDecoder(config) if config.decoder == "flow" else build_decoder(config)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of all weights with their names: the tokenizer's identity, whichever file it came from."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def forward(
        self,
        images: Float[Tensor, "M 3 H W"],
        noise: Float[Tensor, "M 3 H W"] | None = None,
        times: Float[Tensor, " M"] | None = None,
    ) -> TokenizerOutput:
        """Reconstructs frames in [0, 1] from their codes.

        Args:
            images: the frames.
            noise, times: standard normal draws, and shares of the way from them to the frames, from which a flow
                decoder shall reconstruct in one step, as in training; None goes all the way from its own noise.
        """
        codes, indices = self.fsq(self._encode(images))
        features = self._features(codes)
        if noise is None or times is None:
            return TokenizerOutput(self._decode(features), features, indices)
        assert isinstance(self.decoder, FlowDecoder), "no other decoder knows noise"
        frames = self.decoder.predict(self._grid(features), 2 * images - 1, noise, times)
        return TokenizerOutput(frames * 0.5 + 0.5, features, indices)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "M 3 H W"]) -> Int[Tensor, "M N"]:
        """Returns the codebook indices of frames in [0, 1]."""
        return self.fsq(self._encode(images))[1]

    @torch.no_grad()
    def lookup(self, indices: Int[Tensor, "... N"]) -> Float[Tensor, "... N C"]:
        """Returns the features of codebook indices."""
        return F.embedding(indices, self.codebook())

    @torch.no_grad()
    def quantize(self, features: Float[Tensor, "... N C"]) -> Float[Tensor, "... N C"]:
        """Returns the codebook entry nearest to each predicted feature (squared distance)."""
        codebook = self.codebook()
        scores = features @ codebook.mT - 0.5 * codebook.square().sum(dim=-1)
        return F.embedding(scores.argmax(dim=-1), codebook)

    @torch.no_grad()
    def decode(self, features: Float[Tensor, "M N C"]) -> Float[Tensor, "M 3 H W"]:
        """Returns frames clamped to [0, 1]."""
        return self._decode(features).clamp(0.0, 1.0)

    def codebook(self) -> Float[Tensor, "V C"]:
        """Returns the features of all V codebook entries."""
        entries = torch.arange(self.fsq.codebook_size, device=self.fsq.basis.device)
        return self._features(self.fsq.codes(entries).to(self.to_features.weight.dtype))

    def _encode(self, images: Float[Tensor, "M 3 H W"]) -> Float[Tensor, "M N L"]:
        return self.to_code(self.encoder(images).flatten(2).mT)

    def _features(self, codes: Float[Tensor, "... L"]) -> Float[Tensor, "... C"]:
        return F.layer_norm(self.to_features(codes), (self.config.feature_channels,))

    def _decode(self, features: Float[Tensor, "M N C"]) -> Float[Tensor, "M 3 H W"]:
        return self.decoder(self._grid(features)) * 0.5 + 0.5

    def _grid(self, features: Float[Tensor, "M N C"]) -> Float[Tensor, "M C h w"]:
        side = self.config.image_size // self.config.downsample
        return features.mT.unflatten(-1, (side, side))


def frame_encoder(tokenizer: Tokenizer) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from uint8 frames [M, H, W, 3] to codebook indices [M, N], as the data layer takes it."""

    def encode(frames: np.ndarray) -> np.ndarray:
        return tokenizer.encode(to_images(torch.from_numpy(frames).to(tokenizer.fsq.basis.device))).cpu().numpy()

    return encode
