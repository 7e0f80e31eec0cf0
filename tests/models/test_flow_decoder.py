"""The flow decoder: it chooses where the regression decoder mixes, and the same features always give the same frame."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flamscale.config import TokenizerStageConfig
from flamscale.models.flam import Flam
from flamscale.models.flow_decoder import FlowDecoder
from flamscale.models.huggingface import FlamForWorldModeling
from flamscale.models.tokenizer import Tokenizer
from flamscale.training.objectives import TokenizerObjective, flow_start
from tests.small_models import FLAM, TOKENIZER, small_tokenizer

FLOW = replace(TOKENIZER, decoder="flow")
SHAPE = (1, 3, 12, 12)


def random_images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def two_images() -> Tensor:
    """One is bright on the left, the other on the right; their mean is grey."""
    left = torch.full((3, 12, 12), 0.1)
    left[:, :, :6] = 0.9
    return torch.stack([left, 1 - left])


def blind_tokenizer(decoder: str) -> Tokenizer:
    """A tokenizer whose codes tell nothing, with a decoder trained on both images."""
    tokenizer = small_tokenizer(replace(TOKENIZER, decoder=decoder, base_channels=8, max_channels=16))
    tokenizer.encoder.requires_grad_(False)
    tokenizer.to_code[1].weight.detach().zero_()
    objective = TokenizerObjective(tokenizer, TokenizerStageConfig())
    optimizer = torch.optim.Adam(tokenizer.decoder.parameters(), lr=5e-3)
    images = two_images().repeat(4, 1, 1, 1)
    for step in range(250):
        noise, times = flow_start(0, torch.arange(8) + 8 * step, SHAPE)
        start = {"noise": noise, "times": times} if decoder == "flow" else {}
        loss, _ = objective(images, torch.ones(8, 1, 12, 12), **start)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokenizer.eval()


def distance(images: Tensor, others: Tensor) -> Tensor:
    """Root of the mean squared difference of each image from each of the others."""
    return (images[:, None] - others[None]).square().mean(dim=(2, 3, 4)).sqrt()


def test_where_the_codes_leave_two_images_open_flow_draws_one_and_regression_their_mean() -> None:
    images = two_images()
    grey = blind_tokenizer("regression")
    assert distance(grey.decode(grey.lookup(grey.encode(images))), torch.full((1, 3, 12, 12), 0.5)).max() < 0.1

    flow = blind_tokenizer("flow")
    assert isinstance(flow.decoder, FlowDecoder)
    features, drawn = flow.lookup(flow.encode(images[:1])), []
    for noise in torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0)):
        flow.decoder.noise.copy_(noise)
        drawn.append(flow.decode(features))
    distances = distance(torch.cat(drawn), images)
    assert distances.amin(dim=1).max() < 0.2  # grey is 0.4 from either
    assert distances.argmin(dim=1).unique().tolist() == [0, 1]  # now one, now the other


@pytest.mark.parametrize(("image_size", "downsample"), [(4, 2), (12, 4), (24, 8)])
def test_frames_keep_their_size(image_size: int, downsample: int) -> None:
    tokenizer = small_tokenizer(replace(FLOW, image_size=image_size, downsample=downsample))
    images = torch.rand(2, 3, image_size, image_size)
    output = tokenizer(images)
    assert output.reconstruction.shape == images.shape
    assert_close(tokenizer.decode(tokenizer.lookup(output.indices)), output.reconstruction.clamp(0, 1))


def test_the_same_features_give_the_same_frame_at_any_time_and_in_any_batch() -> None:
    tokenizer = small_tokenizer(FLOW)
    features = tokenizer.lookup(torch.randint(36, (5, 9)))
    frames = tokenizer.decode(features)
    torch.manual_seed(7)  # no matter
    assert torch.equal(tokenizer.decode(features), frames)
    assert_close(torch.cat([tokenizer.decode(part) for part in features.split(2)]), frames)
    again = small_tokenizer(FLOW, seed=1)
    assert torch.equal(again.decoder.noise, tokenizer.decoder.noise)


def test_a_step_follows_the_velocity_that_training_fits() -> None:
    tokenizer = small_tokenizer(replace(FLOW, flow_steps=2)).double()
    decoder = tokenizer.decoder
    assert isinstance(decoder, FlowDecoder)
    features = torch.randn(1, 8, 3, 3).double()
    noise, x = decoder.noise[None], decoder.noise[None]
    for time in (0.0, 0.5):
        target = (x - (1 - time) * noise) / time if time else torch.zeros_like(x)  # x lies on the way to it
        frame = decoder.predict(features, target, noise, torch.tensor([time]))
        x = x + 0.5 * (frame - x) / (1 - time)
    assert_close(decoder(features), x, atol=1e-5, rtol=0.0)


def test_the_velocitys_error_reaches_every_weight_the_encoders_too() -> None:
    tokenizer = small_tokenizer(FLOW)
    noise, times = flow_start(0, torch.arange(4), SHAPE)
    objective = TokenizerObjective(tokenizer, TokenizerStageConfig())
    objective(random_images(), torch.ones(4, 1, 12, 12), noise, times)[0].backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


def test_an_exported_flow_draws_the_same_frames_after_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FlamForWorldModeling.from_modules(Tokenizer(FLOW), Flam(FLAM, FLOW)).eval()
    model.save_pretrained(tmp_path)
    loaded = FlamForWorldModeling.from_pretrained(tmp_path)
    assert loaded.tokenizer.config == FLOW
    assert loaded.tokenizer.hash == model.tokenizer.hash
    features = model.encode(torch.randint(0, 256, (1, 2, 12, 12, 3), dtype=torch.uint8))
    assert torch.equal(loaded.decode(features), model.decode(features))
    assert "makes up" in (tmp_path / "README.md").read_text()
    assert loaded.bfloat16().decode(features.bfloat16()).shape == (1, 2, 12, 12, 3)


def test_a_model_exported_before_there_were_flows_still_loads(tmp_path: Path) -> None:
    FlamForWorldModeling.from_modules(small_tokenizer(), Flam(FLAM, TOKENIZER)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tokenizer"]["decoder"], config["tokenizer"]["flow_steps"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert FlamForWorldModeling.from_pretrained(tmp_path).tokenizer.config == TOKENIZER
    assert "makes up" not in (tmp_path / "README.md").read_text()
