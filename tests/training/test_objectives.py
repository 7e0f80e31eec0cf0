"""Objectives and their inputs: losses by hand, and random numbers that know nothing of batches."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from flamscale.config import (
    ClusterConfig,
    FlamStageConfig,
    PretrainConfig,
    TokenizerConfig,
    TokenizerStageConfig,
    WorldModelConfig,
)
from flamscale.errors import ConfigError
from flamscale.training.objectives import (
    FlamInputs,
    FlamObjective,
    TokenizerInputs,
    TokenizerObjective,
    contrast_slots,
)
from flamscale.training.optimizer import build_optimizer, set_learning_rate
from flamscale.types import Batch
from tests.small_models import (
    ADAPTIVE,
    FLAM,
    MONOLITHIC,
    TOKENIZER,
    TRUE_ACTIONS,
    small_flam,
    small_monolithic,
    small_tokenizer,
)

CPU = torch.device("cpu")
STAGE = FlamStageConfig(clip_frames=5, predict_steps=3, beta=0.5, beta_warmup_start=10, beta_warmup_steps=20)
POSITIONS = torch.tensor([3, 0, 2**31, 7])


def flam_inputs(seed: int = 0, config: FlamStageConfig = STAGE) -> FlamInputs:
    return FlamInputs(small_tokenizer(), small_flam(), config, seed, CPU)


def random_clips(num_clips: int = 4, num_frames: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (num_clips, num_frames, 12, 12, 3), dtype=torch.uint8, generator=generator)


def test_noise_of_a_clip_depends_on_its_position_and_not_on_its_batch() -> None:
    inputs = flam_inputs()
    whole = inputs.noise(POSITIONS)
    assert whole.shape == (4, 4, 3, 4)
    assert torch.equal(torch.cat([inputs.noise(POSITIONS[:1]), inputs.noise(POSITIONS[1:])]), whole)
    assert torch.equal(inputs.noise(POSITIONS.flip(0)), whole.flip(0))
    torch.manual_seed(99)
    assert torch.equal(flam_inputs().noise(POSITIONS), whole)


def test_noise_differs_between_positions_and_seeds() -> None:
    whole, other = flam_inputs(seed=0).noise(POSITIONS), flam_inputs(seed=1).noise(POSITIONS)
    assert torch.pdist(torch.cat([whole, other]).flatten(1)).min() > 1.0


def test_noise_is_standard_normal() -> None:
    noise = flam_inputs().noise(torch.arange(500)).flatten(1)  # 500 x 48 draws
    assert abs(noise.mean().item()) < 0.03
    assert noise.std().item() == pytest.approx(1.0, abs=0.03)
    assert abs((noise[1:] * noise[:-1]).mean().item()) < 0.03  # neighbours are independent


def test_drawing_noise_leaves_the_global_generator_alone() -> None:
    inputs, state = flam_inputs(), torch.get_rng_state()
    inputs.noise(POSITIONS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("step", "beta"), [(0, 0.0), (10, 0.0), (15, 0.125), (29, 0.475), (30, 0.5), (1000, 0.5)])
def test_beta_waits_then_rises_linearly_then_stays(step: int, beta: float) -> None:
    inputs = flam_inputs()(Batch(random_clips(), POSITIONS), step)
    assert inputs["beta"].item() == pytest.approx(beta)


def test_frames_and_their_codebook_indices_give_the_same_inputs() -> None:
    prepare, video = flam_inputs(), random_clips()
    from_frames = prepare(Batch(video, POSITIONS), 20)
    from_indices = prepare(Batch(prepare.indices(video), POSITIONS), 20)
    assert from_frames.keys() == {"features", "noise", "beta"}
    assert from_frames["features"].shape == (4, 5, 9, 8)
    assert_close(from_indices, from_frames)


def test_true_actions_of_a_batch_reach_the_model_with_its_features() -> None:
    model = small_monolithic(TRUE_ACTIONS)
    actions = torch.randint(3, (4, 4, 2), generator=torch.Generator().manual_seed(0))
    inputs = FlamInputs(small_tokenizer(), model, STAGE, 0, CPU)(Batch(random_clips(), POSITIONS, actions), 20)
    assert torch.equal(inputs["actions"], actions)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    loss, metrics = FlamObjective(model, STAGE)(**inputs)
    predictions = model(inputs["features"], None, 3, actions).predictions
    errors = [
        (predictions[depth, :, depth:] - inputs["features"][:, depth + 1 :]).square().mean() for depth in range(3)
    ]
    assert_close(loss, sum(errors) / 3)
    assert metrics["kl"] == 0


def test_flam_inputs_freeze_the_tokenizer() -> None:
    tokenizer = small_tokenizer()
    inputs = FlamInputs(tokenizer, small_flam(), STAGE, 0, CPU)(Batch(random_clips(), POSITIONS), 0)
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not inputs["features"].requires_grad


@pytest.mark.parametrize("predict_steps", [1, 3])
def test_flam_loss_is_equation_6(predict_steps: int) -> None:
    flam = small_flam()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 9, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 4, 3, 4, generator=generator, dtype=torch.float64)
    beta = torch.tensor(0.3, dtype=torch.float64)
    loss, metrics = FlamObjective(flam, replace(STAGE, predict_steps=predict_steps))(features, noise, beta)

    output = flam(features, noise, predict_steps)
    depths = []
    for depth in range(predict_steps):  # frame t + 1 is depth + 1 frames ahead of a true one only where t >= depth
        errors = [(output.predictions[depth, :, t] - features[:, t + 1]).square().mean() for t in range(depth, 4)]
        depths.append(sum(errors) / len(errors))
    prediction_loss = sum(depths) / len(depths)
    kl = torch.zeros(3, dtype=torch.float64)
    for slot in range(3):
        mean, log_var = output.action_mean[:, :, slot], output.action_log_var[:, :, slot]
        posterior = Normal(mean, (0.5 * log_var).exp())
        kl[slot] = kl_divergence(posterior, Normal(torch.zeros_like(mean), 1.0)).sum(dim=-1).mean()
    assert_close(loss, prediction_loss + 0.3 * kl.sum())

    assert_close(metrics["prediction_loss"], prediction_loss.detach())
    assert_close(metrics["kl"], kl.sum().detach())
    assert_close(torch.stack([metrics[f"kl_{slot}"] for slot in range(3)]), kl.detach())
    copy_error = (features[:, 1:] - features[:, :-1]).square().mean()
    assert_close(metrics["copy_ratio"], depths[0].detach() / copy_error)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())


def test_a_reconstruction_term_draws_each_frame_from_its_own_slots_over_the_static_scene() -> None:
    flam = small_flam()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 9, 8, generator=generator, dtype=torch.float64)
    static = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    flam.factorizer.set_static_features(static)
    arguments = features, torch.zeros(2, 4, 3, 4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    plain, _ = FlamObjective(flam, STAGE)(*arguments)
    loss, metrics = FlamObjective(flam, replace(STAGE, reconstruction_weight=2.0))(*arguments)
    drawn = flam.aggregator(static.expand(2, 5, 9, 8), flam.factorizer(features)[0])
    error = (drawn - features).square().mean()
    assert_close(loss, plain + 2.0 * error)
    assert_close(metrics["reconstruction_loss"], error.detach())


def test_a_contrastive_term_is_the_cross_entropy_of_finding_each_slot_again() -> None:
    slots = torch.randn(6, 5, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for group in (range(0, 3), range(3, 6)):
        others = [(clip, slot) for clip in group for slot in range(3)]
        for step in range(4):
            for clip, slot in others:
                cosines = torch.stack(
                    [torch.cosine_similarity(slots[clip, step, slot], slots[a, step + 1, b], dim=0) for a, b in others]
                )
                found.append((cosines / 0.1).softmax(dim=0)[others.index((clip, slot))])
    assert_close(contrast_slots(slots, 3), -torch.stack(found).log().mean())


def test_slots_that_stand_still_and_apart_have_no_contrastive_loss_and_alike_ones_that_of_a_guess() -> None:
    apart = torch.eye(12).view(4, 1, 3, 12).expand(4, 5, 3, 12)
    assert contrast_slots(apart, 4) < 1e-3
    assert_close(
        contrast_slots(apart.roll(1, dims=2) * torch.linspace(1, 9, 5).view(5, 1, 1), 4), contrast_slots(apart, 4)
    )
    assert_close(contrast_slots(torch.ones(4, 5, 3, 12), 4), torch.tensor(12.0).log())


def test_a_contrastive_step_draws_a_slot_to_its_next_value_and_from_all_others() -> None:
    slots = torch.randn(4, 2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def cosines(of: Tensor) -> Tensor:
        now, after = nn.functional.normalize(of, dim=-1).transpose(0, 1).flatten(1, 2)
        return now @ after.T

    slots.requires_grad_()
    contrast_slots(slots, 4).backward()
    moved = slots.detach() - 1e-2 * slots.grad
    change = cosines(moved) - cosines(slots.detach())
    own = torch.eye(12, dtype=torch.bool)
    assert (change[own] > 0).all()
    assert change[~own].mean() < 0


def test_the_contrastive_loss_of_a_batch_is_the_mean_of_its_micro_batches() -> None:
    slots = torch.randn(8, 5, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [contrast_slots(part, 2) for part in slots.split(4)]
    assert_close(sum(parts) / 2, contrast_slots(slots, 2))


def test_a_contrastive_weight_adds_the_term_to_the_loss_and_its_value_to_the_records() -> None:
    flam = small_flam()
    features = torch.randn(2, 5, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = features, torch.zeros(2, 4, 3, 4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    plain, without = FlamObjective(flam, STAGE)(*arguments)
    stage = replace(STAGE, contrastive_weight=2.0, contrastive_clips=2)
    loss, metrics = FlamObjective(flam, stage)(*arguments)
    term = contrast_slots(flam.encode(features)[0], 2)
    assert_close(loss, plain + 2.0 * term)
    assert_close(metrics["contrastive_loss"], term.detach())
    assert not metrics["contrastive_loss"].requires_grad
    assert "contrastive_loss" not in without


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"contrastive_weight": -1.0}, "contrastive-weight must be 0 or more, got -1.0"),
        ({"contrastive_clips": 0}, "contrastive-clips must be at least 1, got 0"),
        (
            {"contrastive_weight": 1.0, "contrastive_clips": 5},
            "micro-batch must be a multiple of contrastive-clips = 5",
        ),
    ],
)
def test_contrastive_settings_that_cannot_be_are_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(STAGE, **changes)


def test_each_slot_that_a_clip_is_expected_to_keep_has_its_cost() -> None:
    flam = small_flam(ADAPTIVE)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 5, 9, 8, generator=generator, dtype=torch.float64)
    slot_noise = torch.logit(torch.rand(4, 3, generator=generator, dtype=torch.float64))
    inputs = {"features": features, "noise": torch.zeros(4, 4, 3, 4, dtype=torch.float64)}
    inputs |= {"beta": torch.tensor(0.3, dtype=torch.float64), "slot_noise": slot_noise}
    free, _ = FlamObjective(flam, STAGE)(**inputs, slot_cost=torch.tensor(0.0, dtype=torch.float64))
    loss, metrics = FlamObjective(flam, STAGE)(**inputs, slot_cost=torch.tensor(2.0, dtype=torch.float64))
    selection = flam.select(flam.encode(features)[0], slot_noise)
    assert_close(loss, free + 2.0 * selection.probability.sum(dim=1).mean())
    assert_close(metrics["slots_kept"], (3.0 * selection.kept.detach()).mean())
    loss.backward()
    assert all(parameter.grad.norm() > 0 for parameter in flam.selector.parameters())


def test_inputs_of_adaptive_slots_know_positions_alone_and_the_cost_rises_with_beta() -> None:
    prepare = FlamInputs(small_tokenizer(), small_flam(ADAPTIVE), replace(STAGE, slot_cost=0.2), 0, CPU)
    noise = prepare.slot_noise(POSITIONS)
    assert noise.shape == (4, 3)
    assert torch.equal(prepare.slot_noise(POSITIONS.flip(0)), noise.flip(0))
    assert prepare.slot_noise(torch.arange(3_000)).std().item() == pytest.approx(math.pi / 3**0.5, rel=0.03)
    for step, cost in ((10, 0.0), (15, 0.05), (30, 0.2)):
        inputs = prepare(Batch(random_clips(), POSITIONS), step)
        assert inputs["slot_cost"].item() == pytest.approx(cost)
        assert torch.equal(inputs["slot_noise"], noise)


@pytest.mark.parametrize(
    ("flam", "sentence"),
    [
        (
            FLAM,
            r"^flam-stage\.slot-cost 0\.1 cannot take effect where all slots are kept; .* pass --flam\.adaptive-slots",
        ),
        (MONOLITHIC, r"^flam-stage\.slot-cost 0\.1 cannot take effect in a monolithic model, which has no slots"),
    ],
)
def test_a_cost_of_slots_where_none_is_dropped_is_refused(flam: WorldModelConfig, sentence: str) -> None:
    stage = replace(STAGE, clip_frames=9, slot_cost=0.1)
    with pytest.raises(ConfigError, match=sentence):
        PretrainConfig(flam=flam, flam_stage=stage, cluster=ClusterConfig(num_workers=1))


def test_moving_pixels_weigh_more() -> None:
    median = torch.full((12, 12, 3), 100, dtype=torch.uint8)
    video = median.expand(1, 2, 12, 12, 3).clone()
    video[0, 1, 4, 7, 2] += 14  # 14/255 > 0.05, in one channel of one frame
    video[0, 1, 5, 7, :] += 12  # 12/255 < 0.05
    prepare = TokenizerInputs(median, TokenizerStageConfig(moving_weight=20.0), CPU)
    inputs = prepare(Batch(video, torch.zeros(1)), 0)
    assert inputs["images"].shape == (2, 3, 12, 12)
    expected = torch.ones(2, 1, 12, 12)
    expected[1, 0, 4, 7] = 21.0
    assert_close(inputs["weights"], expected)


def test_without_moving_weight_all_pixels_weigh_the_same() -> None:
    median = torch.zeros(12, 12, 3, dtype=torch.uint8)
    inputs = TokenizerInputs(median, TokenizerStageConfig(), CPU)(Batch(random_clips(), POSITIONS), 0)
    assert inputs["weights"].unique().tolist() == [1.0]


class MeanDifference(nn.Module):
    """A perceptual distance that can be written down."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).mean(dim=(1, 2, 3)).abs()


def test_tokenizer_loss_is_the_weighted_squared_error_plus_the_perceptual_term() -> None:
    tokenizer = small_tokenizer()
    images, weights = torch.rand(3, 3, 12, 12), 1.0 + torch.rand(3, 1, 12, 12)
    reconstruction = tokenizer(images).reconstruction
    squared_error = (reconstruction - images).square()
    pixels = (squared_error * weights).sum() / squared_error.numel()
    loss, metrics = TokenizerObjective(tokenizer, TokenizerStageConfig())(images, weights)
    assert_close(loss, pixels)
    assert_close(metrics["mse"], squared_error.mean().detach())
    assert_close(metrics["psnr"], -10 * squared_error.mean().log10().detach())

    config = TokenizerStageConfig(lpips_weight=2.0, lpips_weights="unused.safetensors")
    objective = TokenizerObjective(tokenizer, config, MeanDifference())
    loss, metrics = objective(images, weights)
    lpips = MeanDifference()(reconstruction, images).mean()
    assert_close(loss, pixels + 2.0 * lpips)
    assert_close(metrics["lpips"], lpips.detach())
    assert not any(value.requires_grad for value in metrics.values())


def flow_inputs(positions: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What a flow decoder learns from, of clips of two frames."""
    video = torch.zeros(len(positions), 2, 12, 12, 3, dtype=torch.uint8)
    prepare = TokenizerInputs(video[0, 0], TokenizerStageConfig(moving_weight=1.0), CPU, flow_seed=seed)
    return prepare(Batch(video, positions), 0)


def test_a_flows_noise_and_times_belong_to_the_clip_and_the_seed() -> None:
    whole = flow_inputs(torch.tensor([3, 8]))
    alone, other = flow_inputs(torch.tensor([8])), flow_inputs(torch.tensor([8]), seed=1)
    for name in ("noise", "times"):
        assert torch.equal(whole[name][2:], alone[name])
        assert not torch.equal(other[name], alone[name])
        assert len(whole[name].unique(dim=0)) == 4  # each frame has its own
    times = flow_inputs(torch.arange(200))["times"]
    assert 0 <= times.min() < 0.05
    assert 0.9 < times.max() < 0.95


def test_a_flows_loss_is_the_weighted_squared_error_of_its_velocity() -> None:
    tokenizer = small_tokenizer(replace(TOKENIZER, decoder="flow"))
    images, weights = torch.rand(4, 3, 12, 12), 1.0 + torch.rand(4, 1, 12, 12)
    start = {name: flow_inputs(torch.tensor([0, 1]))[name] for name in ("noise", "times")}
    noise, t = start["noise"] * 0.5 + 0.5, start["times"][:, None, None, None]  # noise in the images' units
    between = (1 - t) * noise + t * images
    velocity = (tokenizer(images, **start).reconstruction - between) / (1 - t)
    squared_error = (velocity - (images - noise)).square()

    objective = TokenizerObjective(tokenizer, TokenizerStageConfig())
    loss, metrics = objective(images, weights, **start)
    assert_close(loss, (squared_error * weights).mean())
    assert_close(metrics, {"velocity_error": squared_error.mean().detach()})
    _, validated = objective.eval()(images, weights, **start)
    assert_close(validated["mse"], (tokenizer(images).reconstruction - images).square().mean().detach())
    assert {name for name, value in validated.items() if not value.requires_grad} == {"velocity_error", "mse", "psnr"}


def test_a_perceptual_term_beside_a_flow_is_refused() -> None:
    stage = TokenizerStageConfig(lpips_weight=1.0, lpips_weights="unused.safetensors")
    with pytest.raises(ConfigError, match=r"lpips-weight 1\.0 cannot take effect with tokenizer\.decoder flow"):
        PretrainConfig(
            tokenizer=TokenizerConfig(decoder="flow"), tokenizer_stage=stage, cluster=ClusterConfig(num_workers=1)
        )


@pytest.mark.parametrize("steps", [0, 21])
def test_a_number_of_flow_steps_beyond_training_is_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=rf"flow-steps must lie between 1 and 20, got {steps}"):
        TokenizerConfig(flow_steps=steps)


def test_a_perceptual_network_is_not_trained_or_saved() -> None:
    perceptual = nn.Linear(2, 2)
    objective = TokenizerObjective(small_tokenizer(), TokenizerStageConfig(), perceptual)
    assert not {id(p) for p in perceptual.parameters()} & {id(p) for p in objective.parameters()}
    assert len(objective.state_dict()) == len(small_tokenizer().state_dict())


def test_encoder_lr_ratio_reaches_the_optimisers_groups() -> None:
    config = TokenizerStageConfig(encoder_lr_ratio=0.25)
    tokenizer = small_tokenizer()
    optimizer = build_optimizer(TokenizerObjective(tokenizer, config), config)
    set_learning_rate(optimizer, 0.8)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name.split(".")[0]: set() for name, _ in tokenizer.named_parameters()}
    for name, parameter in tokenizer.named_parameters():
        found[name.split(".")[0]].add(rates[id(parameter)])
    assert found == {"encoder": {0.2}, "to_code": {0.2}, "to_features": {0.8}, "decoder": {0.8}}
