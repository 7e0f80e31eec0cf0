"""Tokenizer and its quantiser: what is encoded comes back, and predictions land on the codebook."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flamscale.config import TokenizerConfig
from flamscale.models.tokenizer import FiniteScalarQuantizer, Tokenizer, to_images
from tests.small_models import TOKENIZER, small_tokenizer

LEVELS = [(2,), (3,), (7,), (4, 4), (5, 3), (2, 3, 4), (3, 6, 5, 2), (4, 4, 4, 4, 4)]


def random_images(config: TokenizerConfig, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, config.image_size, config.image_size, generator=generator)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@pytest.mark.parametrize("architecture", ["impala", "magvit"])
@pytest.mark.parametrize(("image_size", "downsample"), [(4, 2), (12, 4), (16, 8), (24, 8), (32, 16), (48, 16)])
def test_frames_become_tokens_and_frames_again(architecture: str, image_size: int, downsample: int) -> None:
    config = replace(TOKENIZER, architecture=architecture, image_size=image_size, downsample=downsample)
    tokenizer, images = small_tokenizer(config), random_images(config, 2)
    output = tokenizer(images)
    assert output.reconstruction.shape == images.shape
    assert output.features.shape == (2, (image_size // downsample) ** 2, 8)
    assert output.indices.shape == (2, config.num_tokens)
    assert output.indices.min() >= 0
    assert output.indices.max() < prod(config.fsq_levels)

    indices = tokenizer.encode(images)
    assert torch.equal(indices, output.indices)
    assert_close(tokenizer.lookup(indices), output.features)
    assert_close(tokenizer.decode(tokenizer.lookup(indices)), output.reconstruction.clamp(0, 1))


@pytest.mark.parametrize("architecture", ["impala", "magvit"])
def test_reconstruction_error_reaches_the_encoder_through_the_rounding(architecture: str) -> None:
    tokenizer = small_tokenizer(replace(TOKENIZER, architecture=architecture))
    images = random_images(tokenizer.config)
    (tokenizer(images).reconstruction - images).square().mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


def test_lookup_takes_any_batch_shape(tokenizer: Tokenizer) -> None:
    indices = torch.randint(36, (2, 5, 9))
    features = tokenizer.lookup(indices)
    assert features.shape == (2, 5, 9, 8)
    assert_close(features[1, 3], tokenizer.lookup(indices[1, 3]))


def test_features_have_squared_norm_c(tokenizer: Tokenizer) -> None:
    squared_norm = tokenizer.codebook().square().sum(dim=-1)
    assert_close(squared_norm, torch.full((36,), 8.0), rtol=1e-3, atol=0.0)


def test_codebook_entries_differ(tokenizer: Tokenizer) -> None:
    assert torch.pdist(tokenizer.codebook()).min() > 1e-3


def test_quantize_leaves_codebook_entries_as_they_are(tokenizer: Tokenizer) -> None:
    features = tokenizer.lookup(torch.randint(36, (2, 3, 9)))
    assert_close(tokenizer.quantize(features), features)


def test_quantize_returns_the_entry_it_was_near(tokenizer: Tokenizer) -> None:
    codebook = tokenizer.codebook()
    radius = 0.49 * torch.pdist(codebook).min()  # less than half way to any other entry
    noise = torch.randn_like(codebook)
    noisy = codebook + radius * noise / noise.norm(dim=-1, keepdim=True)
    assert_close(tokenizer.quantize(noisy), codebook)


def test_quantize_returns_the_nearest_entry_of_any_feature(tokenizer: Tokenizer) -> None:
    features = 3 * torch.randn(2, 4, 9, 8)
    nearest = torch.cdist(features.double(), tokenizer.codebook().double()).argmin(dim=-1)
    assert_close(tokenizer.quantize(features), tokenizer.codebook()[nearest])


@pytest.mark.parametrize("architecture", ["impala", "magvit"])
def test_decoded_frames_lie_in_0_to_1_whatever_the_features(architecture: str) -> None:
    tokenizer = small_tokenizer(replace(TOKENIZER, architecture=architecture))
    images = tokenizer.decode(100 * torch.randn(3, 9, 8))
    assert images.min() == 0
    assert images.max() == 1


def test_inference_needs_no_gradients(tokenizer: Tokenizer) -> None:
    indices = tokenizer.encode(random_images(tokenizer.config))
    features = tokenizer.lookup(indices)
    assert not any(x.requires_grad for x in (features, tokenizer.quantize(features), tokenizer.decode(features)))


@pytest.mark.parametrize("levels", LEVELS)
def test_each_index_has_its_own_code_of_evenly_spaced_levels(levels: tuple[int, ...]) -> None:
    codes = FiniteScalarQuantizer(levels).codes(torch.arange(prod(levels)))
    assert codes.abs().max() <= 1
    assert len(codes.unique(dim=0)) == prod(levels)
    for channel, count in enumerate(levels):
        values = codes[:, channel].unique()
        assert len(values) == count
        assert_close(values.diff(), torch.full((count - 1,), 1.0 / (count // 2)))


@pytest.mark.parametrize("levels", LEVELS)
def test_every_index_is_reached_and_leads_back_to_its_code(levels: tuple[int, ...]) -> None:
    fsq = FiniteScalarQuantizer(levels)
    ramp = torch.linspace(-8, 8, 201)
    for channel in range(len(levels)):
        x = torch.zeros(201, len(levels))
        x[:, channel] = ramp
        codes, indices = fsq(x)
        assert_close(fsq.codes(indices), codes)
        assert len(codes[:, channel].round(decimals=4).unique()) == levels[channel]
        assert codes[:, channel].diff().min() > -1e-5  # never falls as the input rises
    x = 4 * torch.randn(50, 3, len(levels))
    codes, indices = fsq(x)
    assert indices.shape == (50, 3)
    assert_close(fsq.codes(indices), codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients_pass_the_rounding_straight_through(levels: tuple[int, ...]) -> None:
    x = torch.linspace(-1, 1, 5)[:, None].expand(5, len(levels)).clone().requires_grad_()
    FiniteScalarQuantizer(levels)(x)[0].sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()


def test_to_images_scales_bytes_to_0_to_1_and_folds_the_batch() -> None:
    frames = torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8)
    frames[1, 2, 3, 4] = torch.tensor([255, 51, 0])
    images = to_images(frames)
    assert images.shape == (6, 3, 4, 5)
    assert images[5, :, 3, 4].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert images.sum().item() == pytest.approx(1.2)
